"""The drift script, on wheels made here: stand-ins for engines, with rules in other words."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import drift
from cgbench.planning.policies import vllm
from engine_rules import sglang_rule, vllm_rule

VLLM_CONFIG = """
class VllmConfig:
    def _set_cudagraph_sizes(self):
        from vllm.platforms import current_platform

        config, budget = self.compilation_config, self.scheduler_config.max_num_batched_tokens
        most, width = self.scheduler_config.max_num_seqs, self.uniform_decode_query_len
        top, own = config.max_cudagraph_capture_size, set()

        def steps(end):
            return {n for n in [1, 2, 4, *range(8, 256, 8), *range(256, end + 1, 16)] if n <= end}

        if top is None:
            top = min(2 * most * width, 1024 if current_platform.is_device_capability_family(100)
                      else 512)
            tiers = {width: most}
            if width > 1 and self.speculative_config.uses_dynamic_speculative_decoding():
                from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

                by_size = build_dynamic_sd_schedule_lookup(
                    self.speculative_config.num_speculative_tokens_per_batch_size,
                    vllm_max_batch_size=most,
                    vllm_num_speculative_tokens=self.num_speculative_tokens,
                )
                tiers = {k + 1: n for n, k in enumerate(by_size) if n}
            for each, widest in tiers.items():
                counts = (steps(widest) | {widest}) if width > 1 else {widest}
                own |= {n * each for n in counts if n * each <= top}
        top = min(top, budget)
        if config.cudagraph_capture_sizes is not None:
            sizes = sorted({n for n in config.cudagraph_capture_sizes if n <= budget})
        else:
            sizes = steps(top) | {n for n in own if n <= budget}
            if self.performance_mode == "interactivity":
                sizes |= set(range(1, min(top, 32) + 1))
            if budget <= top:
                sizes.add(budget)
            sizes = sorted(sizes)
        config.cudagraph_capture_sizes = sizes
        config.max_cudagraph_capture_size = sizes[-1] if sizes else 0
        logger.info(CUDAGraphMode.NONE)
"""

VLLM_GRAPHS = """
@dataclass(frozen=True)
class BatchExecutionDescriptor:
    num_tokens: int
    num_reqs: int


class CudaGraphManager:
    def _init_candidates(self):
        sizes = self.compilation_config.cudagraph_capture_sizes
        widths = {self.decode_query_len}
        spec = self.vllm_config.speculative_config
        if spec and spec.uses_dynamic_speculative_decoding() and self.decode_query_len > 1:
            widths = {k + 1 for k in build_dynamic_sd_schedule_lookup(
                spec.num_speculative_tokens_per_batch_size,
                vllm_max_batch_size=self.max_num_reqs,
                vllm_num_speculative_tokens=self.vllm_config.num_speculative_tokens)[1:]}
        found = {
            BatchExecutionDescriptor(round_up(n, width), round_up(n, width) // width)
            for width in widths for n in sizes
            if round_up(n, width) <= max(sizes) and round_up(n, width) <= width * self.max_num_reqs
        }
        self._capture_descs[CUDAGraphMode.FULL] = list(found)
"""

VLLM_SCHEDULE = """
def validate_and_normalize_dynamic_sd_schedule(ranges):
    return sorted(ranges)


def build_dynamic_sd_schedule_lookup(ranges, vllm_max_batch_size, vllm_num_speculative_tokens):
    by_size, last = [0], 0
    ranges = validate_and_normalize_dynamic_sd_schedule(ranges)
    for n in range(1, vllm_max_batch_size + 1):
        last = next((k for first, end, k in ranges if first <= n <= end), last)
        by_size.append(min(last, vllm_num_speculative_tokens))
    return by_size
"""

SGLANG_MEMORY = """
def handle_gpu_memory_settings(args):
    from sglang.srt.arg_groups.cuda_graph_hook import generate_decode_cuda_graph_batch_sizes

    gib, decode = get_device_memory_capacity(args.device) / 1024, args.cuda_graph_config.decode
    if decode.max_bs is None:
        is_wide = args.tp_size >= 4
        table = [(20, 8, 8), (35, 48, 160), (60, 32, 160), (160, 256, 512), (9999, 512, 512)]
        decode.max_bs = next((b if is_wide else a) for end, a, b in table if gib < end)
        decode.max_bs = min(decode.max_bs, args.max_running_requests)
    if decode.bs is None:
        decode.bs = generate_decode_cuda_graph_batch_sizes(args, decode.max_bs)
"""

SGLANG_LIST = """
def generate_prefill_cuda_graph_batch_sizes(most):
    return []


def generate_cpu_graph_batch_sizes(args):
    return []


def generate_decode_cuda_graph_batch_sizes(args, most):
    if args.disable_cuda_graph_padding:
        return list(range(1, most + 1))
    if args.speculative_algorithm:
        steps = [*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8),
                 *range(272, most + 1, 16)]
    else:
        steps = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16)]
        steps += range(512, most + 1, 32)
    return sorted({n for n in steps if n <= most} | {most})
"""

SGLANG_RUNNER = """
def get_batch_sizes_to_capture(runner, width=1):
    sizes, unit = set(get_exec().graph.cuda_graph_config.decode.bs), 1
    unit = get_cuda_graph_batch_size_alignment()
    most = ceil_align(runner.req_to_token_pool.size, unit)
    if max(sizes) > most:
        sizes.add(most)
    sizes = sorted(n for n in sizes if n <= most and n * width % unit == 0)
    assert sizes
    return sizes, []
"""

SGLANG_COMMON = """
def get_cuda_graph_batch_size_alignment():
    return get_parallel().attn_tp_size if require_gathered_buffer() else 1
"""

WHEELS = {
    "vllm": dict(zip(vllm_rule.MEMBERS, (VLLM_CONFIG, VLLM_GRAPHS, VLLM_SCHEDULE), strict=True)),
    "sglang": dict(
        zip(
            sglang_rule.MEMBERS,
            (SGLANG_MEMORY, SGLANG_LIST, SGLANG_RUNNER, SGLANG_COMMON),
            strict=True,
        )
    ),
}
POLICIES = {"vllm": "vllm-0.33", "sglang": "sglang-0.5.23"}


def wheel(folder: Path, engine: str, **changed: str) -> str:
    file = folder / f"{engine}.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in WHEELS[engine].items():
            for old, new in changed.items():
                text = text.replace(old, new)
            archive.writestr(name, text)
    return str(file)


def run(engine: str, file: str, plans: int = 1500) -> int:
    words = [engine, "1.2.3", "--policy", POLICIES[engine], "--plans", str(plans), "--wheel", file]
    return drift.main(words)


@pytest.mark.parametrize("engine", WHEELS)
def test_a_release_with_the_same_rule(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(engine, wheel(tmp_path, engine)) == 0
    assert (
        f"{engine} 1.2.3 against {POLICIES[engine]}: 1500 plans, 0 diff" in capsys.readouterr().out
    )


def test_the_old_rule_without_drafts_is_reported_with_the_smallest_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to 0.30 max_num_seqs was not added at k = 0. 3 requests are the first off the grid."""
    old = replace(vllm._RELEASES["vllm-0.33"], plain_size=False)
    monkeypatch.setitem(vllm._RELEASES, "vllm-0.33", old)
    assert run("vllm", wheel(tmp_path, "vllm")) == 1
    out = capsys.readouterr().out
    assert "smallest: VllmCase(max_num_seqs=3, spec_tokens=0" in out
    assert "listed=(1, 2, 3, 4)" in out and "listed=(1, 2, 4)" in out


def test_a_changed_grid_is_reported(tmp_path: Path) -> None:
    changed = {"range(8, 256, 8)": "range(8, 256, 4)"}
    file = tmp_path / "vllm.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in WHEELS["vllm"].items():
            archive.writestr(name, text.replace(*next(iter(changed.items()))))
    assert run("vllm", str(file), 300) == 1


def test_a_release_that_moved_its_function_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = wheel(tmp_path, "vllm", _set_cudagraph_sizes="_other_name")
    assert run("vllm", file) == 3
    assert "VllmConfig._set_cudagraph_sizes: the release has no such" in capsys.readouterr().err


def test_a_wheel_without_the_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "empty.whl"
    with zipfile.ZipFile(file, "w"):
        pass
    assert run("sglang", str(file)) == 3
    assert "memory_hook.py" in capsys.readouterr().err


def test_both_engines_are_asked_thousands_of_times() -> None:
    for rule in (vllm_rule, sglang_rule):
        cases = list(rule.cases(drift.DEFAULT_COUNT))
        assert len(cases) == drift.DEFAULT_COUNT >= 5_000
        assert len(set(cases)) > 4_000
