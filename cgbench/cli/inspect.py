"""``cgbench inspect``: what a checkpoint holds and what would be loaded, without loading it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cgbench.cli.bench_flags import Debug, DeviceName, DtypeName, Model
from cgbench.cli.choices import Device, Dtype
from cgbench.cli.console import console, print_uncut, working
from cgbench.cli.head_flags import (
    ChainNorm,
    HeadConcat,
    HeadFamilyName,
    HeadFirstEmbed,
    HeadHidden,
    HeadNormForm,
    HeadOutNorm,
    HeadRef,
    wiring,
)
from cgbench.errors import ExitCode

if TYPE_CHECKING:
    from cgbench.models.inspection import Facts, HeadFacts, Inspection


def inspect(
    model: Model = "default",
    head: HeadRef = None,
    head_family: HeadFamilyName = None,
    head_concat: HeadConcat = None,
    head_hidden: HeadHidden = None,
    chain_norm: ChainNorm = None,
    head_out_norm: HeadOutNorm = None,
    head_norm_form: HeadNormForm = None,
    head_first_embed: HeadFirstEmbed = None,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor of the head.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, tensors included.")] = False,
    debug: Debug = False,
) -> None:
    """Show a checkpoint's family, tensors and sizes, and whether its graphs can be captured.

    No weight is loaded; matrices that lie beside a head are compared with the target's. Exit code
    1: weights are missing or have no place, it has no usable head, or cannot be captured.
    """
    from cgbench.measure import setup
    from cgbench.models.inspection import inspect_model

    arguments = {
        "model": model,
        "head": head,
        **wiring(
            head_family,
            head_concat,
            head_hidden,
            chain_norm,
            head_out_norm,
            head_norm_form,
            head_first_embed,
        ),
        "dtype": dtype.value,
        "seed": 0,
    }
    where = setup.choose_device(device.value)
    with working(f"inspect {model}"):
        found = inspect_model(setup.model_request(arguments, where, with_head=True))
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found, with_tensors=tensors)
    raise typer.Exit(ExitCode.OK if found.is_usable else ExitCode.ANSWER_IS_NO)


def _as_json(found: "Inspection") -> dict[str, Any]:
    tensors = [
        {"name": t.name, "dtype": t.dtype, "shape": t.shape, "file": t.file}
        for t in found.head_tensors
    ]
    return {**found.facts, "head_tensors": tensors}


def _print(found: "Inspection", *, with_tensors: bool) -> None:
    for name, value in _lines(found.facts):
        console().print(Text(f"{name:<13} {value}"), soft_wrap=True)
    if with_tensors and found.head_tensors:
        table = Table("head tensor", "dtype", "shape", "file", box=None, padding=(0, 2))
        for tensor in found.head_tensors:
            cells = (tensor.name, tensor.dtype, _shape(tensor.shape), tensor.file)
            # Text, for rich takes "[...]" in a plain string for markup.
            table.add_row(*map(Text, cells))
        print_uncut(table)


def _lines(facts: "Facts") -> list[tuple[str, str]]:
    experts = ", mixture of experts" if facts["experts"] else ""
    tied = ", tied embeddings" if facts["tied_embeddings"] else ""
    lines = [
        ("model", facts["model"]),
        (
            "target",
            f"{facts['class']}, {facts['num_layers']} layers, hidden {facts['hidden_size']}, "
            f"vocabulary {facts['vocab_size']}{experts}{tied}",
        ),
        ("positions", f"{facts['max_positions']} tokens"),
        (
            "weights",
            facts["weights_problem"] or f"{_size(facts['weight_bytes'])} in {facts['dtype']}",
        ),
    ]
    checkpoint = facts["checkpoint"]
    if checkpoint is None:
        lines.append(("files", "none: random weights are made on the device"))
    else:
        for name, num_bytes in checkpoint["files"].items():
            lines.append(("file", f"{name}, {_size(num_bytes)}"))
        stored = (f"{n} {dtype}" if n else dtype for dtype, n in checkpoint["dtypes"].items())
        lines.append(("stored", f"{', '.join(stored)} tensors"))
    lines += _head_lines(facts)
    kv, with_head = facts["kv_bytes_per_token"], ", head included," if facts["head"] else ""
    lines.append(("KV", f"{kv:,} bytes a token{with_head} in {facts['dtype']}"))
    if state := facts["state_bytes_per_request"]:
        per_row = f"{facts['state_bytes_per_verified_row']:,} bytes"
        of_rows = f"and {per_row} for each of its k + 1 verified rows"
        lines.append(("state", f"{_size(state)} a request of any length, {of_rows}"))
    can = "can be captured" if facts["weights_problem"] is None else "not without its weights"
    lines.append(("capture", facts["capture_problem"] or can))
    return lines


def _head_lines(facts: "Facts") -> list[tuple[str, str]]:
    head = facts["head"]
    if head is None:
        return [("head", facts["head_problem"] or "none")]
    where = f"{head['num_tensors']} tensors from {head['from']}" if head["from"] else "made too"
    reused = "" if head["modules"] == 1 else "; the first is used for every draft step"
    return [
        ("head", f"{head['label']}, {where}"),
        ("modules", f"{head['modules']}{reused}"),
        ("head weights", f"{_size(head['weight_bytes'])}"),
        (
            "wiring",
            f"concat {head['concat']}, hidden in {head['hidden_in']}-norm, chain "
            f"{head['chain']}-norm, output norm {head['out_norm']}, first embedding "
            f"{head['first_embed']}",
        ),
        ("head norms", _norm_words(head)),
        *((each["what"], _copy_words(each)) for each in head["copies"]),
        ("rule from", head["source"]),
    ]


_NORMS = {"plain": "scale by w", "one_plus": "scale by 1 + w"}


def _norm_words(head: "HeadFacts") -> str:
    """The form that norm weights are stored in, and how the target's modules scale."""
    target = _NORMS[head["target_norms"]]
    if head["norm_form"] == "target":
        return f"{target}, as the target's"
    return f"{_NORMS[head['norm_form']]} (the target's {target})"


def _copy_words(copy: dict[str, str]) -> str:
    """What is done with a matrix that is stored with the head."""
    words = {
        "own": "the head's own: differs from the target's, and is used",
        "equal copy": "an equal copy of the target's, which is used",
        "left unread": "left unread, as engines do: the target's is used",
    }
    return f"{copy['name']}: {words[copy['use']]}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _size(num_bytes: int) -> str:
    """Bytes, and rounded beside them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes:,} bytes ({num_bytes / scale:.1f} {unit})"
    return f"{num_bytes} bytes"
