"""``--repro DIR`` keeps one failed edge: what was sent, what was expected, and what came."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

from cgbench.endpoint.edge_findings import EdgeFinding, EdgeVerdict, EndpointResult
from cgbench.errors import OutputError
from cgbench.request.command_line import command_line

README = """\
What `cgbench audit --endpoint` found wrong at edge {edge}: {details}

    {command}

sends the same requests again, and judges this edge alone.

edge.json    the finding, and each wrong request: prompt, tokens, delay, both answers
request.sh   one wrong request sent alone, which answers as expected
"""

SCRIPT = """\
#!/bin/sh
# Row {row} of edge {edge}, alone. Together with the others it answers otherwise.
curl -s {url}/v1/completions -H 'Content-Type: application/json' -d {body}
"""

_FAILED = (EdgeVerdict.WRONG, EdgeVerdict.FLAKY, EdgeVerdict.UNCLEAR)


def failed_edge(result: EndpointResult) -> EdgeFinding | None:
    """Return the finding to reproduce: the first wrong one, otherwise the first unclear one."""
    found = [finding for finding in result.findings if finding.verdict in _FAILED]
    return min(found, key=lambda finding: _FAILED.index(finding.verdict), default=None)


def write_edge_repro(path: Path, result: EndpointResult, finding: EdgeFinding) -> None:
    """Write the files that reproduce a failed edge.

    Raise ``OutputError`` if ``path`` cannot be written.
    """
    files = {
        "edge.json": _content(result, finding),
        "README.txt": README.format(
            edge=finding.edge,
            details=finding.details or finding.reason,
            command=_command(result, finding),
        ),
    }
    if finding.rows:
        files["request.sh"] = _script(result, finding)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--repro {path}: cannot be written: {error.strerror}") from error


def _content(result: EndpointResult, finding: EdgeFinding) -> str:
    rows = [asdict(row) for row in finding.rows]
    content = {
        "finding": finding.facts(),
        "rows": rows,
        "model": result.model,
        "plan": result.plan,
        "noise": asdict(result.noise),
        "arguments": result.request.to_record(),
    }
    return json.dumps(content, indent=2) + "\n"


def _command(result: EndpointResult, finding: EdgeFinding) -> str:
    request = result.request
    if finding.edge.isdecimal():
        request = replace(request, edges=(int(finding.edge),))
    return command_line("audit", request.to_record())


def _script(result: EndpointResult, finding: EdgeFinding) -> str:
    row = finding.rows[0]
    body = {
        "model": result.model,
        "prompt": row.prompt,
        "max_tokens": row.max_tokens,
        "temperature": 0,
    }
    return SCRIPT.format(
        row=row.row,
        edge=finding.edge,
        url=result.request.endpoint.rstrip("/").removesuffix("/v1"),
        body=shlex.quote(json.dumps(body)),
    )
