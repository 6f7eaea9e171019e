"""Ranks under gloo share gated delta nets by heads, and hold copies of scarce key-value heads."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.errors import BadInputError
from cgbench.models.division.planned_splits import check_heads, delta_net_splits
from cgbench.models.heads.families import QWEN
from cgbench.models.support import auto_class_for
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import hybrid_jobs
from tests.support.hybrid_jobs import (
    FIVE_AND_ONE,
    MAX_NEW_TOKENS,
    ONE_AND_FIVE,
    PROMPTS,
    VOCABULARY,
    Divided,
)
from tests.support.tiny import (
    CONFIGS,
    HYBRID_CONFIGS,
    MORE_CONFIGS,
    greedy_reference,
    make_checkpoint,
    reference_model,
)

MIXTURE, DENSE, SCARCE = "qwen3_next-hybrid", "qwen3_5", "qwen3_5_moe"
"""The last has one KV head."""
CASES = {MIXTURE: ONE_AND_FIVE, DENSE: FIVE_AND_ONE, SCARCE: ONE_AND_FIVE}
SHORT: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
FOUR: dict[str, dict[str, Any]] = {
    MIXTURE: SHORT | {"linear_num_key_heads": 4, "linear_num_value_heads": 8},
}
"""Two KV heads on four ranks, beside a key head of the delta nets on each."""
AT_FOUR = dict.fromkeys(FOUR, ((3, 3),))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hybrids")
    shapes = {MIXTURE: SHORT, DENSE: SHORT, SCARCE: SHORT | {"num_key_value_heads": 1}}
    return {kind: make_folder(root / kind, kind, shape) for kind, shape in shapes.items()}


def make_folder(folder: Path, kind: str, shape: dict[str, Any]) -> Path:
    base = (MORE_CONFIGS | CONFIGS | HYBRID_CONFIGS)[kind]
    shape = shape | {"vocab_size": VOCABULARY}
    has_text = base.get_text_config() is not base
    text = {"text_config": base.get_text_config().to_dict() | shape}
    return make_checkpoint(folder, kind, family=QWEN, seed=3, **(text if has_text else shape))


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, Divided]:
    return hybrid_jobs.tell_divided(folders, None, CASES, ranks=ALONE)[0][0]


@pytest.fixture(scope="module")
def ranks(folders: dict[str, Path]) -> list[tuple[dict[str, Divided], hybrid_jobs.Decoded | None]]:
    return run_on_ranks(2, "cpu", hybrid_jobs.tell_divided, folders, DENSE, CASES)


Told = list[tuple[dict[str, Divided], hybrid_jobs.Decoded | None]]


@pytest.mark.parametrize("kind", [MIXTURE, DENSE, SCARCE])
def test_two_ranks_decode_plain_greedy_tokens(
    kind: str, folders: dict[str, Path], ranks: Told
) -> None:
    """Drafts are rejected on the way, so every rank rolls its heads' state back."""
    expected = greedy_reference(reference_model(folders[kind]), PROMPTS, MAX_NEW_TOKENS)
    for told, _ in ranks:
        for (_, size), (tokens, accepted) in told[kind].decoded.items():
            assert tokens == expected[:size]
            if size == 5:
                assert min(map(min, accepted)) == 0 < max(map(max, accepted))


@pytest.mark.parametrize("kind", [MIXTURE, DENSE, SCARCE])
def test_two_ranks_are_one_process(kind: str, alone: dict[str, Divided], ranks: Told) -> None:
    """Acceptance and weights too: lossless decoding hides a wrong draft."""
    for told, _ in ranks:
        assert told[kind].decoded == alone[kind].decoded
        assert told[kind].fingerprint == alone[kind].fingerprint


def test_transformers_own_attention_reads_copied_heads(
    folders: dict[str, Path], ranks: Told
) -> None:
    """It is what the audit compares with."""
    expected = greedy_reference(reference_model(folders[SCARCE]), PROMPTS[1:2], MAX_NEW_TOKENS)
    for told, _ in ranks:
        assert told[DENSE].plain is None
        tokens, noise = told[SCARCE].plain or ([], 1.0)
        assert tokens == expected[0] and noise < 1e-4


def test_compiled_layers_decode_alike(alone: dict[str, Divided], ranks: Told) -> None:
    for _, traced in ranks:
        assert traced == alone[DENSE].decoded[1, 5]


@pytest.mark.parametrize("kind", [MIXTURE, DENSE, SCARCE])
def test_each_rank_keeps_half_of_the_state(
    kind: str, alone: dict[str, Divided], ranks: Told
) -> None:
    whole = alone[kind]
    assert whole.kv_heads == {1 if kind == SCARCE else 2}
    for told, _ in ranks:
        own = told[kind]
        assert own.kv_heads == {1}
        assert 2 * own.state_bytes == whole.state_bytes > 0
        assert own.counted_states == own.state_bytes
        lengths = 2 * torch.long.itemsize
        assert 2 * (own.cache_bytes - lengths) == whole.cache_bytes - lengths


@pytest.mark.parametrize("kind", [MIXTURE, DENSE, SCARCE])
def test_the_floor_counts_what_a_rank_holds(
    kind: str, alone: dict[str, Divided], ranks: Told
) -> None:
    for told, _ in ranks:
        assert told[kind].counted == told[kind].held
        assert told[kind].counted.target < alone[kind].counted.target


def test_four_ranks_hold_each_kv_head_twice(tmp_path: Path) -> None:
    folders = {kind: make_folder(tmp_path / kind, kind, shape) for kind, shape in FOUR.items()}
    (alone, _), *_ = hybrid_jobs.tell_divided(folders, None, AT_FOUR, ranks=ALONE)
    told = run_on_ranks(4, "cpu", hybrid_jobs.tell_divided, folders, None, AT_FOUR)
    assert len(told) == 4
    for kind, folder in folders.items():
        expected = greedy_reference(reference_model(folder), PROMPTS[:3], MAX_NEW_TOKENS)
        assert alone[kind].kv_heads == {2}
        for own, _ in told:
            assert own[kind].decoded[3, 3] == alone[kind].decoded[3, 3]
            assert own[kind].decoded[3, 3][0] == expected
            assert own[kind].fingerprint == alone[kind].fingerprint
            tokens, noise = own[kind].plain or ([], 1.0)
            assert tokens == expected[1] and noise < 1e-4
            assert own[kind].kv_heads == {1} and own[kind].counted == own[kind].held
            assert 4 * own[kind].state_bytes == alone[kind].state_bytes


@pytest.mark.parametrize("kind", HYBRID_CONFIGS)
def test_delta_nets_that_the_ranks_do_not_divide_are_refused(kind: str) -> None:
    """Four ranks divide the rows of two key heads, and no head may be cut."""
    config = HYBRID_CONFIGS[kind]
    with torch.device("meta"):
        model = auto_class_for(config).from_config(config)
    with pytest.raises(
        BadInputError, match="--tp 4: does not divide the 2 key heads of the linear-attention"
    ):
        delta_net_splits(model, 4)


@pytest.mark.parametrize(
    ("num_ranks", "kv_heads", "words"),
    [
        (2, 3, "--tp 2: does not divide the 3 key-value heads of Qwen3NextForCausalLM, nor"),
        (4, 3, "--tp 4: does not divide the 3 key-value heads"),
        (8, 2, "--tp 8: does not divide the 12 attention heads"),
        (4, 2, None),
        (4, 1, None),
    ],
)
def test_key_value_heads_are_divided_or_copied(
    num_ranks: int, kv_heads: int, words: str | None
) -> None:
    config = HYBRID_CONFIGS[MIXTURE]
    if words is None:
        check_heads(config, num_ranks, {2: 12}, {2: kv_heads})
        return
    with pytest.raises(BadInputError, match=words):
        check_heads(config, num_ranks, {2: 12}, {2: kv_heads})
