"""Balanced routing under the engine: tokens do not depend on k, batch, rows or compilation."""

import pytest
import torch
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from cgbench.checks.reference import Plain
from cgbench.cli.app import app
from cgbench.compile.layers import compile_forwards
from cgbench.engine.runner import EagerRunner
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.words import Routing
from tests.support.presets import MIXTURES, shrink_presets
from tests.support.tiny import decode_prompts, make_speculator, make_state, random_prompts
from tests.support.tracing import traced_layers

PROMPTS = random_prompts(5, vocab=128)
NUM_TOKENS = 7


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_presets(monkeypatch)


def load(name: str, routing: Routing = Routing.BALANCED) -> LoadedModel:
    where = torch.device("cpu"), torch.float32
    return load_model(Loading(f"preset:{name}", None, True, *where, routing=routing))


def decoded(model: LoadedModel, spec_tokens: int, prompts: list[list[int]]) -> list[list[int]]:
    spec = make_speculator(model, max_batch_size=len(prompts), room=64)
    state = make_state(spec, spec_tokens, len(prompts), [3, 50, 90])
    return decode_prompts(spec, EagerRunner(spec, state), prompts, NUM_TOKENS).token_ids


@pytest.mark.parametrize("name", MIXTURES)
def test_tokens_are_plain_greedy_decodings(name: str) -> None:
    """transformers' own generate, a request at a time, is routed by the same function."""
    model = load(name)
    plain = Plain(model.target, [tuple(prompt) for prompt in PROMPTS])
    expected = [plain.tokens(tuple(prompt), NUM_TOKENS) for prompt in PROMPTS]
    cut = [tokens[: end_of(tokens)] for tokens in expected]
    assert decoded(model, 0, PROMPTS) == cut
    assert decoded(model, 3, PROMPTS) == cut
    assert decoded(model, 2, PROMPTS[::-1]) == cut[::-1]
    assert decoded(model, 1, PROMPTS[2:3]) == cut[2:3]


def end_of(tokens: list[int]) -> int:
    ends = [i + 1 for i, token in enumerate(tokens) if token in (3, 50, 90)]
    return ends[0] if ends else len(tokens)


def test_routing_changes_what_is_computed() -> None:
    balanced, own = load("qwen3-30b-a3b"), load("qwen3-30b-a3b", Routing.MODEL)
    states = [Plain(model.target, ()).states(PROMPTS[0]) for model in (balanced, own)]
    assert not torch.allclose(*states)


def traced_forms(name: str, routing: Routing, expected: list[list[int]]) -> int:
    """How many graphs are traced for a model anew, whose tokens are ``expected``."""
    counters.clear()
    model = load(name, routing)
    compile_forwards(model.target, model.head)
    assert decoded(model, 1, PROMPTS[:3]) == expected
    return counters["stats"]["unique_graphs"]


def expected_by_routing(name: str) -> dict[Routing, list[list[int]]]:
    found = {routing: decoded(load(name, routing), 1, PROMPTS[:3]) for routing in Routing}
    assert found[Routing.MODEL] != found[Routing.BALANCED]
    return found


def test_a_form_made_for_one_routing_serves_no_other() -> None:
    """Both models in one process, whose compiled layers share their code. What does not route is
    traced once for both, and nothing is traced twice. Alone, the drawn experts have as many forms
    as the model's own. It is a hybrid, whose layers have two forms of mixer."""
    name = "qwen3.5-35b-a3b"
    expected = expected_by_routing(name)
    torch._dynamo.reset()
    with traced_layers():
        own, drawn, again = (
            traced_forms(name, routing, expected[routing])
            for routing in (Routing.MODEL, Routing.BALANCED, Routing.MODEL)
        )
        torch._dynamo.reset()
        alone = traced_forms(name, Routing.BALANCED, expected[Routing.BALANCED])
    assert alone == own > drawn > again == 0


OWN_ROUTER_AUDITED = ("ernie-4.5-21b-a3b", "deepseek-v3-6l", "qwen3.5-35b-a3b")
"""Presets of kinds that tests/checks/test_audit.py audits with their own router."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "routing"),
    [
        ("ernie-4.5-21b-a3b", Routing.BALANCED),
        *((name, Routing.MODEL) for name in MIXTURES if name not in OWN_ROUTER_AUDITED),
    ],
)
def test_a_presets_audit_holds(name: str, routing: Routing) -> None:
    flags = "--device cpu --spec-tokens 2 --max-num-seqs 2 --capture-sizes 2 --max-new-tokens 4"
    # Padding is held to the engine itself. A draw may depend on the row, a model's router does not.
    checks = "equality,hidden,drafts" + (",padding" if routing is Routing.BALANCED else "")
    args = ["audit", f"preset:{name}", *flags.split(), "--checks", checks]
    done = CliRunner().invoke(app, [*args, "--routing", routing.value, "--json"])
    assert done.exit_code == 0, done.output
    assert f'"routing": "{routing.value}"' in done.output
