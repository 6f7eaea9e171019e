"""The flags that several commands share: what is loaded, captured and decoded."""

from typing import Annotated

import typer

from cgbench.planning import CaptureUnit
from cgbench.request.choices import ChatTemplate, Compile, Device, Dtype, HeadPlacement
from cgbench.words import Routing

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="'default' (small, trained, ships with cgbench), 'preset:NAME' (a public shape with "
        "random weights), a folder, a GGUF file or a hub id.",
    ),
]
SpecTokens = Annotated[
    str, typer.Option(help="Draft tokens k per iteration, 0 to 8, such as 1,3; 0 always runs too.")
]
Scopes = Annotated[
    str, typer.Option(help="Of eager, phase (three graphs an iteration), iteration (one).")
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="Capture policy, one that `cgbench plan --policy all` lists. Default: scaled, or "
        "explicit with --capture-sizes."
    ),
]
CaptureSizes = Annotated[
    str | None, typer.Option(help="Sizes to capture, such as 1,4,8, in --capture-unit.")
]
Unit = Annotated[CaptureUnit, typer.Option(help="What --capture-sizes counts.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="humaneval, mt-bench, gsm8k, random, FILE.jsonl or FILE.txt. Default: shipped ones."
    ),
]
NumPrompts = Annotated[int | None, typer.Option(help="Only the first N prompts. Default: all.")]
Chat = Annotated[
    ChatTemplate,
    typer.Option(help="Prompts through the tokenizer's template; auto: where it has one."),
]
DeviceName = Annotated[Device, typer.Option(help="Where to run.")]
DtypeName = Annotated[
    Dtype, typer.Option(help="Weights and KV. auto: bfloat16 on CUDA, float32 on CPU.")
]
Attention = Annotated[
    str,
    typer.Option(
        help="Decode attention: auto, sdpa (reference), triton, or package.module:function."
    ),
]
CompileMode = Annotated[
    Compile,
    typer.Option(
        "--compile",
        help="The decode layers: off, as transformers runs them; default, through torch.compile.",
    ),
]
RoutingOf = Annotated[
    Routing | None,
    typer.Option(
        "--routing",
        help="How tokens choose experts: model, by its router, or balanced, drawn evenly. "
        "Default: balanced for a preset, else model.",
    ),
]
MaxBatchedTokens = Annotated[
    int, typer.Option(help="Most tokens of one prefill forward, as engines name it.")
]
Tp = Annotated[
    int | None,
    typer.Option("--tp", help="GPUs that share the model. Default: torchrun's ranks, else 1."),
]
TpHead = Annotated[
    HeadPlacement, typer.Option(help="With --tp: the head's block divided too, or whole.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def policy_name(policy: str | None, capture_sizes: str | None) -> str:
    """The policy asked for: explicit sizes need none to be named."""
    if policy is not None:
        return policy
    return "scaled" if capture_sizes is None else "explicit"
