"""A folder in which scans appear: which of them have no answer yet, and the file with each answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from gliaflow.scans import Found, Input, NoScanError, ScanRequest, find_inputs
from gliaflow_plugins.cohorts.dicom_scans import as_series
from gliaflow_plugins.cohorts.scan_files import LocalFiles
from gliaflow_plugins.cohorts.walk import status_of, walk
from gliaflow_plugins.left_out import LeftOut
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.visible import visible

from gliaflow_client.out_folder import OutFolder, Target
from gliaflow_client.table import ScanRow

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import KnownImages

SETTLED_S = 2.0  # a file that has not changed for so long has been copied completely
SLOW_S, SEARCH_SHARE = 1.0, 0.2  # a search that takes longer is repeated for this share of the time at most
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

    ``dicom_settle_s``: a study is searched when none of its files has changed for so long.
    ``sequences``: those to look for beside the FLAIR, as for ``ScanRequest``.
    """

    def __init__(self, path: Path, out: OutFolder, dicom_settle_s: float = 30.0, sequences: Sequence[str] = ()) -> None:
        self._path, self._out, self._dicom_settle_s = path, out, dicom_settle_s
        self._request = ScanRequest(sequences=tuple(sequences))
        self._left_out: list[LeftOut] = []
        self._listed: set[PurePath] | None = None  # the paths in the list of the files that are left out
        self._all_answered: object = None  # the files in both folders when each scan had its answer
        self._known: KnownImages = {}  # so that a search reads only files that are new
        self._due = 0.0  # by time.monotonic: the next search is not before it, while scans are being copied

    def new_scans(self) -> NewScans:
        """The scans that have no answer yet. If no file changed since all were answered, that takes no search.

        While scans are being copied, a search of many files is not repeated each second.
        """
        files = self._files()
        if files == self._all_answered:
            return NewScans([], self._left_out)
        started = time.monotonic()
        if started < self._due:
            return NewScans([], self._left_out)
        try:
            found = find_inputs([self._path], self._request, known=self._known)
        except UsageError as error:  # no scan yet
            found = Found([], error.left_out if isinstance(error, NoScanError) else [])
        copied = _Copied(self._path, self._dicom_settle_s)
        left_out = [left for left in found.left_out if not self._out.owns(left.path)]
        self._left_out = [left for left in left_out if not copied.may_change(left)]
        targets, waiting = [], len(self._left_out) < len(left_out)
        for target in self._out.assign([item for item in found.inputs if not self._out.owns(item.path)]):
            complete = self._out.has_file(target.scan, JSON) and not self._out.has_lost_row(target.scan)
            if complete and self._out.is_unchanged(target):
                continue
            if not copied.is_complete(target.item):
                waiting = True
            elif not (complete and self._out.has_same_content(target)):
                targets.append(target)
        self._all_answered = None if targets or waiting else files
        took = time.monotonic() - started
        self._due = started + took / SEARCH_SHARE if waiting and not targets and took > SLOW_S else 0.0
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


class _Copied:
    """Which scans of an inbox have been copied completely."""

    def __init__(self, inbox: Path, dicom_settle_s: float) -> None:
        self._dicom_settle_s = dicom_settle_s
        self._inbox = Path(os.path.abspath(inbox))  # noqa: PTH100 - as ``find_inputs`` names files: links stay

    @cached_property
    def _fresh_folders(self) -> set[Path]:
        """The folders in the inbox under which a file changed within ``dicom_settle_s``."""
        files = walk(self._inbox, [])
        return {
            self._folder_of(path) for path, status in files.items() if not _is_settled(status, self._dicom_settle_s)
        }

    def is_complete(self, item: Input) -> bool:
        """Whether the scan's files, and those of the sequences that are sent with it, have not changed for a while.

        A DICOM series waits for all files in the inbox's folder in which it is: a study is copied file by file, and
        which series is FLAIR depends on the others. A series whose files are not in a folder waits for its own files.
        """
        if (series := as_series(item.volume)) is None:
            files = {item.path, *(each.path for each in item.sequences.values())}
            return all(_is_settled(status_of(path), SETTLED_S) for path in files)
        if not all(_is_settled(status_of(path), self._dicom_settle_s) for path in series.paths):
            return False
        folders = {self._folder_of(path) for path in series.paths} - {self._inbox}
        return folders.isdisjoint(self._fresh_folders)

    def may_change(self, left: LeftOut) -> bool:
        """Whether it is DICOM that is left out, in a folder in which files are being copied."""
        return left.kind.startswith("DICOM") and self._folder_of(Path(left.path, "file")) in self._fresh_folders

    def _folder_of(self, path: Path) -> Path:
        inside = path.relative_to(self._inbox).parts
        return self._inbox.joinpath(*inside[:1]) if len(inside) > 1 else self._inbox


def _is_settled(status: os.stat_result | None, settled_s: float) -> bool:
    if status is None:  # it was removed
        return False
    changed = max(status.st_mtime_ns, status.st_ctime_ns)  # written, or moved into place
    return abs(time.time_ns() - changed) > settled_s * 1e9  # abs: the clock may have been set back
