"""Which wiring of a draft head keeps most drafts? It settles a dispute on a real checkpoint.

    python scripts/trials/wirings.py MODEL --output results/FOLDER/wirings.md
    python scripts/trials/wirings.py MODEL --vary chain,hidden --prompts FILE.jsonl

The model is loaded once. The target writes a text after each prompt, and its hidden states are
kept. Under every wiring the head then drafts from the same places of these texts. Wirings are
compared place by place. A winner is stated only if all others are apart from it. Exit code 0: the
declared wiring is the winner or tied with the best. 1: it is behind the best.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.cli.console import TerminalProgress, console, print_error, print_uncut, say
from cgbench.errors import BadInputError, CgbenchError, ExitCode, OutOfMemoryError
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.request.choices import ChatTemplate, Device, Dtype
from cgbench.request.model_ref import preset_name
from cgbench.request.parts import HeadWiring, ModelRequest, SharingRequest, WorkloadRequest

if TYPE_CHECKING:
    from cgbench.engine.backends import NamedBackend
    from cgbench.models.loader import LoadedModel
    from wiring_study.drafting import Text
    from wiring_study.evidence import Judged
    from wiring_study.rewired import Rewirable

POINTS = {
    "concat": "concat",
    "hidden": "hidden_in",
    "chain": "chain",
    "out-norm": "out_norm",
    "norm-form": "norm_form",
    "first-embed": "first_embed",
    "feed": "feed",
}
"""These are the names that ``--vary`` takes, each with its point of a wiring."""


def main(arguments: list[str] | None = None) -> int:
    """Make the study, print it, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        judged, title = study(options)
        _print(judged, title, options.output)
    except CgbenchError as error:
        print_error(str(error))
        return error.exit_code
    return ExitCode.ANSWER_IS_NO if judged.declared.is_apart else ExitCode.OK


def study(options: argparse.Namespace) -> "tuple[Judged, str]":
    """Return what the study that ``options`` ask for finds, and its title.

    Raise any of ``cgbench.errors``.
    """
    import torch

    try:
        return _study(options)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "out of memory: lower --batch-size, --max-num-batched-tokens or --num-prompts"
        ) from error


def _study(options: argparse.Namespace) -> "tuple[Judged, str]":
    from cgbench.engine.backends import resolve_backend
    from cgbench.measure.setup import choose_device
    from cgbench.models.loading_plan import loading_of
    from wiring_study.rewired import load_rewirable

    if preset_name(options.model) is not None:
        raise BadInputError(
            f"MODEL {options.model}: random weights have no right wiring. Give a checkpoint"
        )
    device = choose_device(options.device)
    attention = resolve_backend(options.attention, device)
    request = ModelRequest(
        ref=options.model,
        head=options.head,
        wiring=HeadWiring(family=options.head_family),
        dtype=options.dtype,
        mtp_modules=options.mtp_modules,
    )
    keeps = attention.keeps_latents
    alone = SharingRequest()
    loading = loading_of(request, alone, device, with_head=True, seed=0, keeps_latents=keeps)
    rewirable = load_rewirable(loading)
    texts = _texts(options, rewirable.model, attention)
    judged = _judged(options, rewirable, attention, texts)
    model = rewirable.model
    title = f"Wirings of the head {model.head_label} of {model.label}"
    return judged, title


def _texts(
    options: argparse.Namespace, model: "LoadedModel", attention: "NamedBackend"
) -> "tuple[Text, ...]":
    from wiring_study.drafting import write_texts

    prompts = _prompts(options, model)
    longest, most = max(map(len, prompts)), model.target.max_positions
    needed = longest + options.max_new_tokens + 2 * options.spec_tokens
    if needed > most:
        raise BadInputError(
            f"--max-new-tokens {options.max_new_tokens}: {needed} positions are needed, and MODEL "
            f"has {most}"
        )
    return write_texts(
        model,
        attention,
        prompts,
        max_new_tokens=options.max_new_tokens,
        batch_size=min(options.batch_size, len(prompts)),
        max_num_tokens=options.max_num_batched_tokens,
    )


def _prompts(options: argparse.Namespace, model: "LoadedModel") -> tuple[tuple[int, ...], ...]:
    from cgbench.workload.chat import make_encode, uses_template
    from cgbench.workload.load import text_workload
    from cgbench.workload.prompts import read_named

    asked = WorkloadRequest(chat_template=options.chat_template)
    texts = read_named(options.prompts, options.num_prompts)
    if model.tokenizer is None:
        raise BadInputError(model.tokenizer_problem)
    chat = uses_template(model.tokenizer, texts, asked.chat_template)
    encode = make_encode(model.tokenizer, texts, chat_template=chat)
    return text_workload(texts, encode, model.target.last_token, chat_template=chat).prompts


def _judged(
    options: argparse.Namespace,
    rewirable: "Rewirable",
    attention: "NamedBackend",
    texts: "tuple[Text, ...]",
) -> "Judged":
    from wiring_study.drafting import Drafter, find_starts
    from wiring_study.evidence import judge

    k = options.spec_tokens
    starts = find_starts(texts, k)
    if len(set(starts.prompt_of.tolist())) < 2:
        raise BadInputError(
            f"--prompts: fewer than 2 prompts have {k + 1} tokens of text after them, and prompts "
            "are what is compared. Give more, or raise --max-new-tokens"
        )
    wirings = rewirable.wirings(options.vary, k)
    say(f"wirings: {len(wirings)}, starts: {len(starts.starts)}, prompts: {len(texts)}")
    drafter = Drafter(rewirable.model, attention, starts, options.max_num_batched_tokens)
    accepted = []
    with TerminalProgress().bar("try wirings", len(wirings)) as bar:
        for wiring in wirings:
            rewirable.apply(wiring)
            accepted.append(drafter.accepted())
            bar.advance()
    return judge(wirings, accepted, starts.prompt_of, k)


def _print(judged: "Judged", title: str, output: Path | None) -> None:
    from wiring_study.report import conclusions, console_table, markdown

    console().print(title, markup=False)
    print_uncut(console_table(judged))
    for paragraph in conclusions(judged):
        console().print(paragraph, markup=False, soft_wrap=True)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(markdown(judged, title), encoding="utf-8")
        except OSError as error:
            raise BadInputError(f"--output {output}: {error.strerror}") from error


def _points(text: str) -> list[str]:
    """Return the points in a list with commas."""
    names = text.split(",")
    for name in names:
        if name not in POINTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(POINTS)}")
    return [POINTS[name] for name in names]


def _count(text: str) -> int:
    """Return a whole number of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="default, a folder, a file or a hub id")
    parser.add_argument("--head", help="folder or hub id of the draft head")
    parser.add_argument("--head-family", help="the head's layout, as in cgbench run")
    parser.add_argument("--mtp-modules", type=_count, help="use at most so many modules")
    parser.add_argument("--spec-tokens", type=_count, default=3, help="drafts a start")
    parser.add_argument(
        "--vary",
        type=_points,
        default=list(POINTS.values()),
        help=f"points to vary, of {', '.join(POINTS)}; default: all",
    )
    parser.add_argument("--prompts", help="a prompt set, FILE.jsonl or FILE.txt")
    parser.add_argument("--num-prompts", type=_count, help="the first N prompts alone")
    parser.add_argument("--chat-template", choices=[*ChatTemplate], default=ChatTemplate.AUTO)
    parser.add_argument("--max-new-tokens", type=_count, default=64, help="tokens of text a prompt")
    parser.add_argument("--batch-size", type=_count, default=16, help="texts written together")
    parser.add_argument(
        "--max-num-batched-tokens",
        type=_count,
        default=DEFAULT_MAX_BATCHED_TOKENS,
        help="tokens of one prefill forward",
    )
    parser.add_argument("--device", choices=[*Device], default=Device.AUTO)
    parser.add_argument("--dtype", choices=[*Dtype], default=Dtype.AUTO)
    parser.add_argument("--attention", default="auto", help="as in cgbench run")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="the table as Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
