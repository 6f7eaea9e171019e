"""Write results/README.md from the records of the runs, so that no row of it can be stale.

python scripts/trials/index.py results
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cgbench.request.command_line import command_line
from cgbench.request.run_request import RunRequest
from cgbench.rundir.store import RunDirectory
from cgbench.tables.markdown import markdown_table

HEAD = """\
# Results

`scripts/trials/index.py` writes this page from the runs' own records. A run made by `cgbench run`
goes to `results/runs/`, which git ignores. These runs are kept, because documentation or a gate
names them. [Notes](notes.md) say what they show and what to mind. [Tried](tried.md) lists what was
not kept.

Presets have **random weights**, and their acceptance is stated. Figures of speed are measured.
Acceptance, accept length and tokens a second of such rows are not.
"""

SHOWN_BATCH_SIZES = (1, 8, 64)
# Runs that are evidence of another page, and runs that git ignores.
ELSEWHERE = ({"gate", "runs"}, {"runs"})
OWN_PAGES = ("README.md", "notes.md", "tried.md")
COLUMNS = {
    "k": ("spec_tokens", "{}"),
    "batch [req]": ("batch_size", "{}"),
    "experts read": ("experts_read", "{:.1f}"),
    "iteration p50 [ms]": ("iteration_p50_ms", "{:.3f}"),
    "floor [ms]": ("floor_ms", "{:.3f}"),
    "of floor": ("floor_frac", "{:.0%}"),
    "accept length": ("mean_acceptance_length", "{:.2f}"),
    "vs eager": ("speedup_vs_eager", "{:.2f}x"),
    "vs no spec": ("speedup_vs_no_spec", "{:.2f}x"),
}


def page(folder: Path) -> str:
    """The whole page for the runs below ``folder``."""
    runs = [*runs_below(folder)]
    parts = [
        HEAD,
        "## Runs\n",
        markdown_table(RUN_HEADINGS, [run_row(folder, run) for run in runs], left=RUN_HEADINGS),
        "\n## One graph an iteration\n",
        markdown_table(
            ["run", *COLUMNS],
            [row for run in runs if not run.record.thin for row in figures(folder, run)],
            left=["run"],
        ),
        "\n## Audits\n",
        markdown_table(AUDIT_HEADINGS, [*audit_rows(folder)], left=AUDIT_HEADINGS),
        "\n## Trials\n",
        *trials(folder),
    ]
    return "\n".join(parts) + "\n"


RUN_HEADINGS = ("run", "model", "acceptance", "machine", "commit", "made", "command")
AUDIT_HEADINGS = ("audit", "model", "verdict", "checks", "seconds", "commit")


def runs_below(folder: Path) -> Iterator[RunDirectory]:
    """Every kept run, in the order of the paths."""
    for file in sorted(folder.rglob("run.json")):
        inside = {*file.relative_to(folder).parts[:-1]}
        if not any(parts <= inside for parts in ELSEWHERE):
            yield RunDirectory.open(file.parent)


def run_row(folder: Path, run: RunDirectory) -> list[str]:
    """What was measured, on what, by which code and command."""
    record, latency = run.record, run.latency()
    where = record.environment
    machine = where.get("gpu") or where.get("cpu") or ""
    ranks = int(latency["tp_size"].max())
    return [
        linked(folder, run.path),
        str(record.model["label"]),
        ", ".join(sorted(latency.loc[latency["spec_tokens"] > 0, "acceptance"].unique())),
        f"{f'{ranks} x ' if ranks > 1 else ''}{machine}, torch {where.get('torch')}",
        short(where.get("cgbench_commit")),
        record.created_utc[:10],
        f"`{made_by(folder, run)}`",
    ]


def made_by(folder: Path, run: RunDirectory) -> str:
    """The command. Engines in processes of their own are measured by one command together."""
    together = run.path.parent / "engines.json"
    if together.exists():
        found: str = json.loads(together.read_text(encoding="utf-8"))["command"]
        return found
    return f"{shortest(run.record.arguments)} --output {run.path.relative_to(folder.parent)}"


def shortest(arguments: Mapping[str, Any]) -> str:
    """The command without the flags that have their defaults."""
    defaults = RunRequest().to_record()
    stated = {
        name: value
        for name, value in arguments.items()
        if name == "model" or (name in defaults and value != defaults[name])
    }
    return command_line("run", stated)


def figures(folder: Path, run: RunDirectory) -> Iterator[list[str]]:
    """The rows of one graph an iteration, at no drafts and at the most."""
    frame = run.latency().query("scope == 'iteration' and batch_size in @SHOWN_BATCH_SIZES")
    for _, row in frame[frame["spec_tokens"].isin([0, frame["spec_tokens"].max()])].iterrows():
        yield [
            linked(folder, run.path),
            *(
                "" if pd.isna(row[name]) else form.format(row[name])
                for name, form in COLUMNS.values()
            ),
        ]


def shown(value: Any, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


def audit_rows(folder: Path) -> Iterator[list[str]]:
    """Every kept audit."""
    for file in sorted(folder.rglob("audit-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        verdicts = [finding["verdict"] for finding in found["findings"]]
        yield [
            f"[{file.stem}]({file.relative_to(folder)})",
            found["model"]["label"],
            found["verdict"],
            f"{verdicts.count('holds')} of {len(verdicts)} hold",
            f"{found['seconds']:.0f}",
            short(found["environment"].get("cgbench_commit")),
        ]


def trials(folder: Path) -> Iterator[str]:
    """Every other page, by its first line."""
    for file in sorted(folder.rglob("*.md")):
        name = str(file.relative_to(folder))
        if file.name == "latency.md" or name in OWN_PAGES:
            continue
        first = file.read_text(encoding="utf-8").lstrip("# ").partition("\n")[0]
        # A command that made an older page may name a script that has moved.
        yield f"- [{name}]({name})" + ("" if first.startswith("`") else f": {first}")


def linked(folder: Path, run: Path) -> str:
    name = run.relative_to(folder)
    return f"[{name}]({name}/latency.md)"


def short(commit: object) -> str:
    """Seven digits of a commit, and whether it was dirty."""
    plain, _, rest = str(commit or "").partition("+")
    return plain[:7] + (f" {rest}" if rest else "")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write README.md from the runs' own records.")
    parser.add_argument("folder", type=Path, help="folder of results")
    folder = parser.parse_args().folder
    (folder / "README.md").write_text(page(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
