"""Resolve a request to options with nothing left to default, by device, ranks and model."""

from collections.abc import Sequence

from cgbench.errors import BadInputError, DeviceError
from cgbench.request.acceptance_lengths import GoldenLength
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.request.options import RunOptions
from cgbench.request.run_request import DecodeRequest
from cgbench.words import Scope

DEFAULT_ITERATIONS = {"cuda": 24, "cpu": 16}
DEFAULT_MAX_TIME_S = {"cuda": 30.0, "cpu": 10.0}
DEFAULT_MIN_TIME_S = 1.0
DEFAULT_PRECISION = 0.005

NO_GRAPHS_ON_CPU = "no graphs here: CUDA graphs need a CUDA device, so only scope eager is measured"

GOLDEN_BY_DEFAULT = (
    "random weights accept no draft: drafts are kept at {}, the mean acceptance length of {} "
    "({}), which --acceptance changes"
)

ASSUMED_OF_ALL = (
    "drafts are kept at {} whatever they are, so what --draft-vocab costs in acceptance is not in "
    "tokens a second"
)


def resolve(
    request: DecodeRequest, *, device_type: str, tp_size: int, golden: GoldenLength | None
) -> tuple[RunOptions, list[str]]:
    """Return checked options, and lines about them for the user.

    Plans are checked here too, so that a bad size costs no loading. ``device_type`` is cpu or cuda.
    ``golden`` is the length that a preset's drafts are kept at. Raise ``BadInputError``,
    ``DeviceError`` or ``PlanError`` for what cannot be run.
    """
    options = _options(request, device_type, tp_size, golden)
    on_cpu = device_type == "cpu"
    if on_cpu and options.cold_l2:
        raise DeviceError("--cold-l2: flushes a GPU's cache. There is none with --device cpu")
    if on_cpu and options.nvtx:
        raise DeviceError("--nvtx: ranges need --device cuda. On a CPU profile with torch's own")
    reduced = request.model.draft_vocab_flag
    of_head = reduced if request.model.head is None else "--head"
    if of_head is not None and not options.max_spec_tokens:
        raise BadInputError(f"{of_head}: --spec-tokens 0 runs no head. Drop one of the two")
    warnings = [f"k={k}: {text}" for k, plan in options.plans().items() for text in plan.warnings]
    notes = [NO_GRAPHS_ON_CPU] if on_cpu else warnings
    if request.workload.acceptance is None and golden:
        notes.append(_golden_words(golden, options.spec_tokens))
    if reduced is not None and options.acceptance.is_assumed:
        notes.append(ASSUMED_OF_ALL.format(options.acceptance))
    return options, notes


def _options(
    request: DecodeRequest, device_type: str, tp_size: int, golden: GoldenLength | None
) -> RunOptions:
    capture, workload, timing = request.capture, request.workload, request.timing
    spec_tokens = tuple(sorted({0, *capture.spec_tokens}))
    most, iterations = capture.max_num_seqs, timing.iterations
    max_time_s, min_time_s = timing.max_time_s, timing.min_time_s
    if max_time_s is None:
        max_time_s = DEFAULT_MAX_TIME_S[device_type]
    if min_time_s is None:
        min_time_s = min(DEFAULT_MIN_TIME_S, max_time_s)
    return RunOptions(
        spec_tokens=spec_tokens,
        batch_sizes=workload.batch_sizes,
        scopes=(Scope.EAGER,) if device_type == "cpu" else capture.scopes,
        max_batch_size=max(workload.batch_sizes) if most is None else most,
        policy=capture.policy,
        capture_sizes=capture.capture_sizes,
        capture_unit=capture.capture_unit,
        role=capture.role,
        max_num_batched_tokens=capture.max_num_batched_tokens,
        max_new_tokens=workload.max_new_tokens,
        context_len=workload.context_len,
        iterations=DEFAULT_ITERATIONS[device_type] if iterations is None else iterations,
        acceptance=_acceptance(workload.acceptance, golden, spec_tokens),
        ignore_eos=workload.ignore_eos,
        seed=request.seed,
        precision=DEFAULT_PRECISION if timing.precision is None else timing.precision,
        min_time_s=min_time_s,
        max_time_s=max_time_s,
        cold_l2=timing.cold_l2,
        compile=capture.compile,
        nvtx=timing.nvtx,
        tp_size=tp_size,
    )


def _acceptance(
    asked: str | None, golden: GoldenLength | None, spec_tokens: tuple[int, ...]
) -> AcceptanceSetting:
    text = "greedy" if asked is None else asked
    return AcceptanceSetting.parse(text if golden is None else str(golden), spec_tokens)


def _golden_words(golden: GoldenLength, spec_tokens: Sequence[int]) -> str:
    lengths = ", ".join(f"{golden.at(k)} at k = {k}" for k in spec_tokens if k)
    return GOLDEN_BY_DEFAULT.format(golden, golden.row.model, lengths)
