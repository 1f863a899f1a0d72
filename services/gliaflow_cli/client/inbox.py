"""A folder in which scans appear: which of them have no answer yet, and the file with each answer."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gliaflow.places import search
from gliaflow.scans import Found, find_inputs
from gliaflow_plugins.cohorts.walk import LeftOut
from gliaflow_runtime.errors import UsageError

from gliaflow_cli.client.out_folder import OutFolder, Target, readable
from gliaflow_cli.client.table import ScanRow

SETTLED_S = 2.0  # a file that has not changed for so long has been copied completely
JSON = ".json"


@dataclass(frozen=True)
class NewScans:
    """The scans of an inbox without an answer, and all files that are left out."""

    targets: list[Target]
    left_out: list[LeftOut]


def new_scans(inbox: Path, out: OutFolder) -> NewScans:
    """The scans that have no answer yet.

    A scan is answered if its ``<scan>.json`` exists and the scan has not changed since. So a restart answers nothing
    twice, and a scan that is dropped again into its place is answered again.
    """
    try:
        files = find_inputs([inbox])
    except UsageError:  # no scan yet
        files = Found([], search([str(inbox)]).left_out if inbox.is_dir() else [])
    targets = out.assign([item for item in files.inputs if not out.owns(item.path)])
    new = [target for target in targets if not _is_answered(target, out) and _is_settled(target.item.path)]
    return NewScans(new, [left for left in files.left_out if not out.owns(left.path)])


def write_answer(out: OutFolder, row: ScanRow) -> None:
    """Write ``<scan>.json``, whole: the fields of the row."""
    text = json.dumps(row.values(), indent=2) + "\n"
    out.save(row.scan, row.scan, JSON, lambda part: part.write_text(text, encoding="utf-8"))


def list_left_out(out: OutFolder, left_out: Collection[LeftOut]) -> str:
    """Write ``left_out.txt``, a line for each file with the reason, and return its name."""
    lines = sorted(f"{readable(str(left.path))}: {left.why}" for left in left_out)
    return out.save("", "left_out", ".txt", lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _is_answered(target: Target, out: OutFolder) -> bool:
    return out.is_unchanged(target) and out.has_file(target.scan, JSON) and not out.has_lost_row(target.scan)


def _is_settled(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:  # it was removed
        return False
    changed = max(status.st_mtime_ns, status.st_ctime_ns)  # written, or moved into place
    return abs(time.time_ns() - changed) > SETTLED_S * 1e9  # abs: the clock may have been set back
