"""The uploads and answers of the console's own scans on the disk, so that a restart finds them.

``uploads/<upload>/files`` has the files, ``upload.json`` the names of the scans in them, ``<scan>.json`` the answer and
``<scan>.nii.gz`` the mask.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog
from gliaflow.answer import Answer, write_image
from gliaflow_client.table import ScanRow
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import private_folder, write_whole
from gliaflow_runtime.logs import where

from gliaflow_console.stored_scan import StoredScan
from gliaflow_console.uploads import Upload

ABOUT = "upload.json"
MARK = ".gliaflow-console"  # in the folder of the uploads: gliaflow may delete what is there
ID = re.compile(r"[0-9a-f]{32}")
LISTS = ("warnings", "sequences")  # of what is written of a queued scan
PREFIX = re.compile(r"[0-9a-f]{16}")  # of the ids of the scans, in MARK

log = structlog.get_logger()


@dataclass(frozen=True)
class About:
    """What is written of an upload. ``scans``: its queued scans. ``alone``, ``series``: as for ``take``."""

    created: float
    alone: bool
    series: Sequence[str]
    scans: list[dict[str, Any]]


class KeptUploads:
    """The folder ``uploads`` in the console's folder.

    The ids of its scans begin with 16 digits that no other console has. So the console knows an answer to an own scan,
    also to one that was deleted before a restart.

    folder: its path, without links.

    Raises
    ------
    UsageError: it cannot be created, or has files of somebody else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder)) / "uploads"
        remedy = "choose another --out"
        try:
            private_folder(self.folder)
            mark = self.folder / MARK
            if not mark.exists() and any(self.folder.iterdir()):
                raise UsageError(f"{self.folder}: has files that are not the console's: move them, or {remedy}")
            mark.touch(0o600)
            self._changing = threading.Lock()  # one at a time changes ABOUT, or adds or removes an answer
            self._prefix = mark.read_text(encoding="utf-8", errors="replace")
            if not PREFIX.fullmatch(self._prefix):
                self._prefix = uuid4().hex[:16]
                write_whole(mark, self._prefix)
        except OSError as error:
            raise UsageError(f"{self.folder}: {error.strerror}: {remedy}") from None

    def new_id(self) -> str:
        """An id for a scan of this console: 32 hexadecimal digits."""
        return self._prefix + uuid4().hex[:16]

    def is_own(self, id: str) -> bool:
        """Whether ``new_id`` gave this id, now or before a restart."""
        return id.startswith(self._prefix)

    def new(self) -> Upload:
        """A new, empty upload. Raises OSError: there is no room."""
        id = uuid4().hex
        upload = Upload(id, self.folder / id)
        upload.files.mkdir(mode=0o700, parents=True)
        return upload

    def read(self) -> Iterator[tuple[Upload, list[StoredScan]]]:
        """The uploads with their scans. What an earlier console had not received completely is deleted.

        An upload that cannot be read (of a later version, say) is passed over, and stays.
        """
        for folder in sorted(self.folder.iterdir()):
            if not ID.fullmatch(folder.name):
                continue
            upload = Upload(folder.name, folder)
            if not (folder / ABOUT).exists():
                upload.discard()
                continue
            try:
                about = self.about(upload)
                scans = [self._scan(upload, StoredScan(**values)) for values in about.scans]
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("an upload is passed over", folder=folder.name, file=ABOUT, fault=where(error))
                continue
            upload.created = about.created
            upload.measure()
            upload.close()
            yield upload, scans

    def about(self, upload: Upload) -> About:
        """What was written of an upload. Raises OSError, ValueError or TypeError: nothing that can be read."""
        return About(**json.loads((upload.folder / ABOUT).read_text(encoding="utf-8")))

    def add(self, upload: Upload, scans: Iterable[StoredScan], *, alone: bool, series: Sequence[str]) -> None:
        """Write the scans of a complete upload. Raises OSError."""
        known = ("id", "name", "patient", "own", "created", "dicom", "series", "relative", "drawn")
        values = [{name: getattr(scan, name) for name in (*known, *LISTS)} for scan in scans]
        about = About(upload.created, alone, list(series), values)
        write_whole(upload.folder / ABOUT, json.dumps(asdict(about)))

    def drop(self, upload: Upload) -> None:
        """Undo ``add``: the upload is not complete."""
        (upload.folder / ABOUT).unlink(missing_ok=True)

    def remove(self, upload: Upload, scan: str, *, last: bool) -> None:
        """Delete a scan's answer and what is written of it; with ``last``, all files of the upload.

        An OSError is logged. After it, or a kill in between, a restart may queue the scan again.
        """
        with self._changing:
            try:
                if last:
                    self.drop(upload)  # first: without it, an upload is not complete
                    upload.discard()
                    return
                self._remove_answer(upload, scan)  # first: on a full disk, this makes room for what is written
                about = self.about(upload)
                kept = [values for values in about.scans if values["id"] != scan]
                write_whole(upload.folder / ABOUT, json.dumps(asdict(replace(about, scans=kept))))
            except FileNotFoundError:  # deleted meanwhile, with its last scan
                return
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.error("a removed scan is not deleted", folder=upload.id, fault=where(error))

    def add_answer(self, upload: Upload, scan: StoredScan, answer: Answer, row: ScanRow) -> None:
        """Write the answer to a scan, and its mask. Raises OSError."""
        mask, about = (self._place(upload, scan.id, ending) for ending in (".nii.gz", ".json"))
        with self._changing:
            before = _bytes(mask, about)
            if answer.packed_mask is not None and row.mask:
                write_image(mask, answer.mask)
            write_whole(about, json.dumps({"scan": scan.written(), "row": row.values()}))
            upload.count(_bytes(mask, about) - before)

    def remove_answer(self, upload: Upload, scan: str) -> None:
        """Delete a scan's answer and its mask. An OSError is logged."""
        with self._changing:
            try:
                self._remove_answer(upload, scan)
            except OSError as error:
                log.error("the answer to a removed scan is not deleted", folder=upload.id, fault=where(error))

    def _remove_answer(self, upload: Upload, scan: str) -> None:
        mask, answer = (self._place(upload, scan, ending) for ending in (".nii.gz", ".json"))
        size = _bytes(mask, answer)
        answer.unlink(missing_ok=True)
        mask.unlink(missing_ok=True)
        upload.count(-size)

    def mask_file(self, upload: Upload, scan: str) -> Path | None:
        """The file with a scan's mask."""
        path = self._place(upload, scan, ".nii.gz")
        return path if path.exists() else None

    def table_row(self, upload: Upload, scan: str) -> dict[str, Any] | None:
        """A scan's row of ``predictions.csv``."""
        try:
            values = json.loads(self._place(upload, scan, ".json").read_text(encoding="utf-8"))
            return dict(values["row"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _scan(self, upload: Upload, queued: StoredScan) -> StoredScan:
        """The scan with its answer, if there is one."""
        try:
            values = json.loads(self._place(upload, queued.id, ".json").read_text(encoding="utf-8"))
            return StoredScan.read(values["scan"])
        except (OSError, ValueError, KeyError, TypeError):
            return StoredScan(**vars(queued) | {name: tuple(getattr(queued, name)) for name in LISTS})

    def _place(self, upload: Upload, scan: str, ending: str) -> Path:
        return upload.folder / f"{scan}{ending}"


def _bytes(*files: Path) -> int:
    return sum(file.stat().st_size for file in files if file.exists())
