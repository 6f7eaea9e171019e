"""Sums and gathers of few numbers over the GPUs of one machine, in Triton, a kernel each.

NCCL takes 11 to 12 us for the 8 to 32 kB that a decode step sums, most of it to begin and to end.
Here each program writes its piece of this rank's numbers into the memory of every other rank, waits
for theirs in its own, and adds up in the order of ranks: all hold the same bits.

Nothing is fenced: four bytes of data travel with four that number the exchange, as one word of
eight, which arrives at once (the scheme of NCCL's LL protocol). A word with the number has the
data. Two halves of the memory take turns: who writes the next exchange but one has had everybody's
numbers of the next, and those are sent when this one has been read.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, globaltimer

from cgbench.early_launch import early, launch_keywords
from cgbench.parallel.ranks import COLLECTIVE_TIMEOUT_S

WORDS_A_PROGRAM = 512
MAX_PROGRAMS = 1024
"""Fewer than an H200 runs at a time, by half: none waits for one that has not begun."""

WORD_BYTES = 4
MAX_BYTES = MAX_PROGRAMS * WORDS_A_PROGRAM * WORD_BYTES
"""That a rank sends in one exchange, to all others together, without their numbers. Of two ranks it
takes half of NCCL's time (results/h200/sums.md); more were not measured."""

TIMEOUT_S = COLLECTIVE_TIMEOUT_S
"""After which a rank that waits for another's numbers ends, as in NCCL: by a trap, which the host
sees as a CUDA error."""

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Inboxes(NamedTuple):
    """Memory that ranks write to each other.

    ``addresses [N]``: where every rank's is, ``inbox_words(N)`` words of eight bytes that were zero
    at first. ``counts [MAX_PROGRAMS]``: the exchanges that each of this rank's programs has made.
    All ranks make the same exchanges in the same order, one after another: unlike NCCL's, those of
    two streams at once are not put in one.
    """

    addresses: Tensor
    counts: Tensor
    rank: int

    @property
    def max_bytes(self) -> int:
        """Of one exchange."""
        return MAX_BYTES // max(1, len(self.addresses) - 1)

    def take(self, part: Tensor) -> bool:
        """Whether ``part`` may be exchanged: a few whole words, of numbers that can be added."""
        num_bytes = part.numel() * part.element_size()
        return (
            part.dtype in _DTYPES
            and part.is_contiguous()
            and 0 < num_bytes <= self.max_bytes
            and num_bytes % WORD_BYTES == part.data_ptr() % WORD_BYTES == 0
        )

    def add_up(self, partial: Tensor) -> None:
        """Every rank's ``partial`` summed, in place: in float32, rounded once."""
        _exchange(self, partial, partial, adds=True)

    def gather(self, part: Tensor) -> Tensor:
        """``[N, *part.shape]``: every rank's ``part``, in the order of ranks."""
        out = part.new_empty(len(self.addresses), *part.shape)
        _exchange(self, part, out, adds=False)
        return out


@triton.jit
def _trap():
    tl.inline_asm_elementwise(
        "trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


def inbox_words(num_ranks: int) -> int:
    """Two halves, in each a place for every rank's numbers."""
    return 2 * num_ranks * MAX_PROGRAMS * WORDS_A_PROGRAM


@triton.jit(do_not_specialize=["num_words"])  # type: ignore[untyped-decorator]
def _exchange_kernel(
    own,
    out,
    addresses,
    counts,
    num_words,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    DTYPE: tl.constexpr,
    ADDS: tl.constexpr,
    WORDS: tl.constexpr,
    PLACE: tl.constexpr,
    TIMEOUT_NS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_launch_dependents()
    program = tl.program_id(0)
    word = program * WORDS + tl.arange(0, WORDS)
    keep = word < num_words
    my_inbox = tl.load(addresses + RANK, cache_modifier=".cg").to(tl.pointer_type(tl.int64))
    if EARLY:
        gdc_wait()
    number = tl.load(counts + program) + 1
    mine = tl.load(own + word, mask=keep, other=0)
    half = (number & 1) * (RANKS * PLACE)
    packed = (number.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
    for step in tl.static_range(1, RANKS):
        inbox = tl.load(addresses + (RANK + step) % RANKS).to(tl.pointer_type(tl.int64))
        tl.store(inbox + half + RANK * PLACE + word, packed, mask=keep)

    if TIMEOUT_NS > 0:
        begun = globaltimer()
    low = tl.zeros([WORDS], tl.float32)
    high = tl.zeros([WORDS], tl.float32)
    for rank in tl.static_range(RANKS):
        bits = mine
        if rank != RANK:
            place = my_inbox + half + rank * PLACE + word
            arrived = tl.load(place, mask=keep, other=0, volatile=True)
            while tl.max((keep & ((arrived >> 32).to(tl.int32) != number)).to(tl.int32), 0) > 0:
                arrived = tl.load(place, mask=keep, other=0, volatile=True)
                if TIMEOUT_NS > 0:
                    if globaltimer() - begun > TIMEOUT_NS:
                        _trap()
            bits = arrived.to(tl.int32)
        if not ADDS:
            tl.store(out + rank * num_words + word, bits, mask=keep)
        elif DTYPE == tl.float32:
            low += bits.to(tl.float32, bitcast=True)
        else:
            low += bits.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
            high += (bits >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    if ADDS:
        if DTYPE == tl.float32:
            total = low.to(tl.int32, bitcast=True)
        else:
            total = low.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
            total |= high.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16
        tl.store(out + word, total, mask=keep)
    # Last: the waiting above holds a program's warps together, and all of them have read it.
    tl.store(counts + program, number)


def _exchange(inboxes: Inboxes, own: Tensor, out: Tensor, *, adds: bool) -> None:
    words = own.view(-1).view(torch.int32)
    _exchange_kernel[(triton.cdiv(len(words), WORDS_A_PROGRAM),)](
        words,
        out.view(-1).view(torch.int32),
        inboxes.addresses,
        inboxes.counts,
        len(words),
        RANK=inboxes.rank,
        RANKS=len(inboxes.addresses),
        DTYPE=_DTYPES[own.dtype],
        ADDS=adds,
        WORDS=WORDS_A_PROGRAM,
        PLACE=MAX_PROGRAMS * WORDS_A_PROGRAM,
        TIMEOUT_NS=_timeout_ns(own.device),
        EARLY=early(own.device),
        num_warps=4,
        **launch_keywords(own.device),
    )


def _timeout_ns(device: torch.device) -> int:
    """0 where there is no clock to read: in the interpreter."""
    return int(TIMEOUT_S * 1e9) if device.type == "cuda" else 0
