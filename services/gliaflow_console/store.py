"""The scans that the console shows: its own with their files, and those of other clients with their answers.

The store is bounded (scans, bytes, hours): the oldest scans that have ended are removed first.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from gliaflow.answer import Answer, PackedMask
from gliaflow.scans import Input
from gliaflow_client.out_folder import MASK, OutFolder
from gliaflow_client.table import ScanRow
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import FailureMessage, PredictionMessage, decode, message_id
from gliaflow_runtime.settings import Settings

from gliaflow_console.found_scans import find_scans, sender_text
from gliaflow_console.kept_uploads import KeptUploads
from gliaflow_console.scan_list import Changes, PackedAnswers, ScanList
from gliaflow_console.stored_scan import ScanGrid, StoredScan
from gliaflow_console.temporary_folder import temporary_folder
from gliaflow_console.uploads import Upload

PACKED_BYTES = 64 * 2**20  # of other clients' answers, whose masks are perhaps never shown
OPEN_S = 3600.0  # an upload that is not complete after so long is deleted
EXPIRE_EVERY_S = 10.0


@dataclass(frozen=True)
class Taken:
    """The scans of an upload, and the files that are left out: (name, why)."""

    ids: list[str]
    left_out: list[tuple[str, str]]


class StoreFull(Exception):
    """There is no room for an upload. The text gives the reason and the remedy."""


class ScanStore:
    """All scans of one console. Any thread may call any method; those that read or write files say so.

    With the setting ``console_folder``, own scans and their answers are still there after a restart, and those without
    an answer are queued again. Answers are then also written there as ``gliaflow submit`` writes them. Without that
    setting, all files are in a temporary folder, which ``close`` deletes.

    Raises
    ------
    UsageError: the folder cannot be used. The text names it and the remedy.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._out_lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}  # by scan
        self._open: dict[str, Upload] = {}  # those that are not taken yet, by their own ids
        self._items: dict[str, Input] = {}
        self._packed = PackedAnswers(PACKED_BYTES)
        self._expired_at = 0.0
        self._out: OutFolder | None = None
        with ExitStack() as resources:
            if settings.console_folder is None:
                self.folder = resources.enter_context(temporary_folder())
            else:
                self.folder = settings.console_folder
                self._out = resources.enter_context(OutFolder(self.folder))
            self._kept = KeptUploads(self.folder)
            scans = []
            for upload, its_scans in self._kept.read():
                self._uploads |= {scan.id: upload for scan in its_scans}
                scans += its_scans
            self._list = ScanList(scans)
            self._lock = self._list.lock
            self._make_place()
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder, or delete the temporary one. Writes files."""
        for upload in list(self._open.values()):
            self.discard(upload)
        self._resources.close()

    def __len__(self) -> int:
        return len(self._list)

    @property
    def version(self) -> int:
        """A number that grows with each change of the list."""
        return self._list.version

    @property
    def size(self) -> int:
        """The bytes of all uploads."""
        with self._lock:
            return sum(upload.size for upload in {*self._uploads.values(), *self._open.values()})

    def get(self, id: str) -> StoredScan | None:
        """The scan with this id; None: there is none."""
        return self._list.get(id)

    def newest(self, limit: int, before: str = "") -> list[StoredScan]:
        """See ``ScanList.newest``."""
        return self._list.newest(limit, before)

    def changes(self, since: int) -> Changes:
        """See ``ScanList.changes``."""
        return self._list.changes(since)

    def has_image(self, id: str) -> bool:
        """Whether the scan's file is there."""
        return id in self._uploads

    def has_mask(self, id: str) -> bool:
        """Whether the mask is there."""
        return id in self._packed or self.mask_file(id) is not None

    def item(self, id: str) -> Input | None:
        """The file or the DICOM series of an own scan; None: there is none. Reads files."""
        item, scan, upload = self._items.get(id), self.get(id), self._uploads.get(id)
        if item is None and scan is not None and upload is not None:
            try:
                about = self._kept.about(upload)
                inputs = find_scans(upload, alone=about.alone, series=about.series).inputs
            except (ValueError, OSError, TypeError):
                return None
            item = next((replace(each, id=id) for each in inputs if each.name == scan.name), None)
            if item is not None:
                self._items[id] = item
        return item

    def mask(self, id: str) -> nib.Nifti1Image | None:
        """The mask on the scan's own grid, as ``Answer.mask``; None: there is none. Reads files."""
        if (file := self.mask_file(id)) is not None:
            return nib.load(file)
        message = self._packed.message(id)
        return PackedMask.of(message).image() if message else None

    def mask_file(self, id: str) -> Path | None:
        """The file with the mask of an own scan (.nii.gz); None: there is none."""
        upload = self._uploads.get(id)
        return self._kept.mask_file(upload, id) if upload else None

    def grid(self, id: str) -> ScanGrid | None:
        """The scan's grid in canonical axes, and the volume of its tumour by slice; None: there is no mask."""
        scan = self.get(id)
        if scan is not None and scan.grid is not None:
            return scan.grid
        message = self._packed.message(id)
        return ScanGrid.of(message.mask, message.affine) if message else None

    def table_row(self, id: str) -> dict[str, Any] | None:
        """The scan's row, as ``gliaflow watch`` writes it to ``<scan>.json``; None: it has no answer. Reads files."""
        scan, upload = self.get(id), self._uploads.get(id)
        if scan is None or not scan.ended:
            return None
        return self._kept.table_row(upload, id) if upload else scan.table_row().values()

    def new_upload(self) -> Upload:
        """A new, empty upload, for ``take``. It is discarded if it is not taken within an hour."""
        upload = self._kept.new()
        with self._lock:
            self._open[upload.id] = upload
        return upload

    def open_upload(self, id: str) -> Upload | None:
        """The upload with this id, if it is not taken yet."""
        return self._open.get(id)

    def discard(self, upload: Upload) -> None:
        """Delete an upload that was not taken. Writes files."""
        with self._lock:
            self._open.pop(upload.id, None)
        upload.discard()

    def make_room(self, size: int) -> None:
        """Make room for so many bytes more: the oldest scans that have ended are removed. Writes files.

        Raises
        ------
        StoreFull: the scans in work and the uploads that are not complete need the room, or the disk is full.
        """
        most = int(self._settings.console_gib * 2**30)
        with self._lock:
            while self.size + size > most:
                oldest = next((scan.id for scan in self._list.all() if scan.own and scan.ended), None)
                if oldest is None or size > most:
                    raise StoreFull(
                        f"the console keeps at most {self._settings.console_gib:g} GiB of scans: wait until scans are "
                        "answered, delete some, or raise GLIAFLOW_CONSOLE_GIB"
                    )
                self._remove(oldest)
        if shutil.disk_usage(self.folder).free < size:
            raise StoreFull("the disk of the console's folder is full: delete scans, or make room on that disk")

    def grow(self, upload: Upload, size: int) -> None:
        """Count so many bytes more of an upload, which are being received. Raises as ``make_room``. Writes files."""
        with self._lock:
            self.make_room(size)
            upload.size += size

    def take(self, upload: Upload, *, alone: bool, series: Sequence[str] = ()) -> Taken:
        """Queue the scans of a complete upload for the pipeline. Reads and writes files.

        ``alone``, ``series``: as for ``find_scans``. After an error, the upload is still open.

        Raises
        ------
        NotTaken: there is no scan, or it cannot be read here. The text names files as their sender did.
        StoreFull: there is no room.
        KeyError: the upload was taken or discarded already.
        """
        with self._lock:
            del self._open[upload.id]
        upload.close()
        try:
            found = find_scans(upload, alone=alone, series=series)
            items = [replace(item, id=uuid4().hex) for item in found.inputs]
            scans = [StoredScan.of(item, time.time()) for item in items]
            upload.size = sum(path.stat().st_size for path in upload.files.rglob("*") if path.is_file())
            with self._lock:
                self._make_place(own=len(scans))
                self._kept.add(upload, scans, alone=alone, series=series)
                for scan, item in zip(scans, items, strict=True):
                    self._items[scan.id], self._uploads[scan.id] = item, upload
                    self._list.put(scan)
        except BaseException:
            with self._lock:
                self._open[upload.id] = upload
            upload.reopen()
            raise
        return Taken([scan.id for scan in scans], found.left_out)

    def delete(self, id: str) -> bool:
        """Remove a scan and its files. An answer that comes later is dropped. False: there is none. Writes files.

        The files of a folder are deleted with the last of its scans.
        """
        with self._lock:
            if self.get(id) is None:
                return False
            self._remove(id)
            return True

    def next_queued(self) -> StoredScan | None:
        """The oldest queued scan, whose status is ``working`` now; None: there is none. Writes files."""
        self._expire()
        with self._lock:
            scan = next((scan for scan in self._list.unanswered() if scan.status == "queued"), None)
            if scan is not None:
                scan = replace(scan, status="working")
                self._list.put(scan)
            return scan

    def queue_again(self) -> None:
        """Queue all scans that are in work: the stream of answers has ended before their answers came."""
        with self._lock:
            for scan in self._list.unanswered():
                if scan.status == "working":
                    self._list.put(replace(scan, status="queued", progress=None, graded_parts=frozenset()))

    def answered(self, id: str, answer: Answer) -> None:
        """Store the answer to an own scan, with its mask. Writes files."""
        scan, upload = self.get(id), self._uploads.get(id)
        if scan is None or upload is None:
            return  # deleted meanwhile
        warnings = tuple(sender_text(upload, text) for text in answer.warnings)
        answer = replace(answer, reason=sender_text(upload, answer.reason), warnings=warnings)
        row = ScanRow.of(answer)
        try:
            item = self.item(id)
            if self._out is not None and item is not None:
                with self._out_lock:
                    row = self._out.save_answer(self._out.assign([item])[0], answer)
                    self._out.write_rows({})
            elif answer.packed_mask is not None:
                row = replace(row, mask=scan.name + MASK)
            row = replace(row, source=scan.relative, series=scan.series)
            scan = scan.answered(answer, row)
            size = self._kept.add_answer(upload, scan, answer, row)
        except OSError as error:
            why = f"the answer cannot be stored: {error.strerror}: make room on the disk of the console's folder"
            row = ScanRow.of(Answer.failed(scan.without_file(), why))
            scan, size = scan.answered(answer, row), 0
        with self._lock:
            if self.get(id) is not None:
                upload.size += size
                self._list.put(scan)

    def fail(self, id: str, reason: str) -> None:
        """Store that an own scan cannot be sent. Writes files."""
        if (scan := self.get(id)) is not None:
            self.answered(id, Answer.failed(scan.without_file(), reason))

    def in_work(self) -> bool:
        """Whether an own scan is in work, so that ``graded`` has an effect."""
        return any(scan.status == "working" for scan in self._list.unanswered())

    def graded(self, id: str, part: Sequence[int]) -> None:
        """A part of the scan with this id is graded: [index, count]. Scans of other clients are ignored."""
        with self._lock:
            scan = self.get(id)
            if scan is not None and scan.status == "working" and part[0] not in scan.graded_parts:
                graded = scan.graded_parts | {part[0]}
                self._list.put(replace(scan, progress=min(1.0, len(graded) / part[1]), graded_parts=graded))

    def observed(self, message: PredictionMessage | FailureMessage, body: bytes) -> None:
        """An answer of the pipeline to any client. ``body``: the whole message; only it has the mask.

        The answer to another client's scan becomes a row. An answer to an own scan counts only if that scan has failed
        (its dead letter was sent back): all others come through the sender. Writes files then.
        """
        id = message.scan.id
        if (own := self.get(id)) is not None and own.own:
            if own.status == "failed" and isinstance(message, PredictionMessage):
                self._answer_late(own, body)
            return
        if self._list.was_removed(id):
            return  # an own scan that was deleted
        id = message_id("observed", message.scan.submission, id)
        with self._lock:
            known = self.get(id)
            if known is not None and known.status != "failed" and isinstance(message, FailureMessage):
                return  # a copy of the scan failed after its answer
            if known is None:
                self._make_place(others=1)
            self._list.put(StoredScan.observed(id, message, known.created if known else time.time()))
            if isinstance(message, PredictionMessage):
                self._packed.put(id, body)

    def _answer_late(self, scan: StoredScan, body: bytes) -> None:
        message, item = decode(body), self.item(scan.id) or scan.without_file()
        if isinstance(message, PredictionMessage):
            self.answered(scan.id, Answer.of_prediction(item, message, round(time.time() - scan.created, 3)))

    def _make_place(self, *, own: int = 0, others: int = 0) -> None:
        """Remove the oldest ended scans so that so many more fit, of the console's own and of other clients.

        Of the two kinds, the more numerous loses its oldest, so that neither displaces the other.

        Raises
        ------
        StoreFull: there is no place for the own ones, since too many are in work.
        """
        most = self._settings.console_scans
        excess = len(self) + own + others - most
        if excess <= 0:
            return
        ended = [scan for scan in self._list.all() if scan.ended]
        if own and excess > len(ended):
            raise StoreFull(
                f"the console keeps at most {most} scans, and with {own} more, too many wait for an answer: wait, "
                "upload fewer at once, or raise GLIAFLOW_CONSOLE_SCANS"
            )
        mine, theirs = ([scan.id for scan in ended if scan.own == kind] for kind in (True, False))
        for _ in range(min(excess, len(ended))):
            loses_mine = mine and (not theirs or len(mine) + own > len(theirs) + others)
            self._remove((mine if loses_mine else theirs).pop(0))

    def _remove(self, id: str) -> None:
        """Forget a scan, and delete its files unless another scan of the same upload needs them."""
        self._list.remove(id)
        self._items.pop(id, None)
        self._packed.drop(id)
        upload = self._uploads.pop(id, None)
        if upload is not None and upload not in self._uploads.values():
            upload.discard()

    def _expire(self) -> None:
        """Remove what is too old."""
        now = time.time()
        if now - self._expired_at < EXPIRE_EVERY_S:
            return
        self._expired_at = now
        with self._lock:
            for scan in self._list.all():
                if scan.ended and scan.created < now - 3600 * self._settings.console_hours:
                    self._remove(scan.id)
            unfinished = [upload for upload in self._open.values() if upload.created < now - OPEN_S]
        for upload in unfinished:
            self.discard(upload)
