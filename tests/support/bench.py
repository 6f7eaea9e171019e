"""A bench of the bigram checkpoint."""

from pathlib import Path

from cgbench.engine.backends import resolve_backend
from cgbench.measure.bench import Bench, build_bench
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.workload.load import Workload
from tests.support.bigram import VOCAB
from tests.support.options import make_options
from tests.support.tiny import load_tiny, random_prompts

BATCH = 2
CONTEXT_LEN = 7
MAX_NEW_TOKENS = 24
KS = (0, 1, 3)
PROMPTS = tuple(map(tuple, random_prompts(5, vocab=VOCAB)))


ITERATIONS = 12


def make_bench(
    folder: Path,
    iterations: int = ITERATIONS,
    batch_size: int = BATCH,
    ranks: Ranks = ALONE,
) -> Bench:
    options = make_options(
        spec_tokens=KS,
        batch_sizes=(batch_size,),
        max_batch_size=batch_size,
        max_new_tokens=MAX_NEW_TOKENS,
        context_len=CONTEXT_LEN,
        iterations=iterations,
    )
    model, workload = load_tiny(folder, ranks=ranks), Workload("a test", PROMPTS)
    return build_bench(model, options, workload, resolve_backend("sdpa", model.target.device))
