"""A folder in which scans appear: which of them have no answer yet, and the file with each answer."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path, PurePath

from gliaflow.scans import Found, NoScanError, find_inputs
from gliaflow_plugins.cohorts.scan_files import LocalFiles
from gliaflow_plugins.cohorts.walk import LeftOut, walk
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.visible import visible

from gliaflow_cli.client.out_folder import OutFolder, Target
from gliaflow_cli.client.table import ScanRow

SETTLED_S = 2.0  # a file that has not changed for so long has been copied completely
JSON, LIST = ".json", ".txt"


@dataclass(frozen=True)
class NewScans:
    """The scans of an inbox without an answer, and all files that are left out."""

    targets: list[Target]
    left_out: list[LeftOut]


class Inbox:
    """The folder ``path``, whose scans are answered in ``out``.

    A scan is answered if its ``<scan>.json`` exists and the scan has not changed since. So a restart answers nothing
    twice, and a scan that is dropped again into its place is answered again.
    """

    def __init__(self, path: Path, out: OutFolder) -> None:
        self._path, self._out = path, out
        self._left_out: list[LeftOut] = []
        self._listed: set[PurePath] | None = None  # the paths in the list of the files that are left out
        self._all_answered: object = None  # the files in both folders when each scan had its answer

    def new_scans(self) -> NewScans:
        """The scans that have no answer yet. If no file changed since all were answered, that takes no search."""
        files = self._files()
        if files == self._all_answered:
            return NewScans([], self._left_out)
        try:
            found = find_inputs([self._path])
        except UsageError as error:  # no scan yet
            found = Found([], error.left_out if isinstance(error, NoScanError) else [])
        self._left_out = [left for left in found.left_out if not self._out.owns(left.path)]
        targets, waiting = [], False
        for target in self._out.assign([item for item in found.inputs if not self._out.owns(item.path)]):
            complete = self._out.has_file(target.scan, JSON) and not self._out.has_lost_row(target.scan)
            if complete and self._out.is_unchanged(target):
                continue
            if not _is_settled(target.item.path):
                waiting = True
            elif not (complete and self._out.has_same_content(target)):
                targets.append(target)
        self._all_answered = None if targets or waiting else files
        return NewScans(targets, self._left_out)

    def list_left_out(self) -> str:
        """If other files than before are left out, write ``left_out.txt`` and return its name; else return nothing.

        The list has a line for each file with the reason.
        """
        paths = {left.path for left in self._left_out}
        if paths == self._listed or not (paths or self._out.has_file("", LIST)):
            return ""
        self._listed = paths
        lines = sorted(visible(f"{left.path}: {left.why}") + "\n" for left in self._left_out)
        return self._out.save("", "left_out", LIST, lambda part: part.write_text("".join(lines), encoding="utf-8"))

    def _files(self) -> tuple[object, ...]:
        """The files in the inbox with their sizes and times, and the names in the folder of the answers."""
        left_out: list[LeftOut] = []
        files = {
            str(path): status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            for path, status in walk(self._path, left_out).items()
        }
        return files, left_out, sorted(LocalFiles().names(self._out.path))


def write_answer(out: OutFolder, row: ScanRow) -> None:
    """Write ``<scan>.json``, whole: the fields of the row."""
    text = json.dumps(row.values(), indent=2) + "\n"
    out.save(row.scan, row.scan, JSON, lambda part: part.write_text(text, encoding="utf-8"))


def _is_settled(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:  # it was removed
        return False
    changed = max(status.st_mtime_ns, status.st_ctime_ns)  # written, or moved into place
    return abs(time.time_ns() - changed) > SETTLED_S * 1e9  # abs: the clock may have been set back
