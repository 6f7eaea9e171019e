"""The flags that say where a draft head is and how it is wired, shared by the commands."""

from typing import Annotated, Any

import typer

from cgbench.cli.choices import (
    ConcatOrder,
    FirstEmbedding,
    NormForm,
    NormSide,
    OutputNorm,
)

_PANEL: dict[str, Any] = {"rich_help_panel": "Draft head"}

HeadRef = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the draft head. Default: MODEL's own.", **_PANEL),
]
HeadFamilyName = Annotated[
    str | None,
    typer.Option(
        help="The head's layout, where names and model type do not tell: mimo, deepseek, hy, step, "
        "qwen, exaone, mellum, ernie, speculators or eagle.",
        **_PANEL,
    ),
]
HeadConcat = Annotated[
    ConcatOrder | None,
    typer.Option(help="Order of embedding E and hidden state H into the head.", **_PANEL),
]
HeadHidden = Annotated[
    NormSide | None,
    typer.Option(help="Target's hidden state at draft 1: pre or post its norm.", **_PANEL),
]
ChainNorm = Annotated[
    NormSide | None,
    typer.Option(help="Hidden state chained to drafts 2..k: pre or post norm.", **_PANEL),
]
HeadOutNorm = Annotated[
    OutputNorm | None,
    typer.Option(help="Norm before the output matrix: the head's, the target's, none.", **_PANEL),
]
HeadNormForm = Annotated[
    NormForm | None,
    typer.Option(
        help="What stored norm weights scale by: w (plain), 1 + w (one_plus), or as the target's "
        "modules do.",
        **_PANEL,
    ),
]
HeadFirstEmbed = Annotated[
    FirstEmbedding | None,
    typer.Option(help="The head's embedding at position 0.", **_PANEL),
]


def wiring(
    family: str | None,
    concat: ConcatOrder | None,
    hidden: NormSide | None,
    chain: NormSide | None,
    out_norm: OutputNorm | None,
    norm_form: NormForm | None,
    first_embed: FirstEmbedding | None,
) -> dict[str, str | None]:
    """The flags as the record keeps them: ``head_`` and a field of ``HeadOverrides``."""
    return {
        "head_family": family,
        "head_concat": concat,
        "head_hidden_in": hidden,
        "head_chain": chain,
        "head_out_norm": out_norm,
        "head_norm_form": norm_form,
        "head_first_embed": first_embed,
    }
