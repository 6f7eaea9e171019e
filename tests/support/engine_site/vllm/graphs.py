"""The objects in which vLLM 0.26's two runners keep their graphs. Sizes are tokens."""

from collections import namedtuple
from enum import Enum
from types import SimpleNamespace

Desc = namedtuple("Desc", "cg_mode num_tokens num_reqs uniform_token_count")
Key = namedtuple("Key", "num_tokens num_reqs uniform")


class Mode(Enum):
    """A mode of graphs."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_AND_PIECEWISE = (2, 1)


class Backend:
    """An attention backend."""

    @staticmethod
    def get_name() -> str:
        return "SMALL_ATTN"


ATTENTION = [[SimpleNamespace(backend=Backend)]]


def whole(sizes, query_len, max_seqs):
    """Pairs of requests and tokens that have a whole graph."""
    rounded = {-(-size // query_len) * query_len for size in sizes}
    most = max(sizes, default=0)
    return sorted(
        (tokens // query_len, tokens)
        for tokens in rounded
        if tokens <= most and tokens // query_len <= max_seqs
    )


def manager(sizes, query_len, max_seqs, pieces):
    descs = [Desc(Mode.FULL, t, r, query_len) for r, t in whole(sizes, query_len, max_seqs)]
    held = {Mode.FULL: descs}
    if pieces:
        held[Mode.PIECEWISE] = [Desc(Mode.PIECEWISE, size, None, None) for size in sizes]
    return SimpleNamespace(graphs=dict.fromkeys(descs, "graph"), _capture_descs=held)


def runner_v2(sizes, k, max_seqs, is_faulty):
    """Runner V2: managers of the target and of the drafter. The fault drops later drafts' last."""
    target = manager(sizes, k + 1, max_seqs, pieces=True)
    drafter = None
    if k:
        rest = manager(sizes, 1, max_seqs, pieces=False)
        if is_faulty and rest.graphs:
            rest.graphs.popitem()
        drafter = SimpleNamespace(
            prefill_cudagraph_manager=manager(sizes, k + 1, max_seqs, pieces=True),
            decode_cudagraph_manager=rest,
        )
    return SimpleNamespace(cudagraph_manager=target, speculator=drafter, attn_groups=ATTENTION)


def dispatcher(full, pieces):
    return SimpleNamespace(cudagraph_keys={Mode.FULL: set(full), Mode.PIECEWISE: set(pieces)})


def runner_v1(sizes, k, max_seqs, is_faulty):
    """Runner V1: dispatchers. Its drafter has graphs in pieces alone."""
    full = [Key(t, r, True) for r, t in whole(sizes, k + 1, max_seqs)]
    pieces = [Key(size, None, False) for size in sizes]
    drafter = SimpleNamespace(cudagraph_dispatcher=dispatcher([], pieces)) if k else None
    return SimpleNamespace(
        cudagraph_dispatcher=dispatcher(full, pieces), drafter=drafter, attn_groups=ATTENTION
    )
