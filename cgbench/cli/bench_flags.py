"""Declare the flags that several commands share: what is loaded, captured and decoded."""

from typing import Annotated

import typer

from cgbench.cli.panels import GRAPHS, MODEL, OUTPUT, WORKLOAD
from cgbench.planning import CaptureUnit
from cgbench.request.choices import (
    ChatTemplate,
    Compile,
    Device,
    Dtype,
    HeadPlacement,
    KvDtype,
    QuantMode,
)
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
    str,
    typer.Option(
        help="Draft tokens k an iteration, 0 to 16, such as 1,3. 0 always runs too.",
        rich_help_panel=GRAPHS,
    ),
]
Scopes = Annotated[
    str,
    typer.Option(
        help="Of eager, phase (three graphs an iteration), iteration (one).", rich_help_panel=GRAPHS
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="Capture policy, one that `cgbench plan --policy all` lists. Default: scaled, or "
        "explicit with --capture-sizes.",
        rich_help_panel=GRAPHS,
    ),
]
CaptureSizes = Annotated[
    str | None,
    typer.Option(
        help="Sizes to capture, such as 1,4,8, in --capture-unit.", rich_help_panel=GRAPHS
    ),
]
Unit = Annotated[
    CaptureUnit, typer.Option(help="What --capture-sizes counts.", rich_help_panel=GRAPHS)
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="humaneval, mt-bench, gsm8k, random, FILE.jsonl or FILE.txt. Default: shipped ones.",
        rich_help_panel=WORKLOAD,
    ),
]
NumPrompts = Annotated[
    int | None,
    typer.Option(help="Only the first N prompts. Default: all.", rich_help_panel=WORKLOAD),
]
Chat = Annotated[
    ChatTemplate,
    typer.Option(
        help="Prompts through the tokenizer's template. auto: if it has one.",
        rich_help_panel=WORKLOAD,
    ),
]
DeviceName = Annotated[Device, typer.Option(help="Where to run.", rich_help_panel=MODEL)]
DtypeName = Annotated[
    Dtype,
    typer.Option(
        help="Weights and KV. auto: bfloat16 on CUDA, float32 on CPU.", rich_help_panel=MODEL
    ),
]
KvDtypeName = Annotated[
    KvDtype,
    typer.Option(
        "--kv-dtype",
        help="Keys and values. auto: as --dtype. fp8: e4m3, with a scale for each head and token, "
        "or the checkpoint's k_scale and v_scale.",
        rich_help_panel=MODEL,
    ),
]
QuantName = Annotated[
    QuantMode,
    typer.Option(
        "--quant",
        help="Products of FP8 weights. w8a16: activations stay as they are. w8a8: they are "
        "quantised too, by token and block of columns. auto: w8a16.",
        rich_help_panel=MODEL,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        help="Decode attention: auto, latent (absorbed), sdpa (reference), triton, or "
        "package.module:function.",
        rich_help_panel=GRAPHS,
    ),
]
CompileMode = Annotated[
    Compile,
    typer.Option(
        "--compile",
        help="The decode layers. off: as transformers runs them. default: through torch.compile.",
        rich_help_panel=GRAPHS,
    ),
]
RoutingOf = Annotated[
    Routing | None,
    typer.Option(
        "--routing",
        help="How tokens choose experts: model, by its router, or balanced, drawn evenly. "
        "Default: balanced for a preset, else model.",
        rich_help_panel=MODEL,
    ),
]
MaxBatchedTokens = Annotated[
    int,
    typer.Option(
        help="Most tokens of one prefill forward, as engines name it.", rich_help_panel=GRAPHS
    ),
]
Tp = Annotated[
    int | None,
    typer.Option(
        "--tp",
        help="GPUs that share the model. Default: torchrun's ranks, else 1.",
        rich_help_panel=MODEL,
    ),
]
TpHead = Annotated[
    HeadPlacement,
    typer.Option(help="With --tp: the head's block divided too, or whole.", rich_help_panel=MODEL),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT)]


def policy_name(policy: str | None, capture_sizes: str | None) -> str:
    """Return the policy that is asked for. Explicit sizes need no name."""
    if policy is not None:
        return policy
    return "scaled" if capture_sizes is None else "explicit"
