"""The results as Markdown, to paste into docs/results.md, and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One contender at one width.

    ``ratios``: to the bare loop of the same round. ``cpu_ms``: CPU milliseconds a slice, of all its processes.
    ``differing``: how many of the ``pixels`` of its masks are not those of the bare loop.
    """

    network: str
    contender: str
    slices_per_second: list[float]
    ratios: list[float]
    cpu_ms: list[float]
    differing: int
    pixels: int


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| network | | slices a second (median) | ratio to the bare loop: median (range) | CPU ms a slice (median) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f}–{max(row.ratios):.2f})"
        rate, cpu = statistics.median(row.slices_per_second), statistics.median(row.cpu_ms)
        lines.append(f"| {row.network} | {row.contender} | {_short(rate)} | {spread} | {_short(cpu)} |")
    return "\n".join(lines)


def _short(number: float) -> str:
    """Three digits, and all those before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows])
