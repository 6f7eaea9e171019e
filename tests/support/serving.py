"""A serving engine over cgbench's own iteration: requests come and go while others decode.

It pads a batch to a bucket, runs eager above the largest one, and may draft otherwise at other
batch sizes, as engines do. Faults are planted by overriding one of its small methods.
"""

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cgbench.engine.acceptance import Greedy
from cgbench.engine.backends import DECODE_BACKENDS
from cgbench.engine.deployment import make_state
from cgbench.engine.iteration import Speculator, draft_next, emit_draft, iteration
from cgbench.engine.kv import KvCache
from cgbench.engine.prefill import prefill_slots
from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import NUM_ACCEPTED, NUM_EMITTED, OUT, RowState
from cgbench.models.loader import LoadedModel

FOREVER = 1 << 30


class Recorded:
    """Greedy acceptance that keeps the logits it decided by: ``[b, k + 1, V]``, or ``[1, V]``."""

    is_random = draws_tokens = samples_drafts = False

    def __init__(self) -> None:
        self.rule, self.seen = Greedy(), torch.empty(0)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        self.seen = logits.clone()
        return self.rule.choose(logits, uniforms)

    def draft(self, rows: RowState, logits: Tensor, step: int) -> Tensor:
        return self.rule.draft(rows, logits, step)

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        self.seen = logits.clone()
        self.rule(rows, logits)


@dataclass
class Emitted:
    """Tokens of one step, and the logits ``[V]`` behind each."""

    ids: list[int]
    logits: list[Tensor]
    is_last: bool


@dataclass(eq=False)
class Served:
    """A request in the engine: what it has emitted, and where its caller reads it."""

    prompt: list[int]
    max_tokens: int
    out: "queue.Queue[Emitted | None]" = field(default_factory=queue.Queue)
    ids: list[int] = field(default_factory=list)
    slot: int = 0
    steps: list[tuple[list[int] | None, list[int], list[Tensor]]] = field(default_factory=list)
    """What the host read of each iteration, and what it emitted: filled where it is known again."""

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.ids]


@dataclass
class Counters:
    """What ``/metrics`` shows."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted: int = 0
    by_position: list[int] = field(default_factory=lambda: [0] * 8)
    running: int = 0


class ServingEngine:
    """Continuous batching. ``tiers`` are (last batch size, k), ascending."""

    alone = "sound"
    """Engines of one word here answer one request at a time alike."""

    expected = 0
    """So many requests of one probe wait for each other, whatever threads bring them."""

    known: dict[tuple[int, ...], Served] | None = None
    """Where a dictionary, requests come one at a time, and one that came is answered as it was."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_num_seqs: int,
        buckets: Sequence[int],
        tiers: Sequence[tuple[int, int]],
        room: int = 256,
    ) -> None:
        self.accept = Recorded()
        lengths = {k for _, k in tiers}
        cache = KvCache(
            model.kv_shapes,
            max_batch_size=max_num_seqs,
            room=room,
            dtype=model.target.dtype,
            device=model.target.device,
            query_len=max(lengths) + 1,
            kv_format=model.kv_format,
        )
        self.spec = Speculator(
            model.target, model.head, cache, DECODE_BACKENDS["sdpa"], self.accept
        )
        self.states: Mapping[int, DecodeState] = {
            k: make_state(self.spec, k, max_num_seqs) for k in lengths
        }
        self.max_num_seqs, self.buckets, self.tiers = max_num_seqs, sorted(buckets), tiers
        self.k = self.length_at(1)
        self.rows: list[Served] = []
        self.waiting: queue.Queue[Served | None] = queue.Queue()
        self.gathered: list[Served] = []
        self.counters = Counters()
        self.most_waiting = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)

    # What a caller does.

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.waiting.put(None)
        self.thread.join(timeout=10)

    def submit(self, prompt: list[int], max_tokens: int) -> Served:
        request = Served(prompt, max_tokens)
        self.waiting.put(request)
        return request

    # The plan.

    def length_at(self, batch_size: int) -> int:
        return next(k for last, k in self.tiers if batch_size <= last)

    def bucket_for(self, batch_size: int) -> int | None:
        return next((bucket for bucket in self.buckets if bucket >= batch_size), None)

    # The loop.

    @torch.inference_mode()
    def _serve(self) -> None:
        while self._admit():
            if not self.rows:
                continue
            wanted = self.length_at(len(self.rows))
            if wanted != self.k:
                self.switch(wanted)
            self._step()

    def _admit(self) -> bool:
        """Take new requests, wait for one if there is none. False: stop."""
        if len(self.rows) == self.max_num_seqs:
            self.most_waiting = max(self.most_waiting, self.waiting.qsize() + len(self.gathered))
        while len(self.rows) < self.max_num_seqs:
            if not self.gathered:
                try:
                    request = self.waiting.get(block=not self.rows)
                except queue.Empty:
                    return True
                if request is None:
                    for row in self.rows:
                        row.out.put(None)
                    return False
                if not self.expected:
                    self._begin(request)
                    continue
                self._gather(request)
            # One a step, so that a batch climbs over an edge.
            self._begin(self.gathered.pop(0))
            return True
        return True

    def _gather(self, first: Served) -> None:
        """Wait for the other requests of a probe. The longest begins, the shortest is the last."""
        found = [first]
        while len(found) < self.expected:
            other = self.waiting.get(timeout=30)
            assert other is not None
            found.append(other)
        self.expected = 0
        self.gathered = sorted(found, key=lambda each: (-each.max_tokens, each.prompt))

    def _begin(self, request: Served) -> None:
        if self.known is not None:
            before = self.known.setdefault(tuple(request.prompt), request)
            if len(before.ids) >= request.max_tokens:
                self._repeat(request, before)
                return
        taken = {row.slot for row in self.rows}
        request.slot = next(slot for slot in range(self.max_num_seqs) if slot not in taken)
        block_out, last = self._prefill(request)
        self._emit(request, [last], [self.accept.seen[0]], None)
        if len(request.ids) >= request.max_tokens:
            return
        self.rows.append(request)
        self._fill(len(self.rows) - 1, request, block_out)
        self.counters.running = len(self.rows)

    def _repeat(self, request: Served, before: Served) -> None:
        for result, ids, logits in before.steps:
            if result is not None:
                self._count(result)
            fitting = request.max_tokens - len(request.ids)
            self._emit(request, ids[:fitting], logits[:fitting], result)
            if len(request.ids) >= request.max_tokens:
                break

    def _prefill(self, request: Served) -> tuple[Tensor | None, int]:
        """The head's newest output and the token after ``request.tokens``."""
        tokens = torch.tensor([request.tokens])
        found = prefill_slots(
            self.spec,
            tokens,
            torch.tensor([tokens.shape[1]]),
            torch.tensor([request.slot]),
            torch.zeros(1),
        )
        return found.block_out, int(found.last[0])

    def _fill(self, row: int, request: Served, block_out: Tensor | None) -> None:
        """Put a request into a row. Its newest token has no KV yet."""
        full = self.states[self.k].full
        full.last[row] = request.ids[-1]
        full.seq_len[row] = len(request.tokens) - 1
        full.slot_of_row[row] = request.slot
        full.active[row] = 1
        full.tokens_left[row] = FOREVER
        if self.k:
            assert block_out is not None
            self._draft(one_row(full, row), block_out)

    def _draft(self, rows: RowState, block_out: Tensor) -> None:
        emit_draft(self.spec, rows, block_out, 1)
        rows.seq_len.sub_(1)
        rows.num_accepted.zero_()
        for step in range(2, rows.spec_tokens + 1):
            draft_next(self.spec, rows, step)
        rows.seq_len.add_(1)

    def switch(self, spec_tokens: int) -> None:
        """Go on with another draft length. At k = 0 the head's KV was not written: do it now."""
        self.states[self.k].clear()
        self.k = spec_tokens
        for row, request in enumerate(self.rows):
            self._fill(row, request, self.caught_up(request) if spec_tokens else None)

    def caught_up(self, request: Served) -> Tensor | None:
        """The head's output after its KV was written for all but the newest token."""
        newest = request.ids.pop()
        block_out, _ = self._prefill(request)
        request.ids.append(newest)
        return block_out

    def _step(self) -> None:
        count = len(self.rows)
        bucket = self.bucket_for(count)
        state = self.states[self.k]
        self.run(state, count, bucket)
        results = self.results(state, count, bucket)
        logits = self.accept.seen
        for row, (request, result) in enumerate(zip([*self.rows], results, strict=True)):
            self._count(result)
            ids = result[OUT : OUT + result[NUM_EMITTED]][: request.max_tokens - len(request.ids)]
            self._emit(request, ids, [*logits[min(row, len(logits) - 1)][: len(ids)]], result)
        self._retire(state)

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        """One iteration over ``count`` requests, padded to ``bucket``."""
        iteration(self.spec, state.rows(count if bucket is None else bucket))

    def results(self, state: DecodeState, count: int, bucket: int | None) -> list[list[int]]:
        """What the host reads of an iteration, a list a request."""
        found: list[list[int]] = state.full.result[:count].tolist()
        return found

    def _count(self, result: list[int]) -> None:
        if not self.k:
            return
        kept = result[NUM_ACCEPTED]
        self.counters.drafts += 1
        self.counters.draft_tokens += self.k
        self.counters.accepted += kept
        for position in range(kept):
            self.counters.by_position[position] += 1

    def _emit(
        self,
        request: Served,
        ids: list[int],
        logits: list[Tensor],
        result: list[int] | None,
    ) -> None:
        request.ids += ids
        if self.known is not None:
            request.steps.append((result, ids, logits))
        request.out.put(Emitted(ids, logits, len(request.ids) >= request.max_tokens))

    def _retire(self, state: DecodeState) -> None:
        keep = [row for row, each in enumerate(self.rows) if len(each.ids) < each.max_tokens]
        if len(keep) < len(self.rows):
            self.rows = [self.rows[row] for row in keep]
            if keep:
                state.repack(keep)
            else:
                state.clear()
        self.counters.running = len(self.rows)


def one_row(full: RowState, row: int) -> RowState:
    """Views of a single row."""
    names = ("last", "drafts", "seq_len", "slot_of_row", "active", "tokens_left")
    views = {name: getattr(full, name)[row : row + 1] for name in (*names, "hidden", "chain")}
    return replace(full, **views, result=full.result[row : row + 1])
