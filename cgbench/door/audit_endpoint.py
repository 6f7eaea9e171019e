"""Offer ``cgbench.audit_endpoint``: does a server answer alike in every batch of its plan?"""

from os import PathLike
from pathlib import Path

from cgbench.endpoint.edge_findings import EndpointResult
from cgbench.endpoint.edge_repro import failed_edge, write_edge_repro
from cgbench.endpoint.endpoint_request import EndpointRequest
from cgbench.endpoint.served_audit import audit_server
from cgbench.errors import OutputError
from cgbench.progress import SILENT, Progress
from cgbench.rundir.folders import EMPTY_FOLDER, check_new_folder


def audit_endpoint(
    request: EndpointRequest,
    *,
    repro: "str | PathLike[str] | None" = None,
    progress: Progress = SILENT,
) -> EndpointResult:
    """Check that a server answers each request in a full batch as it does alone.

    A wrong answer is a finding of the result, and raises nothing. ``repro`` is a new folder for one
    edge that failed.

    Raise ``BadInputError`` for a bad request, and ``EndpointError`` if there is no such server.
    """
    folder = None if repro is None else Path(repro)
    if folder is not None:
        check_new_folder("--repro", folder, EMPTY_FOLDER)
    result = audit_server(request, progress)
    finding = failed_edge(result)
    if folder is not None and finding is not None:
        try:
            write_edge_repro(folder, result, finding)
            progress.say(f"edge {finding.edge} is in {folder}")
        except OutputError as error:
            # Printed, not raised, because the failed edge matters more.
            progress.say(f"error: {error}")
    return result
