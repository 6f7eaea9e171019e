"""Draw experts evenly, because the router of random weights chooses unlike a trained one.

That router sends like tokens to the same experts. So a preset would read fewer experts than its
model does in service. Here a token's experts are a pure function of (seed, layer, request,
position, slot), drawn uniformly without replacement. So k, scope, bucket, neighbours, re-packing,
ranks and replays do not change them. The router's own arithmetic still runs, and its weights are
used. Groups of experts are ignored, as by vLLM's ``uniform_random`` routing simulation.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cgbench.errors import UnsupportedModelError
from cgbench.kernels.expert_draw import MASK, ExpertShape, draw_by_torch, mixed_bits
from cgbench.kernels.gpu import runs_kernels

if TYPE_CHECKING:
    from cgbench.models.heads.head import DraftHead


def mixtures_of(backbone: nn.Module, head: "DraftHead | None") -> dict[int, nn.Module]:
    """Return the mixtures of experts of a target and its head, by the number of their layer.

    The head's blocks follow the last layer. transformers calls the modules with ``(hidden [T,
    H], experts [T, top_k], weights [T, top_k])``.
    """
    layers = dict(enumerate(backbone.layers))  # type: ignore[arg-type]
    for module in () if head is None else head.mtp_modules:
        layers[module.layer_idx] = module.block
    found = {number: _mixture_in(layer) for number, layer in layers.items()}
    return {number: mixture for number, mixture in found.items() if mixture is not None}


def _mixture_in(layer: nn.Module) -> nn.Module | None:
    # transformers' decorator of expert classes gives each of them this attribute.
    return next((part for part in layer.modules() if hasattr(part, "is_transposed")), None)


@contextmanager
def watched_choices(
    mixtures: Mapping[int, nn.Module], note: Callable[[int, int, Tensor], None]
) -> Iterator[None]:
    """Call ``note`` for each mixture that runs meanwhile.

    Its arguments are the layer's number, the number of experts, and the chosen ones ``[T, top_k]``.
    """

    def noting(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert isinstance(module.num_experts, int)
            note(number, module.num_experts, args[1])

        return hook

    handles = [each.register_forward_pre_hook(noting(n)) for n, each in mixtures.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def probed_shapes(mixtures: Mapping[int, nn.Module]) -> Iterator[dict[int, ExpertShape]]:
    """Yield a dict that collects the shape of each mixture that runs meanwhile, by layer."""
    shapes: dict[int, ExpertShape] = {}

    def note(number: int, num_experts: int, chosen: Tensor) -> None:
        shapes[number] = ExpertShape(num_experts, chosen.shape[-1])

    with watched_choices(mixtures, note):
        yield shapes


@runtime_checkable
class OfRequests(Protocol):
    """An ``OfRequests`` is an ``attention_call`` that has the requests of a forward's rows."""

    @property
    def request_keys(self) -> Tensor:
        """Return a number for each row's request, ``[B]``. Equal numbers are the same request."""
        ...


class BalancedRouting:
    """This class gives the mixtures of a target and its head the experts of ``draw_experts``.

    The experts of all layers are drawn when a forward enters its first layer. That is one kernel.
    One a layer would be a share of what is measured.
    """

    def __init__(self, shapes: Mapping[int, ExpertShape], seed: int) -> None:
        """Take the shapes of mixtures by layer, as ``probed_shapes`` collects them.

        Raise ``UnsupportedModelError`` if layers differ.
        """
        if len(set(shapes.values())) > 1:
            raise UnsupportedModelError(
                "--routing balanced: the model's layers choose among different numbers of "
                "experts. Use --routing model"
            )
        self.shape = next(iter(shapes.values()))
        self.start = seed_hash(seed)
        self._request_keys: Tensor | None = None

    def install(self, backbone: nn.Module, head: "DraftHead | None") -> None:
        """Take over the choice of experts for as long as the modules live."""
        mixtures = mixtures_of(backbone, head)
        of_head = () if head is None else head.mtp_modules
        heads = {module.layer_idx: module for module in of_head}
        own = {n: each for n, each in mixtures.items() if n not in heads}
        layers = backbone.layers
        assert isinstance(layers, nn.ModuleList)
        self._install(layers[0], own)
        for number in heads.keys() & mixtures.keys():
            self._install(heads[number].block, {number: mixtures[number]})

    def _install(self, entry: nn.Module, mixtures: Mapping[int, nn.Module]) -> None:
        device = next(entry.parameters()).device
        numbers = torch.tensor(list(mixtures), device=device)

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            call = kwargs.get("attention_call")
            keys = call.request_keys if isinstance(call, OfRequests) else self._request_keys
            assert keys is not None, "a forward of no request: see Target.as_request"
            # Some models rotate by several rows of positions, which are all alike for text.
            positions = kwargs["position_ids"]
            positions = positions.reshape(-1, *positions.shape[-2:])[0]
            drawn = draw_experts(keys, positions, numbers, self.start, self.shape)
            for mixture, experts in zip(mixtures.values(), drawn, strict=True):
                mixture.drawn = experts

        entry.register_forward_pre_hook(begin, with_kwargs=True)
        for mixture in mixtures.values():
            mixture.register_forward_pre_hook(_choose_drawn)

    @contextmanager
    def as_request(self, request_keys: Tensor) -> Iterator[None]:
        """Route meanwhile for the requests ``request_keys [B]``.

        It is for forwards without an ``attention_call``, by transformers' own code.
        """
        before, self._request_keys = self._request_keys, request_keys
        try:
            yield
        finally:
            self._request_keys = before


def _choose_drawn(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden, _, weights = args
    assert isinstance(module.drawn, Tensor)
    return hidden, module.drawn, weights


def draw_experts(
    keys: Tensor, positions: Tensor, layers: Tensor, start: int, shape: ExpertShape
) -> Tensor:
    """Return the experts of tokens in ``layers [L]``: ``[L, B * S, top_k]``.

    The tokens are at ``positions [B, S]`` of the requests ``keys [B]``. ``start`` is the hash of
    the seed.

    Each layer's experts are a view that does not begin its storage. A compiler makes another form
    of a layer whose input does, and the first layer's would.
    """
    num_tokens = positions.numel()
    out = torch.empty(
        len(layers) + 1, num_tokens, shape.top_k, dtype=torch.long, device=positions.device
    )[1:]
    if runs_kernels(positions.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.triton_draw import draw

        draw(keys, positions, layers, start, shape, out)
    else:
        draw_by_torch(keys, positions, layers, start, shape, out)
    return out


def seed_hash(seed: int) -> int:
    """Return the hash with which the draws of one seed begin."""
    return int(mixed_bits(torch.tensor(seed & MASK)))
