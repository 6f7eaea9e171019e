"""``cgbench inspect`` prints what a checkpoint holds and what would be loaded, without
loading it.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

import cgbench
from cgbench.cli.bench_flags import Debug, DeviceName, DtypeName, KvDtypeName, Model, QuantName
from cgbench.cli.console import TerminalProgress, console, print_uncut
from cgbench.cli.head_flags import (
    ChainNorm,
    DraftVocab,
    DraftVocabFrom,
    HeadConcat,
    HeadFamilyName,
    HeadFeed,
    HeadFirstEmbed,
    HeadHidden,
    HeadNormForm,
    HeadOutNorm,
    HeadRef,
    MtpModules,
)
from cgbench.cli.values import asked
from cgbench.errors import ExitCode
from cgbench.request.choices import Device, Dtype, KvDtype, ModuleFeed, NormForm, QuantMode
from cgbench.request.run_request import InspectRequest

if TYPE_CHECKING:
    from cgbench.models.inspection import (
        CheckpointFacts,
        CopyFacts,
        HeadFacts,
        Inspection,
        RankFacts,
    )


def inspect(
    model: Model = "default",
    head: HeadRef = None,
    head_family: HeadFamilyName = None,
    head_concat: HeadConcat = None,
    head_hidden_in: HeadHidden = None,
    head_chain: ChainNorm = None,
    head_out_norm: HeadOutNorm = None,
    head_norm_form: HeadNormForm = None,
    head_first_embed: HeadFirstEmbed = None,
    head_feed: HeadFeed = None,
    mtp_modules: MtpModules = None,
    draft_vocab: DraftVocab = None,
    draft_vocab_from: DraftVocabFrom = None,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    kv_dtype: KvDtypeName = KvDtype.AUTO,
    tp: Annotated[
        int | None,
        typer.Option("--tp", help="GPUs that would share it: what each would hold."),
    ] = None,
    quant: QuantName = QuantMode.AUTO,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor of the head.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, tensors included.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a checkpoint holds and whether its graphs can be captured.

    No weight is loaded. Matrices that lie beside a head are compared with the target's. Exit code
    1: weights are missing or have no place, it has no usable head, cannot be captured, or not be
    divided over ``--tp`` ranks.
    """
    parameters = locals()
    found = cgbench.inspect(asked(InspectRequest, parameters), progress=TerminalProgress())
    if as_json:
        typer.echo(found.to_json())
    else:
        _print(found, with_tensors=tensors)
    raise typer.Exit(ExitCode.OK if found.is_usable else ExitCode.ANSWER_IS_NO)


def _print(found: "Inspection", *, with_tensors: bool) -> None:
    for name, value in _lines(found):
        console().print(Text(f"{name:<13} {value}"), soft_wrap=True)
    if with_tensors and not found.head_tensors:
        console().print("no tensor of a head is stored", soft_wrap=True)
    elif with_tensors:
        table = Table("head tensor", "dtype", "shape", "file", box=None, padding=(0, 2))
        for tensor in found.head_tensors:
            cells = (tensor.name, tensor.dtype, _shape(tensor.shape), tensor.file)
            # Text, because rich reads "[...]" in a plain string as markup.
            table.add_row(*map(Text, cells))
        print_uncut(table)


def _lines(found: "Inspection") -> list[tuple[str, str]]:
    experts = _expert_words(found)
    tied = ", tied embeddings" if found.tied_embeddings else ""
    lines = [
        ("model", found.model),
        (
            "target",
            f"{found.class_name}, {found.num_layers} layers, hidden {found.hidden_size}, "
            f"vocabulary {found.vocab_size}{experts}{tied}",
        ),
        ("positions", f"{found.max_positions} tokens"),
        ("weights", found.weights_problem or _weight_words(found)),
        *_precision_lines(found),
        *_file_lines(found.checkpoint),
        *_head_lines(found),
    ]
    with_head = ", head included," if found.head else ""
    per_token = f"{found.kv_bytes_per_token:,} bytes a token"
    lines.append(("KV", f"{per_token}{with_head} in {found.kv_format}{_latent_words(found)}"))
    if state := found.state_bytes_per_request:
        per_row = f"{found.state_bytes_per_verified_row:,} bytes"
        of_rows = f"and {per_row} for each of its k + 1 verified rows"
        lines.append(("state", f"{_size(state)} a request of any length, {of_rows}"))
    if (ranks := found.ranks) is not None:
        lines.append((f"on {ranks.num_ranks} ranks", ranks.problem or _rank_words(ranks)))
    can = "can be captured" if found.weights_problem is None else "not without its weights"
    lines.append(("capture", found.capture_problem or can))
    return lines


def _rank_words(ranks: "RankFacts") -> str:
    """Return what each of several ranks would hold."""
    parts = [
        f"at least {_size(ranks.weight_bytes)} of weights, head included",
        f"KV {ranks.kv_bytes_per_token:,} bytes a token",
    ]
    if ranks.kv_copies > 1:
        parts.append(f"each KV head on {ranks.kv_copies} ranks")
    if state := ranks.state_bytes_per_request:
        parts.append(f"state {_size(state)} a request")
    return f"each {', '.join(parts)}"


def _expert_words(found: "Inspection") -> str:
    if not found.experts:
        return ""
    return f", {found.num_experts} experts of which a token takes {found.experts_per_token}"


def _weight_words(found: "Inspection") -> str:
    kind = found.dtype if found.quantisation is None else f"FP8 and {found.dtype}"
    return f"{_size(found.weight_bytes)} in {kind}"


def _latent_words(found: "Inspection") -> str:
    """What a layer keeps in place of keys and values, if it does."""
    if found.latent_size is None:
        return ""
    return f": latents of {found.latent_size} values a layer, their rotary keys included"


def _precision_lines(found: "Inspection") -> list[tuple[str, str]]:
    """Return what each part of a quantised checkpoint is held in. A head's parts are among them."""
    if not any(each.dtype == "float8_e4m3fn" for each in found.precision):
        return []
    lines = [] if found.quantisation is None else [("quantised", found.quantisation)]
    for each in found.precision:
        lines.append(("precision", f"{each.part}: {each.dtype}, {_size(each.num_bytes)}"))
    return lines


def _file_lines(checkpoint: "CheckpointFacts | None") -> list[tuple[str, str]]:
    if checkpoint is None:
        return [("files", "none: random weights are made on the device")]
    files = [("file", f"{name}, {_size(size)}") for name, size in checkpoint.files.items()]
    stored = (f"{n} {dtype}" if n else dtype for dtype, n in checkpoint.dtypes.items())
    return [*files, ("stored", f"{', '.join(stored)} tensors")]


def _head_lines(found: "Inspection") -> list[tuple[str, str]]:
    head = found.head
    if head is None:
        return [("head", found.head_problem or "none")]
    where = f"{head.num_tensors} tensors from {head.origin}" if head.origin else "made too"
    return [
        ("head", f"{head.label}, {where}"),
        ("modules", _module_words(head)),
        ("head weights", f"{_size(head.weight_bytes)}"),
        ("wiring", _wiring_words(head)),
        *_draft_vocabulary(head),
        ("head norms", _norm_words(head)),
        *((each.what, _copy_words(each)) for each in head.copies),
        ("rule from", head.source),
    ]


def _wiring_words(head: "HeadFacts") -> str:
    """Return what draft 1 and later drafts are fed, and what their logits are made of."""
    fed = f"{head.hidden_in}-norm"
    if head.aux_layers:
        fed = f"before layers {', '.join(map(str, head.aux_layers))}"
    if head.block_size is not None:
        return f"context of states {fed}, mask token {head.mask_token}, output norm {head.out_norm}"
    return (
        f"concat {head.concat}, hidden in {fed}, chain {head.chain}-norm, output norm "
        f"{head.out_norm}, first embedding {head.first_embed}"
    )


def _draft_vocabulary(head: "HeadFacts") -> list[tuple[str, str]]:
    if head.draft_vocab_size is None:
        return []
    words = f"{head.draft_vocab_size:,} of the target's, {head.draft_vocab_source}"
    if head.output_bytes:
        words += f": {_size(head.output_bytes)} of rows of its output matrix, gathered once"
    return [("draft tokens", words)]


def _module_words(head: "HeadFacts") -> str:
    """How many modules draft, of how many, and what the later ones are fed."""
    if head.block_size is not None:
        most = head.block_size - 1
        return f"1, parallel: one forward of k + 1 positions makes every draft, k up to {most}"
    if head.modules_stored == 1:
        return "1"
    if head.modules == 1:
        return f"1 of {head.modules_stored}, run again for every draft step"
    stored = "" if head.modules_stored == head.modules else f" of {head.modules_stored}"
    fed = {
        ModuleFeed.CHAIN: "the chain of the module before",
        ModuleFeed.TARGET: "the target's hidden state",
    }
    return f"{head.modules}{stored}, one a draft step, each fed {fed[head.feed]}"


_NORMS = {NormForm.PLAIN: "scale by w", NormForm.ONE_PLUS: "scale by 1 + w"}


def _norm_words(head: "HeadFacts") -> str:
    """Return the form that norm weights are stored in, and how the target's modules scale."""
    target = _NORMS[head.target_norms]
    if head.norm_form == NormForm.TARGET:
        return f"{target}, as the target's"
    return f"{_NORMS[head.norm_form]} (the target's {target})"


def _copy_words(copy: "CopyFacts") -> str:
    """Return what is done with a matrix that is stored with the head."""
    words = {
        "own": "the head's own: differs from the target's, and is used",
        "equal copy": "an equal copy of the target's, which is used",
        "left unread": "left unread, as engines do: the target's is used",
    }
    return f"{copy.name}: {words[copy.use]}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _size(num_bytes: int) -> str:
    """Return bytes, with a rounded number beside them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes:,} bytes ({num_bytes / scale:.1f} {unit})"
    return f"{num_bytes} bytes"
