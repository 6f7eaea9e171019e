"""Show the surface of iteration times: what was measured, and what is predicted between."""

from collections.abc import Sequence

from cgbench.advice.cell_times import At
from cgbench.advice.surface import Surface, SurfaceCell
from cgbench.inputs import JsonObject
from cgbench.tables.part import Part

HEADINGS = ("context [tok]", "batch [req]", "k", "iteration, wall [ms]", "interval", "told by")


def surface_part(surface: Surface, places: Sequence[At]) -> Part:
    """Return a table with a row for each place that the surface holds."""
    return Part(
        f"Iteration time, scope {surface.times.scope}",
        HEADINGS,
        tuple(map(_row, _cells(surface, places))),
        ("told by",),
    )


def error_line(surface: Surface) -> str:
    """Return a line on how well the measured cells are predicted from each other."""
    median, worst = f"{surface.median_error:.1%}", f"{surface.worst_error:.1%}"
    return (
        f"each of {len(surface.left_out)} measured cells between others, left out and predicted "
        f"from them: off by {median} (median) and {worst} (worst)"
    )


def surface_facts(surface: Surface, places: Sequence[At]) -> JsonObject:
    """Return the surface for JSON, in milliseconds."""
    return {
        "left_out_median_error": surface.median_error,
        "left_out_worst_error": surface.worst_error,
        "cells": [
            {
                **cell.at._asdict(),
                "wall_ms": cell.seconds.value * 1e3,
                "low_ms": cell.seconds.low * 1e3,
                "high_ms": cell.seconds.high * 1e3,
                "is_measured": cell.is_measured,
            }
            for cell in _cells(surface, places)
        ],
    }


def _cells(surface: Surface, places: Sequence[At]) -> list[SurfaceCell]:
    found = map(surface.cell, places)
    return [cell for cell in found if cell is not None]


def _row(cell: SurfaceCell) -> tuple[str, ...]:
    value, low, high = (
        1e3 * each for each in (cell.seconds.value, cell.seconds.low, cell.seconds.high)
    )
    return (
        *map(str, cell.at),
        f"{value:.3f}",
        f"{low:.3f} to {high:.3f}",
        "measured" if cell.is_measured else "predicted",
    )
