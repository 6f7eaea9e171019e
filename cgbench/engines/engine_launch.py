"""Find an engine, and say how its process is started and what it is started with."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from cgbench.engines.engine_process import Launch
from cgbench.errors import BadInputError
from cgbench.request.engines_request import EngineSettings
from cgbench.words import Routing

FIND_S = 120.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A ``Kind`` is what is known of an engine before it is started.

    ``package`` is what it is imported as, and ``install`` what installs it. ``many_k``: one process
    serves several k. ``drafts``: it has drafts at all. ``variables`` are set in its environment,
    and ``balanced`` too if experts are to be drawn evenly. ``makes_weights``: it makes up the
    weights of a preset. ``begins_anew``: its blocks begin at the state after prefill.
    """

    title: str
    package: str
    install: str
    driver: str
    many_k: bool = False
    drafts: bool = True
    begins_anew: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    balanced: Mapping[str, str] | None = None
    """None if the engine has no switch of its own for that."""


KINDS: dict[str, Kind] = {
    "cgbench": Kind(
        "cgbench",
        "cgbench",
        "pip install cgbench",
        "cgbench.door.own_driver:OwnDriver",
        many_k=True,
        begins_anew=True,
        balanced={},
    ),
    "vllm": Kind(
        "vLLM",
        "vllm",
        "pip install vllm",
        "cgbench.engines.drivers.vllm_driver:VllmDriver",
        variables={
            # The core runs in the process that is driven, where the profiler sees its kernels.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        },
        balanced={"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": "uniform_random"},
    ),
    "sglang": Kind(
        "SGLang",
        "sglang",
        "pip install sglang",
        "cgbench.engines.drivers.sglang_driver:SglangDriver",
    ),
    "transformers": Kind(
        "transformers",
        "transformers",
        "pip install transformers",
        "cgbench.engines.drivers.transformers_driver:TransformersDriver",
        drafts=False,
    ),
}


def check_installed(settings: EngineSettings) -> None:
    """Raise ``BadInputError``, which states what to install, if the engine is not there."""
    kind = KINDS[settings.name]
    if not _is_installed(kind.package, settings):
        raise BadInputError(
            f"--engine {settings.name}: {kind.title} is not installed. Install it with "
            f"`{kind.install}`, or name its environment with --engine-python {settings.name}=PATH"
        )


def _is_installed(package: str, settings: EngineSettings) -> bool:
    if settings.site is not None:
        return (settings.site / package).is_dir()
    if settings.python is None:
        return find_spec(package) is not None
    words = f"import sys, importlib.util as u; sys.exit(u.find_spec({package!r}) is None)"
    try:
        done = subprocess.run(
            [settings.python, "-c", words], capture_output=True, timeout=FIND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInputError(
            f"--engine-python {settings.name}={settings.python}: cannot be run: {error}"
        ) from error
    return done.returncode == 0


def launch_of(settings: EngineSettings, routing: Routing) -> Launch:
    """Return how the engine's process is started. ``routing`` is that of the model's experts."""
    kind = KINDS[settings.name]
    balanced = (kind.balanced or {}) if routing is Routing.BALANCED else {}
    return Launch(
        settings.name,
        kind.driver,
        python=settings.python or sys.executable,
        site=settings.site,
        environment={**kind.variables, **balanced, **settings.variables},
        begins_anew=kind.begins_anew,
    )


def routing_of(name: str, routing: Routing) -> Routing:
    """Return how the engine's experts are chosen, if ``routing`` is what was asked for."""
    return Routing.MODEL if KINDS[name].balanced is None else routing
