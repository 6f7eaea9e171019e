"""The floor against arithmetic by hand, and the device's limits against sense."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from cgbench.floor.account import FloorLine
from cgbench.floor.device_limits import device_limits, read_bandwidth
from cgbench.floor.least_time import Batch, Floor, attention_flops, expected_experts, keys_read
from cgbench.floor.rates import DeviceLimits
from cgbench.floor.work import AttentionShape, ModelWork, Product, model_work
from cgbench.models.heads.families import MIMO
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.quantised.kv_format import KvFormat
from cgbench.models.skeleton import make_skeleton
from cgbench.request.choices import KvDtype
from cgbench.words import Quant, Stage
from tests.support.interpreter import run_interpreted
from tests.support.tiny import MORE_CONFIGS

READ = 4.3e12
UNBOUND = 1e30
"""A rate so high that only the other one counts."""


def preset_floor(name: str, limits: DeviceLimits) -> Floor:
    return Floor(preset_work(name), limits, itemsize=2)


@cache
def preset_work(name: str) -> ModelWork:
    request = Loading(f"preset:{name}", None, True, torch.device("cpu"), torch.bfloat16)
    return model_work(plan_loading(request).skeleton)


@pytest.fixture(scope="module")
def mimo() -> Floor:
    return preset_floor("mimo-7b", DeviceLimits(READ, UNBOUND))


def test_mimo_7b_at_batch_1_is_its_bytes_over_the_bandwidth(mimo: Floor) -> None:
    """From the config's numbers: hidden 4096, 32 and 8 heads of 128, FFN 11008, 36 layers."""
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 11008
    lm_head = 4096 * 151680
    proj = 2 * 4096 * 4096
    verify = 36 * layer + lm_head
    drafts = 3 * (proj + layer + lm_head)
    kv_row = 2 * 8 * 128
    kv = 36 * kv_row * (1024 + 4) + kv_row * (1024 + 4) + kv_row * (1025 + 1) + kv_row * (1026 + 1)
    embeddings = 4096 * (4 + 4 + 1 + 1)
    by_hand = 2 * (verify + drafts + kv + embeddings) / READ
    assert mimo.seconds(Batch(1, 3, 1024)) == pytest.approx(by_hand, rel=1e-9)
    # 14.0 GB for verify, 0.42 GB of head and 1.24 GB of lm_head for each of three drafts.
    assert by_hand * 1e3 == pytest.approx(4.455, abs=0.001)


def test_no_drafts_are_the_target_alone(mimo: Floor) -> None:
    account = mimo.account(Batch(1, 0, 1024))
    assert {str(line.stage) for line in account} == {"verify"}
    weights = sum(line.num_bytes for line in account if line.what.startswith(("self", "mlp", "lm")))
    assert weights == 2 * (36 * 177_209_344 + 621_281_280)


def test_each_module_is_read_once_and_the_last_again_past_them(mimo: Floor) -> None:
    """Three modules at k = 4: draft 1 has 5 rows, drafts 2 and 3 have 6 and 7, draft 4 has one."""
    floor = replace(mimo, work=replace(mimo.work, modules=mimo.work.modules * 3))
    lines = {(str(line.stage), line.what): line for line in floor.account(Batch(2, 4, 100))}
    one, rest = lines["draft_1", "mlp.up_proj"], lines["draft_2..4", "mlp.up_proj"]
    matrix = 4096 * 11008
    assert (one.count, one.num_bytes, one.flops) == (1, 2 * matrix, 2 * 2 * 5 * matrix)
    assert (rest.count, rest.num_bytes) == (3, 3 * 2 * matrix)
    assert rest.flops == 2 * 2 * (6 + 7 + 1) * matrix
    # A module's rows lie over what it computed before: 99, 98 and 99 rows beside their own.
    row = 2 * 2 * 8 * 128 * 2
    assert lines["draft_1", "attention"].num_bytes == row * (100 + 5)
    assert lines["draft_2..4", "attention"].num_bytes == row * (99 + 6 + 98 + 7 + 101 + 1)
    assert lines["draft_2..4", "embedding rows"].num_bytes == 2 * (6 + 7 + 1) * 2 * 4096


def test_lm_head_is_read_by_verify_and_by_every_draft_step(mimo: Floor) -> None:
    account = mimo.account(Batch(8, 3, 1024))
    counts = {str(line.stage): line.count for line in account if line.what == "lm_head"}
    assert counts == {"verify": 1, "draft_1": 1, "draft_2..3": 2}
    flops = {str(line.stage): line.flops for line in account if line.what == "lm_head"}
    one_row = 2 * 4096 * 151680
    assert flops == {"verify": 32 * one_row, "draft_1": 8 * one_row, "draft_2..3": 16 * one_row}


def test_at_a_large_batch_operations_bind() -> None:
    """256 requests of 4 tokens: 1,024 rows a weight, over 184 operations a byte of an H200."""
    floor = preset_floor("mimo-7b", DeviceLimits(READ, 7.9e14))
    lines = {(str(line.stage), line.what): line for line in floor.account(Batch(256, 3, 1024))}
    assert lines["verify", "mlp.down_proj"].bound_by == "operations"
    down = 36 * 2 * 1024 * 4096 * 11008
    assert lines["verify", "mlp.down_proj"].seconds == pytest.approx(down / 7.9e14)
    assert lines["verify", "attention"].bound_by == "bytes"
    small = floor.account(Batch(1, 3, 1024))
    assert {line.bound_by for line in small} == {"bytes"}


@pytest.mark.parametrize(
    ("quant", "fp8_rate", "rate"),
    [
        (Quant.W8A16, 1.6e15, 7.9e14),
        (Quant.W8A8, 1.6e15, 1.6e15),
        # As on a CPU, which multiplies the values.
        (Quant.W8A8, None, 7.9e14),
    ],
)
def test_the_rate_is_that_of_the_numeric_mode(
    quant: Quant, fp8_rate: float | None, rate: float
) -> None:
    """Of FP8 weights. lm_head is bfloat16 in either mode."""
    limits = DeviceLimits(READ, 7.9e14, fp8_flops_per_s=fp8_rate)
    floor = replace(preset_floor("mimo-7b-fp8", limits), quant=quant)
    lines = {(str(line.stage), line.what): line for line in floor.account(Batch(512, 3, 1024))}
    down = 36 * 2 * 2048 * 4096 * 11008
    assert lines["verify", "mlp.down_proj"].seconds == pytest.approx(down / rate)
    lm_head = 2 * 2048 * 4096 * 151680
    assert lines["verify", "lm_head"].seconds == pytest.approx(lm_head / 7.9e14)


def test_a_matrix_that_is_absorbed_has_no_quantised_rows() -> None:
    limits = DeviceLimits(1e30, 1.0, fp8_flops_per_s=2.0)
    floor = replace(preset_floor("deepseek-v3-6l-fp8", limits), quant=Quant.W8A8)
    for line in floor.account(Batch(8, 0, 1024)):
        is_fp8 = line.what not in ("lm_head", "self_attn.kv_b_proj", "latent attention", "mlp.gate")
        if line.flops:
            assert line.seconds == pytest.approx(line.flops / (2.0 if is_fp8 else 1.0)), line.what


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp8_products_are_faster_than_those_of_bfloat16() -> None:
    device = torch.device("cuda")
    limits = device_limits(device, torch.bfloat16, with_fp8=True)
    assert limits.fp8_flops_per_s is not None
    assert 1.2 < limits.fp8_flops_per_s / limits.flops_per_s < 2.5


def test_attention_reads_the_live_rows_of_every_request_or_its_window() -> None:
    floor = preset_floor("gemma-3-1b", DeviceLimits(READ, UNBOUND))
    lines = {line.what: line for line in floor.account(Batch(8, 0, 2000))}
    row = 2 * 2 * 256  # keys and values, bfloat16, one head of 256
    assert lines["attention"].num_bytes == 4 * 8 * 2001 * row
    assert lines["attention, window 512"].num_bytes == 22 * 8 * 512 * row
    assert lines["attention, window 512"].flops == 22 * 8 * 4 * 512 * 4 * 256


def test_fp8_keys_and_values_are_read_as_they_are_stored() -> None:
    """MiMo-7B: 36 layers of eight heads of 128, and two scales a head."""
    request = Loading("preset:mimo-7b", None, True, torch.device("cpu"), torch.bfloat16)
    plan = plan_loading(replace(request, kv_dtype=KvDtype.FP8))
    work = model_work(plan.skeleton, plan.kv_format)
    batch = Batch(batch_size=64, spec_tokens=3, context_len=8192)
    lines = Floor(work, DeviceLimits(READ, UNBOUND), itemsize=2).account(batch)
    (verify,) = [line for line in lines if line.stage == Stage.VERIFY and line.what == "attention"]
    assert verify.num_bytes == 36 * 64 * 8196 * 8 * (2 * 128 + 2 * 4)
    stated = KvFormat(True, dict.fromkeys(range(36), (1.0, 1.0)))
    of_target = model_work(plan.skeleton, stated).target.attentions
    assert {each.row_bytes(2) for each in of_target} == {8 * 2 * 128}
    assert {each.row_bytes(2) for each in model_work(plan.skeleton).target.attentions} == {4096}


def test_queries_of_one_request_share_the_rows_of_their_windows() -> None:
    shape = AttentionShape(4, 1, 8, 8, 10)
    assert keys_read(shape, 100, 4) == 13  # 87..99
    assert keys_read(shape, 6, 4) == 6


def test_no_operation_is_counted_on_keys_that_a_query_does_not_see() -> None:
    pair = 2 * 4 * (8 + 8)  # query heads, key and value size
    assert attention_flops(AttentionShape(4, 1, 8, 8, None), 6, 4) == (6 + 5 + 4 + 3) * pair
    assert attention_flops(AttentionShape(4, 1, 8, 8, 5), 6, 4) == (5 + 5 + 4 + 3) * pair


def test_experts_touched_grow_with_the_tokens_and_end_at_all() -> None:
    product = Product("experts", 10, 8, 2)
    assert expected_experts(product, 1) == pytest.approx(2)
    # Two tokens: of the first's two, each is missed by the second with 3/4.
    assert expected_experts(product, 2) == pytest.approx(2 + 6 * 2 / 8)
    assert expected_experts(product, 1000) == pytest.approx(8)
    assert expected_experts(Product("dense", 10, 1, 1), 5) == 1


def test_experts_bytes_and_operations() -> None:
    work = model_work(make_skeleton(MORE_CONFIGS["qwen3_moe"], MIMO))
    floor = Floor(work, DeviceLimits(1.0, UNBOUND), itemsize=2)
    lines = {line.what: line for line in floor.account(Batch(1, 0, 4))}
    assert lines["mlp.experts.down_proj"].num_bytes == pytest.approx(2 * 2 * 2 * 32 * 16)
    assert lines["mlp.experts.down_proj"].flops == 2 * 2 * 2 * 32 * 16
    assert lines["mlp.gate"].num_bytes == 2 * 2 * 8 * 32


def test_a_hybrid_reads_the_state_of_every_request_once() -> None:
    """Qwen3.5-0.8B: 18 layers of 16 heads of 128 x 128, and 3 rows of its convolution's inputs."""
    floor = preset_floor("qwen3.5-0.8b", DeviceLimits(READ, UNBOUND))
    account = floor.account(Batch(64, 3, 1024))
    (line,) = [line for line in account if line.what == "recurrent state"]
    matrix, rows = 16 * 128 * 128, 3 * (2 * 16 * 128 + 16 * 128)
    assert (str(line.stage), line.count) == ("verify", 18)
    assert line.num_bytes == 64 * 18 * (4 * matrix + 2 * rows)
    assert line.flops == 64 * 4 * 18 * 6 * matrix
    assert floor.seconds(Batch(64, 3, 1024)) == pytest.approx(sum(each.seconds for each in account))


def latent_line(batch: Batch, limits: DeviceLimits) -> FloorLine:
    floor = preset_floor("deepseek-v3-6l", limits)
    found = [line for line in floor.account(batch) if line.what == "latent attention"]
    (line,) = [each for each in found if str(each.stage) == "verify"]
    return line


def test_latents_are_read_once_a_request_whatever_the_heads() -> None:
    """DeepSeek-V3: 576 values of two bytes a token and layer, 6 layers, 128 heads."""
    line = latent_line(Batch(8, 3, 1024), DeviceLimits(READ, UNBOUND))
    assert (line.count, line.bound_by) == (6, "bytes")
    assert line.num_bytes == 6 * 8 * (1024 + 4) * 576 * 2


def test_128_heads_and_four_rows_are_bound_by_operations() -> None:
    """Each of 512 rows multiplies 576 + 512 columns of a latent that is read once: 967 operations
    a byte, where the device has 184. Queries see 1025 to 1028 rows."""
    line = latent_line(Batch(64, 3, 1024), DeviceLimits(READ, 7.9e14))
    by_hand = 6 * 64 * 2 * 128 * (1025 + 1026 + 1027 + 1028) * (576 + 512)
    assert line.flops == by_hand
    assert line.bound_by == "operations"
    assert line.seconds == pytest.approx(by_hand / 7.9e14)
    assert line.flops / line.num_bytes == pytest.approx(128 * 4 * 1088 / 576, rel=2e-3)
    assert latent_line(Batch(64, 0, 1024), DeviceLimits(READ, 7.9e14)).bound_by == "operations"


def test_w_uk_and_w_uv_are_read_once_a_forward() -> None:
    floor = preset_floor("deepseek-v3-6l", DeviceLimits(READ, UNBOUND))
    lines = {(str(line.stage), line.what): line for line in floor.account(Batch(8, 3, 1024))}
    one = 128 * (128 + 128) * 512
    expansion = lines["verify", "self_attn.kv_b_proj"]
    assert (expansion.count, expansion.num_bytes) == (6, 6 * one * 2)
    assert expansion.flops == 6 * 2 * 32 * one
    assert lines["draft_2..3", "self_attn.kv_b_proj"].num_bytes == 2 * one * 2


def test_the_limits_of_this_machine_are_measured_once_and_make_sense() -> None:
    device = torch.device("cpu")
    limits = device_limits(device, torch.float32)
    assert device_limits(device, torch.float32) is limits
    assert limits.read_bytes_per_s == read_bandwidth(device)
    assert 1e8 < limits.read_bytes_per_s < 1e13
    assert 1e8 < limits.flops_per_s < 1e15


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reading_is_faster_than_copying() -> None:
    """A copy reads and writes: its bytes a second, both counted, bound reading from below."""
    device = torch.device("cuda", torch.cuda.current_device())
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    sink = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        start.record()
        sink.copy_(source)
        end.record()
    end.synchronize()
    copied = 2 * source.nbytes / (start.elapsed_time(end) / 1e3)
    assert read_bandwidth(device) > 0.98 * copied


def check_read(device: str) -> None:
    from cgbench.kernels.triton_read import BLOCK, STEPS, read

    words = torch.randint(-100, 100, (3 * BLOCK * STEPS,), dtype=torch.int32, device=device)
    expected = words.view(3, -1).sum(1, dtype=torch.int32)
    assert torch.equal(read(words), expected)


def test_the_kernel_that_only_reads_reads_every_word() -> None:
    pytest.importorskip("triton")
    run_interpreted(f"from {__name__} import check_read; check_read('cpu')")


@pytest.mark.gpu
def test_the_kernel_that_only_reads_reads_every_word_on_the_device() -> None:
    check_read("cuda")
