"""Refuse a model that the ranks cannot divide, before any weight is loaded."""

from cgbench.errors import ModelError
from cgbench.models.division.drafter_splits import check_drafter, check_drafter_layers
from cgbench.models.division.planned_splits import (
    check_heads,
    check_plan,
    delta_net_splits,
    latent_splits,
)
from cgbench.models.loading_plan import LoadingPlan


def check_division(plan: LoadingPlan) -> None:
    """Check that the ranks of a plan can share its files, its layers and their heads.

    Raise ``ModelError`` for files that are read whole. Raise ``UnsupportedModelError`` if
    transformers has no tensor parallel plan that can be followed. Raise ``BadInputError`` for heads
    that the ranks do not divide.
    """
    num_ranks, model = plan.request.ranks.size, plan.skeleton.target.model
    if plan.gguf_file is not None:
        raise ModelError(
            f"MODEL {plan.request.ref}: --tp {num_ranks} wants safetensors files, a GGUF file is "
            "read whole"
        )
    check_plan(model)
    probe, head = plan.skeleton.kv, plan.skeleton.head
    # The blocks of an MTP head are the target's. A drafter's layers have heads of their own.
    own = head.layer_numbers if head is not None and head.family.reads_aux else range(0)
    queries = {layer: n for layer, n in probe.num_query_heads.items() if layer not in own}
    keys = {layer: n for layer, n in probe.num_kv_heads.items() if layer not in own}
    check_heads(plan.config, num_ranks, queries, keys)
    latent_splits(model, num_ranks)
    delta_net_splits(model, num_ranks)
    if head is not None and head.family.reads_aux:
        check_drafter(head, num_ranks, plan.skeleton.target.vocab_size)
        if plan.request.divided_head:
            check_drafter_layers(head, num_ranks, probe)
