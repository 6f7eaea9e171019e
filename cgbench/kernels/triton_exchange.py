"""Sum and gather numbers over the GPUs of one machine, in a Triton kernel each.

Each program writes its piece of this rank's numbers into the memory of every other rank, and waits
for theirs in its own. It adds up in the order of ranks, so all hold the same bits. There are two
ways, those of NCCL's protocols LL and Simple.

Few numbers go as words. Four bytes of data travel with four that number the exchange, as one word
of eight. The word arrives at once, so nothing is fenced. If a word has the number, it has the data.
NCCL takes 10 to 11 us for the 8 to 32 kB of a decode step at batch 1. Most of that is spent to
begin and to end.

Many numbers go as pieces. A program writes nothing but data. Then it releases a flag with the
number. That is half the bytes and one trip more.

The memory is double-buffered: exchange n + 2 reuses the half of exchange n. That is safe, because a
rank starts n + 2 only after it has received every rank's data of n + 1, and a rank sends n + 1 only
after it has read n. The two ways have halves of their own.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, globaltimer

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.timeout import COLLECTIVE_TIMEOUT_S

FEW_BYTES = 1 << 19
"""A rank sends at most this many bytes as words, to all others together.

Up to here words are not slower than pieces with two ranks (results/h200/sums.md).
"""

WORD_BYTES = 4
WORDS_A_PROGRAM = 512
WORD_PROGRAMS = FEW_BYTES // (WORDS_A_PROGRAM * WORD_BYTES)

MAX_BYTES = 1 << 23
"""A rank sends at most this many bytes in one exchange, to all others together.

With two ranks that takes two thirds of NCCL's time, and 2 MiB take a third (results/h200/sums.md).
More bytes were not measured.
"""

PIECE_PROGRAMS = 132
"""This many programs send pieces, whatever the amount: one on each multiprocessor of an H200.

A program waits only for the programs of its own number on other ranks, and they begin in the order
of numbers. So a smaller GPU, which does not run all at once, gets through them in turn.
"""

TILE_BYTES = 1 << 14
FLAG_WORDS = 32
"""This is the distance from one flag to the next. No two are in one line of 128 bytes."""

NUM_COUNTS = WORD_PROGRAMS + PIECE_PROGRAMS
_ALIGNMENT = 16

TIMEOUT_S = COLLECTIVE_TIMEOUT_S
"""After this time a rank that waits for another's numbers ends, as in NCCL.

It ends by a trap, which the host sees as a CUDA error.
"""

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Inboxes(NamedTuple):
    """Inboxes are memory that ranks write to each other.

    ``addresses [N]`` are where every rank's memory is. Each has ``inbox_words(N)`` words of eight
    bytes, which were zero at first. ``counts [NUM_COUNTS]`` are the exchanges that each of this
    rank's programs has made, by words and then by pieces.

    All ranks make the same exchanges in the same order, one after another. Unlike NCCL's, the
    exchanges of two streams at once are not put in one order.
    """

    addresses: Tensor
    counts: Tensor
    rank: int
    few_bytes: int = FEW_BYTES
    """At most this many bytes go as words. All ranks have the same limit."""

    @property
    def max_bytes(self) -> int:
        """Return the most bytes that a rank's part of one exchange may have."""
        return _max_bytes(len(self.addresses))

    def take(self, part: Tensor) -> bool:
        """Return whether ``part`` may be exchanged.

        It must be whole words of numbers that can be added, and must fit in a rank's place.
        """
        return (
            part.dtype in _DTYPES
            and part.is_contiguous()
            and 0 < part.nbytes <= self.max_bytes
            and part.nbytes % WORD_BYTES == part.data_ptr() % WORD_BYTES == 0
        )

    def by_words(self, part: Tensor) -> bool:
        """Return whether ``part`` goes as words. If not, it goes as pieces."""
        return part.nbytes * (len(self.addresses) - 1) <= self.few_bytes

    def add_up(self, partial: Tensor) -> None:
        """Sum every rank's ``partial``, in place. The sum is in float32 and rounded once."""
        _exchange(self, partial, partial, adds=True)

    def gather(self, part: Tensor) -> Tensor:
        """Return every rank's ``part``, in the order of ranks, ``[N, *part.shape]``."""
        out = part.new_empty(len(self.addresses), *part.shape)
        _exchange(self, part, out, adds=False)
        return out


@triton.jit
def _trap():
    tl.inline_asm_elementwise(
        "trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _release(flag, number):
    """Store the flag from one thread.

    Triton would store it by an atomic operation on another GPU's memory, which not every link
    offers.
    """
    tl.inline_asm_elementwise(
        """{
        .reg .u32 thread;
        .reg .pred first;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first st.release.sys.global.u32 [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [flag, number],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def inbox_words(num_ranks: int) -> int:
    """Return how many words of eight bytes a rank's inbox has.

    It has two halves for each way. A half has a place for every rank's numbers.
    """
    flag_bytes = 2 * num_ranks * PIECE_PROGRAMS * FLAG_WORDS * 4
    return (_flags_begin(num_ranks) + flag_bytes) // 8


def _max_bytes(num_ranks: int) -> int:
    return MAX_BYTES // (num_ranks - 1) // _ALIGNMENT * _ALIGNMENT


def _pieces_begin(num_ranks: int) -> int:
    """Return the bytes before the places of pieces, which are those of words."""
    return 2 * num_ranks * WORD_PROGRAMS * WORDS_A_PROGRAM * 8


def _flags_begin(num_ranks: int) -> int:
    return _pieces_begin(num_ranks) + 2 * num_ranks * _max_bytes(num_ranks)


@triton.jit(do_not_specialize=["num_words"])  # type: ignore[untyped-decorator]
def _word_kernel(
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
    # This is last, because the waiting above holds a program's warps together, and all of them
    # have read it by now.
    tl.store(counts + program, number)


@triton.jit(do_not_specialize=["tiles"])  # type: ignore[untyped-decorator]
def _piece_kernel(
    own,
    out,
    addresses,
    counts,
    size,
    tiles,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    DTYPE: tl.constexpr,
    ADDS: tl.constexpr,
    TILE: tl.constexpr,
    PIECES: tl.constexpr,
    PLACE: tl.constexpr,
    FLAGS: tl.constexpr,
    FLAG_WORDS: tl.constexpr,
    FIRST_COUNT: tl.constexpr,
    TIMEOUT_NS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    begin = program * tiles * TILE
    number = tl.load(counts + FIRST_COUNT + program) + 1
    half = (number & 1) * RANKS
    for step in tl.static_range(1, RANKS):
        theirs = _pointer(addresses, (RANK + step) % RANKS, DTYPE) + PIECES + (half + RANK) * PLACE
        for tile in range(tiles):
            at = begin + tile * TILE + tl.arange(0, TILE)
            keep = at < size
            tl.store(theirs + at, tl.load(own + at, mask=keep), mask=keep)
    # The flag is one thread's, and is seen after what all of them wrote.
    tl.debug_barrier()
    for step in tl.static_range(1, RANKS):
        flags = _pointer(addresses, (RANK + step) % RANKS, tl.int32) + FLAGS
        flag = flags + ((half + RANK) * programs + program) * FLAG_WORDS
        if TIMEOUT_NS > 0:
            _release(flag, number)
        else:
            tl.atomic_xchg(flag, number, sem="release", scope="sys")

    if TIMEOUT_NS > 0:
        begun = globaltimer()
    for step in tl.static_range(1, RANKS):
        flags = _pointer(addresses, RANK, tl.int32) + FLAGS
        flag = flags + ((half + (RANK + step) % RANKS) * programs + program) * FLAG_WORDS
        while tl.atomic_add(flag, 0, sem="acquire", scope="sys") != number:
            if TIMEOUT_NS > 0:
                if globaltimer() - begun > TIMEOUT_NS:
                    _trap()

    mine = _pointer(addresses, RANK, DTYPE) + PIECES + half * PLACE
    for tile in range(tiles):
        at = begin + tile * TILE + tl.arange(0, TILE)
        keep = at < size
        total = tl.zeros([TILE], tl.float32)
        for rank in tl.static_range(RANKS):
            if rank == RANK:
                part = tl.load(own + at, mask=keep)
            else:
                # Read past L1, which may hold what was here before.
                part = tl.load(mine + rank * PLACE + at, mask=keep, cache_modifier=".cg")
            if ADDS:
                total += part.to(tl.float32)
            else:
                tl.store(out + rank * size + at, part, mask=keep)
        if ADDS:
            tl.store(out + at, total.to(DTYPE), mask=keep)
    tl.store(counts + FIRST_COUNT + program, number)


@triton.jit
def _pointer(addresses, rank, DTYPE):
    pointer = tl.load(addresses + rank, cache_modifier=".cg").to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16)


def _exchange(inboxes: Inboxes, own: Tensor, out: Tensor, *, adds: bool) -> None:
    assert inboxes.take(own)
    by = _by_words if inboxes.by_words(own) else _by_pieces
    by(inboxes, own.view(-1), out.view(-1), adds=adds)


def _by_words(inboxes: Inboxes, own: Tensor, out: Tensor, *, adds: bool) -> None:
    words = own.view(torch.int32)
    _word_kernel[(triton.cdiv(len(words), WORDS_A_PROGRAM),)](
        words,
        out.view(torch.int32),
        inboxes.addresses,
        inboxes.counts,
        len(words),
        RANK=inboxes.rank,
        RANKS=len(inboxes.addresses),
        DTYPE=_DTYPES[own.dtype],
        ADDS=adds,
        WORDS=WORDS_A_PROGRAM,
        PLACE=WORD_PROGRAMS * WORDS_A_PROGRAM,
        TIMEOUT_NS=_timeout_ns(own.device),
        EARLY=early(own.device),
        num_warps=4,
        **launch_keywords(own.device),
    )


def _by_pieces(inboxes: Inboxes, own: Tensor, out: Tensor, *, adds: bool) -> None:
    num_ranks, item = len(inboxes.addresses), own.element_size()
    tile = TILE_BYTES // item
    _piece_kernel[(PIECE_PROGRAMS,)](
        own,
        out,
        inboxes.addresses,
        inboxes.counts,
        len(own),
        triton.cdiv(len(own), PIECE_PROGRAMS * tile),
        RANK=inboxes.rank,
        RANKS=num_ranks,
        DTYPE=_DTYPES[own.dtype],
        ADDS=adds,
        TILE=tile,
        PIECES=_pieces_begin(num_ranks) // item,
        PLACE=_max_bytes(num_ranks) // item,
        FLAGS=_flags_begin(num_ranks) // 4,
        FLAG_WORDS=FLAG_WORDS,
        FIRST_COUNT=WORD_PROGRAMS,
        TIMEOUT_NS=_timeout_ns(own.device),
        EARLY=early(own.device),
        num_warps=8,
        **launch_keywords(own.device),
    )


def _timeout_ns(device: torch.device) -> int:
    """Return the timeout, or 0 if there is no clock to read, as in the interpreter."""
    return int(TIMEOUT_S * 1e9) if device.type == "cuda" else 0
