"""What headers alone say of a target's tensors is what loading them says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cgbench.errors import ModelError
from cgbench.models.heads.families import EAGLE, MIMO, QWEN, HeadFamily
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading, LoadingPlan, plan_loading
from cgbench.models.placement import check_headers
from tests.support.tiny import make_checkpoint

Damage = Callable[[dict[str, Tensor], str], dict[str, Tensor]]

DAMAGES: dict[str, Damage] = {
    "missing": lambda tensors, name: {other: tensors[other] for other in tensors if other != name},
    "shape": lambda tensors, name: tensors | {name: torch.ones(3, 3)},
    "bias": lambda tensors, name: tensors | {name.replace(".weight", ".bias"): torch.ones(3)},
}

# Plain, with tied embeddings, beside a vision tower, and experts that are stored one by one.
KINDS: list[tuple[str, HeadFamily, str]] = [
    ("mimo", MIMO, "model.layers.0.mlp.up_proj.weight"),
    ("gemma3_text", EAGLE, "model.embed_tokens.weight"),
    ("qwen3_next", QWEN, "model.layers.0.mlp.experts.3.up_proj.weight"),
    ("qwen3_5_moe", QWEN, "layers.0.linear_attn.out_proj.weight"),
]


def refusal(check: Callable[[LoadingPlan], object], folder: Path) -> str | None:
    request = Loading(str(folder), None, False, torch.device("cpu"), torch.bfloat16)
    try:
        check(plan_loading(request))
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("kind", "family", "ending"), KINDS, ids=[kind for kind, *_ in KINDS])
def test_headers_say_what_loading_says(
    tmp_path: Path, kind: str, family: HeadFamily, ending: str
) -> None:
    folder = make_checkpoint(tmp_path, kind, family=family)
    assert refusal(check_headers, folder) is refusal(load_model, folder) is None
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(each for each in tensors if each.endswith(ending) and "mtp" not in each)
    for what, damage in DAMAGES.items():
        save_file(damage(tensors, name), file, metadata={"format": "pt"})
        said = refusal(check_headers, folder)
        assert said == refusal(load_model, folder)
        # One expert is no module, so a bias of its is another module's.
        assert said is not None or (what, kind) == ("bias", "qwen3_next")
