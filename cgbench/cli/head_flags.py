"""Declare the flags for where a draft head is and how it is wired, shared by the commands."""

from typing import Annotated

import typer

from cgbench.cli.panels import HEAD
from cgbench.request.choices import (
    ConcatOrder,
    FirstEmbedding,
    ModuleFeed,
    NormForm,
    NormSide,
    OutputNorm,
)

_PANEL = HEAD

HeadRef = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of the draft head. Default: MODEL's own.", rich_help_panel=_PANEL
    ),
]
HeadFamilyName = Annotated[
    str | None,
    typer.Option(
        help="The head's layout, where names and model type do not tell: mimo, mimo_v2, deepseek, "
        "hy, step, qwen, exaone, mellum, ernie, speculators, eagle, eagle3 or dflash.",
        rich_help_panel=_PANEL,
    ),
]
HeadConcat = Annotated[
    ConcatOrder | None,
    typer.Option(
        help="Order of embedding E and hidden state H into the head.", rich_help_panel=_PANEL
    ),
]
HeadHidden = Annotated[
    NormSide | None,
    typer.Option(
        "--head-hidden",
        help="Target's hidden state at draft 1: pre or post its norm.",
        rich_help_panel=_PANEL,
    ),
]
ChainNorm = Annotated[
    NormSide | None,
    typer.Option(
        "--chain-norm",
        help="Hidden state chained to drafts 2..k: pre or post norm.",
        rich_help_panel=_PANEL,
    ),
]
HeadOutNorm = Annotated[
    OutputNorm | None,
    typer.Option(
        help="Norm before the output matrix: the head's, the target's, none.",
        rich_help_panel=_PANEL,
    ),
]
HeadNormForm = Annotated[
    NormForm | None,
    typer.Option(
        help="What stored norm weights scale by: w (plain), 1 + w (one_plus), or as the target's "
        "modules do.",
        rich_help_panel=_PANEL,
    ),
]
HeadFirstEmbed = Annotated[
    FirstEmbedding | None,
    typer.Option(help="The head's embedding at position 0.", rich_help_panel=_PANEL),
]
HeadFeed = Annotated[
    ModuleFeed | None,
    typer.Option(
        help="What modules past the first read: the chain of the one before, or the target's "
        "hidden state.",
        rich_help_panel=_PANEL,
    ),
]
MtpModules = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use at most so many of the head's MTP modules. 1 reuses the first. Default: all.",
        rich_help_panel=_PANEL,
    ),
]
DraftVocab = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Draft only the N likeliest tokens (FR-Spec), with an output matrix of N rows. "
        "Acceptance may fall. Default: all of --draft-vocab-from, or any token.",
        rich_help_panel=_PANEL,
    ),
]
DraftVocabFrom = Annotated[
    str | None,
    typer.Option(
        help="Tokens by frequency, likeliest first: a JSON list of ids, a JSON object of counts by "
        "id, or text with an id a line. Default: a preset's first ids.",
        rich_help_panel=_PANEL,
    ),
]
