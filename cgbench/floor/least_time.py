"""Compute the floor: the least time one iteration can take on this device, and its account.

Each matrix product, each attention and each recurrence has a least time. It is the larger of bytes
over measured read bandwidth, and operations over measured matrix rate. The floor is their sum over
the iteration.

Bytes are those that must come from memory. They are every weight once a forward, and of a mixture
the experts that were counted. They are also the live keys and values, or the live latents once a
request. Recurrent state and the embedding rows that are looked up count too. Activations, norms,
biases and the writing of KV and of state are left out, because a better engine could keep or fold
them. So nothing that reads its weights from memory can be faster.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from cgbench.floor.account import Account, FloorLine, account_stage
from cgbench.floor.rates import DeviceLimits
from cgbench.floor.work import AttentionShape, ForwardWork, ModelWork, Product, rank_work
from cgbench.kernels.gdn.delta_net import StateShape
from cgbench.models.loader import LoadedModel
from cgbench.models.quantised.scaled_modules import quantises_rows
from cgbench.words import Quant, Scope, Stage


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch is what one iteration works on.

    It has requests, drafts of each, and the mean of their committed KV rows at the start. Padding
    is no part of it, because a floor is of the work that was asked for.

    ``experts_read`` is by stage. It is the mean distinct experts that an expert layer of the
    stage's forward was counted to read. A stage without an entry is expected to read what uniform
    choice would.
    """

    batch_size: int
    spec_tokens: int
    context_len: float
    experts_read: Mapping[Stage, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Floor:
    """A floor computes the least times of one model on one device.

    ``itemsize`` is the bytes of a weight or KV value that is not FP8. ``quant`` is the numeric mode
    of weights that are. In W8A8 their products are of two FP8 matrices.
    """

    work: ModelWork
    limits: DeviceLimits
    itemsize: int
    quant: Quant = Quant.NONE

    def seconds(self, batch: Batch) -> float:
        """Return the floor of one whole iteration, in seconds."""
        return sum(line.seconds for line in self.account(batch))

    def account_of(self, scope: Scope, batch: Batch) -> Account:
        """Return the account of an iteration in the form that the record keeps."""
        return Account(
            scope=scope,
            spec_tokens=batch.spec_tokens,
            batch_size=batch.batch_size,
            context_len=batch.context_len,
            lines=tuple(self.account(batch)),
        )

    def account(self, batch: Batch) -> list[FloorLine]:
        """Return the iteration's lines, stage after stage. Drafts 2..k are one stage."""
        merged: dict[tuple[Stage, str], FloorLine] = {}
        for line in self._lines(batch):
            key = (line.stage, line.what)
            merged[key] = line if key not in merged else merged[key].plus(line)
        return list(merged.values())

    def _lines(self, batch: Batch) -> Iterator[FloorLine]:
        b, k, context = batch.batch_size, batch.spec_tokens, batch.context_len
        query_len = k + 1
        lm_head = self.work.lm_head
        read = batch.experts_read
        target, verify = self.work.target, Stage.VERIFY
        yield from self._forward(verify, target, b, query_len, context, read.get(verify))
        yield from self._forward(verify, lm_head, b, query_len, context)
        # One forward makes all drafts, and its block begins a row further on at least.
        if self.work.is_parallel and k:
            (module,), draft = self.work.modules, Stage.draft(1)
            yield from self._forward(draft, module.forward, b, query_len, context + 1)
            yield from self._forward(draft, module.output, b, k, context)
            return
        for step in range(1, k + 1):
            module, draft = self.work.module_of(step), Stage.draft(step)
            stage = account_stage(draft, k)
            rows, start = self._draft_rows(step, query_len, context)
            yield from self._forward(stage, module.forward, b, rows, start, read.get(draft))
            yield from self._forward(stage, module.output, b, 1, context)

    def _draft_rows(self, step: int, query_len: int, context: float) -> tuple[int, float]:
        """Return the rows a request of draft ``step``, and the KV rows below them.

        Kept drafts lengthen the context of a step of one row by up to k rows more, which a floor
        may leave out.
        """
        num_modules = len(self.work.modules)
        if step <= num_modules:
            # A module past the first computes the rows again that it had of drafts alone.
            return query_len + step - 1, max(0.0, context - (step - 1))
        return 1, context + step - num_modules

    def _forward(
        self,
        stage: Stage,
        work: ForwardWork,
        batch_size: int,
        query_len: int,
        context: float,
        experts_read: float | None = None,
    ) -> Iterator[FloorLine]:
        """Yield the lines of a forward of ``query_len`` tokens a request.

        Its KV is ``context`` rows and these tokens'. ``experts_read`` was counted for each expert
        layer.
        """
        num_tokens = batch_size * query_len
        if work.embedding_elements:
            num_bytes = num_tokens * work.embedding_elements * self.itemsize
            yield self._line(stage, "embedding rows", 1, num_bytes, 0)
        for product, count in Counter(work.products).items():
            expected = expected_experts(product, num_tokens)
            is_mixture = product.num_experts > 1
            read = experts_read if is_mixture and experts_read is not None else expected
            weights = count * read * product.bytes_read(self.itemsize)
            rows = num_tokens * (product.num_rows + product.context_rows)
            flops = count * 2.0 * rows * product.num_elements
            rate = self._rate(product)
            line = self._line(stage, product.name, count, weights, flops, rate)
            yield (
                line
                if not is_mixture
                else replace(line, experts_read=experts_read, experts_expected=expected)
            )
        for shape, count in Counter(work.attentions).items():
            keys = context + query_len
            live_rows = batch_size * keys_read(shape, keys, query_len)
            live = count * live_rows * shape.row_bytes(self.itemsize)
            flops = count * batch_size * attention_flops(shape, keys, query_len)
            yield self._line(stage, _attention_name(shape), count, live, flops)
        for state, count in Counter(work.states).items():
            live = count * batch_size * state.num_bytes(self.itemsize)
            flops = count * num_tokens * recurrence_flops(state)
            yield self._line(stage, "recurrent state", count, live, flops)

    def _rate(self, product: Product) -> float:
        """Return the operations a second of a product with a stored weight."""
        limits = self.limits
        is_fp8 = product.is_fp8 and quantises_rows(product.name)
        if self.quant is Quant.W8A8 and is_fp8 and limits.fp8_flops_per_s is not None:
            return limits.fp8_flops_per_s
        return limits.flops_per_s

    def _line(
        self,
        stage: Stage,
        what: str,
        count: int,
        num_bytes: float,
        flops: float,
        flops_per_s: float | None = None,
    ) -> FloorLine:
        read_s = num_bytes / self.limits.read_bytes_per_s
        multiply_s = flops / (flops_per_s or self.limits.flops_per_s)
        return FloorLine(
            stage=stage,
            what=what,
            count=count,
            num_bytes=num_bytes,
            flops=flops,
            bound_by="bytes" if read_s >= multiply_s else "operations",
            seconds=max(read_s, multiply_s),
        )


def floor_of(model: LoadedModel, limits: DeviceLimits) -> Floor:
    """Return the floors of what this rank holds of ``model``, on a device of these ``limits``."""
    return Floor(rank_work(model), limits, model.target.dtype.itemsize, model.quant)


def expected_experts(product: Product, num_tokens: int) -> float:
    """Return how many experts ``num_tokens`` tokens touch if each chooses uniformly by itself.

    That is E (1 - (1 - r/E)^T), and 1 for a dense layer. A trained router's choices are alike from
    token to token, so it touches fewer.
    """
    share = product.num_rows / product.num_experts
    return product.num_experts * (1.0 - (1.0 - share) ** num_tokens)


def keys_read(shape: AttentionShape, keys: float, query_len: int) -> float:
    """Return the KV rows that ``query_len`` consecutive queries read between them.

    The last one sees ``keys`` rows, or its window of them.
    """
    return keys if shape.window is None else min(keys, shape.window + query_len - 1)


def attention_flops(shape: AttentionShape, keys: float, query_len: int) -> float:
    """Return the operations of ``query_len`` consecutive queries of attention.

    They are the product with the keys and the one with the values. The last query works on ``keys``
    rows, each before it on one fewer, or on its window of them.
    """
    window = keys if shape.window is None else shape.window
    seen = sum(min(keys - back, window) for back in range(query_len))
    return 2.0 * shape.query_heads * seen * (shape.key_dim + shape.value_dim)


def recurrence_flops(state: StateShape) -> float:
    """Return the operations of one token in a recurrence.

    They are the matrix times its key, the update by an outer product, and the matrix times its
    query.
    """
    return 3 * 2.0 * state.matrix_elements


def _attention_name(shape: AttentionShape) -> str:
    what = "latent attention" if shape.is_latent else "attention"
    return what if shape.window is None else f"{what}, window {shape.window}"
