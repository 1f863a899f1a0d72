"""The scans that the console shows: its own with their files, and those of other clients with their answers.

The store is bounded (scans, bytes, hours): the oldest scans that have ended are removed first.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import structlog
from gliaflow.answer import Answer, PackedMask
from gliaflow.scans import Input
from gliaflow.sequences import wanted_sequences
from gliaflow_client.out_folder import MASK, OutFolder
from gliaflow_client.table import ScanRow
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import FailureMessage, PredictionMessage, message_id
from gliaflow_runtime.logs import where
from gliaflow_runtime.settings import Settings

from gliaflow_console.answers_folder import AnswersFolder
from gliaflow_console.bounds import Room, StoreFull, over_count, over_size
from gliaflow_console.found_scans import find_scans, sender_text
from gliaflow_console.kept_uploads import KeptUploads
from gliaflow_console.scan_list import Changes, PackedAnswers, ScanList, prediction
from gliaflow_console.stored_scan import ScanGrid, StoredScan
from gliaflow_console.temporary_folder import temporary_folder
from gliaflow_console.uploads import Upload

PACKED_BYTES = 64 * 2**20  # of other clients' answers, whose masks are perhaps never shown
MOST_OPEN, OPEN_S = 1000, 3600.0  # uploads that are not complete: how many, and how long they are kept
TIDY_EVERY_S = 2.0
SPARE = 2**20  # bytes of the disk: a part of an upload that is being received

log = structlog.get_logger()


@dataclass(frozen=True)
class Taken:
    """The scans of an upload, and the files that are left out: (name, why)."""

    ids: list[str]
    left_out: list[tuple[str, str]]


class ScanStore:
    """All scans of one console. Any thread may call any method; those that read or write files say so.

    With the setting ``console_folder``, scans and answers outlive a restart, scans without an answer are queued again,
    and answers are also written there as ``gliaflow submit`` does. Without it, ``close`` deletes all files.

    ``sequences``: those that are looked for beside the FLAIR. Raises UsageError: the folder cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self.sequences = settings, wanted_sequences(settings)
        self._open: dict[str, Upload] = {}  # those that are not taken yet, by their own ids
        self._items: dict[str, Input] = {}
        self._packed = PackedAnswers(PACKED_BYTES)
        self._out: AnswersFolder | None = None
        with ExitStack() as resources:
            if settings.console_folder is None:
                self.folder = resources.enter_context(temporary_folder())
            else:
                self.folder = settings.console_folder
                self._out = AnswersFolder(resources.enter_context(OutFolder(self.folder)))
            self._kept = KeptUploads(self.folder)
            kept = list(self._kept.read())
            if self._out is not None:
                self._out.restore(self._kept.table_row(upload, scan.id) for upload, scans in kept for scan in scans)
            self._uploads = {scan.id: upload for upload, scans in kept for scan in scans}  # by scan
            self._list = ScanList(scan for _, scans in kept for scan in scans)
            self._lock = self._list.lock
            self.tidy()
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder, or delete the temporary one. Writes files."""
        for upload in list(self._open.values()):
            self.discard(upload)
        with self._resources:
            if self._out is not None:
                self._out.write_table()

    def __len__(self) -> int:
        return len(self._list)

    @property
    def version(self) -> int:
        """A number that grows with each change of the list."""
        return self._list.version

    @property
    def uploads(self) -> Path:
        """The folder of all uploads, without links in its path."""
        return self._kept.folder

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
        item, upload = self._items.get(id), self._uploads.get(id)
        if item is None and upload is not None:
            try:
                about = self._kept.about(upload)
                inputs = find_scans(upload, about.series, self.sequences, alone=about.alone).inputs
            except (ValueError, OSError, TypeError):
                return None
            by_name = {each.name: each for each in inputs}
            with self._lock:  # all scans of the upload: each search reads the whole folder
                for scan in self._list.all():
                    if self._uploads.get(scan.id) is upload and scan.name in by_name:
                        self._items[scan.id] = replace(by_name[scan.name], id=scan.id)
                item = self._items.get(id)
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
        """The scan's grid in canonical axes, and the volume of its tumour by slice; None: it has no answer with a mask.

        Another client's mask is unpacked for it once, which takes time and memory.
        """
        scan = self.get(id)
        if scan is None or scan.grid is None or scan.grid.slice_ml is not None:
            return scan.grid if scan else None
        message = self._packed.message(id)
        if message is None:
            return scan.grid
        grid = ScanGrid.of(message.mask, message.affine)
        with self._lock:
            if self.get(id) is scan:
                self._list.put(replace(scan, grid=grid))
        return grid

    def table_row(self, id: str) -> dict[str, Any] | None:
        """The scan's row, as ``gliaflow watch`` writes it to ``<scan>.json``; None: it has no answer. Reads files."""
        scan, upload = self.get(id), self._uploads.get(id)
        if scan is None or not scan.ended:
            return None
        return (self._kept.table_row(upload, id) if upload else None) or scan.table_row().values()

    def new_upload(self) -> Upload:
        """A new, empty upload, for ``take``. It is discarded if it is not taken within an hour.

        Raises
        ------
        StoreFull: too many are not complete.
        """
        if len(self._open) >= MOST_OPEN:
            raise StoreFull(f"{MOST_OPEN} uploads are not complete: complete or cancel them (DELETE /api/folders/ID)")
        upload = self._kept.new()
        with self._lock:
            self._open[upload.id] = upload
        return upload

    def open_upload(self, id: str) -> Upload | None:
        """The upload with this id, if it is not taken yet."""
        return self._open.get(id)

    def discard(self, upload: Upload) -> bool:
        """Delete an upload that was not taken. False: it was taken or discarded meanwhile. Writes files."""
        with self._lock:
            known = self._open.pop(upload.id, None) is not None
        if known:
            upload.discard()
        return known

    def make_room(self, size: int, upload: Upload | None = None) -> None:
        """Make room for so many bytes more, of this upload: the oldest ended scans are removed. Writes files.

        Raises
        ------
        StoreFull: scans in work and incomplete uploads need the room, or the disk is full. All scans stay.
        """
        total, free = size + (upload.size if upload else 0), shutil.disk_usage(self.folder).free - max(size, SPARE)
        with self._lock:
            room = Room(self.size + size, total, self._settings.console_gib, free)
            dropped = self._remove(over_size(self._list.all(), self._uploads, room))
        self._delete(dropped)

    def take(self, upload: Upload, *, alone: bool, series: Sequence[str] = (), drawn: str = "") -> Taken:
        """Queue the scans of a complete upload for the pipeline. Reads and writes files.

        ``alone``, ``series``: as for ``find_scans``. ``drawn``: a phantom's class. An error leaves the upload open.

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
            found = find_scans(upload, series, self.sequences, alone=alone)
            items = [replace(item, id=self._kept.new_id()) for item in found.inputs]
            scans = [StoredScan.of(item, time.time(), drawn) for item in items]
            self._kept.add(upload, scans, alone=alone, series=series)
            upload.measure()
            with self._lock:
                dropped = self._remove(over_count(self._list.all(), self._settings.console_scans, own=len(scans)))
                for scan, item in zip(scans, items, strict=True):
                    self._items[scan.id], self._uploads[scan.id] = item, upload
                    self._list.put(scan)
        except BaseException:
            self._kept.drop(upload)
            with self._lock:
                self._open[upload.id] = upload
            upload.reopen()
            raise
        self._delete(dropped)
        return Taken([scan.id for scan in scans], found.left_out)

    def delete(self, id: str) -> bool:
        """Remove a scan, its answer, and, with the last scan of its upload, the upload. False: there is none.

        An answer that comes later is dropped. Writes files.
        """
        with self._lock:
            if self.get(id) is None:
                return False
            dropped = self._remove([id])
        self._delete(dropped)
        return True

    def next_queued(self) -> StoredScan | None:
        """The oldest queued scan, whose status is ``working`` now; None: there is none."""
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
        try:
            scan = self._write_answer(scan, upload, answer)
        except Exception as error:  # the scan must not wait for ever
            log.error("an answer is not stored", fault=where(error))
            scan = scan.not_stored(error, answer)
        with self._lock:
            if self.get(id) is not None:
                self._list.put(scan)
                return
        self._kept.remove_answer(upload, id)  # the scan was deleted while its answer was written

    def _write_answer(self, scan: StoredScan, upload: Upload, answer: Answer) -> StoredScan:
        """Write the answer into the folders; returns the scan with it."""
        row, item = ScanRow.of(answer), self.item(scan.id)
        if self._out is not None and item is not None:
            row = self._out.save(item, answer)
        elif answer.packed_mask is not None:
            row = replace(row, mask=scan.name + MASK)
        row = replace(row, source=scan.relative, series=scan.series)
        sent = tuple(item.sequences) if item is not None else scan.sequences  # another bundle may read others
        scan = replace(scan.answered(answer, row), sequences=sent)
        self._kept.add_answer(upload, scan, answer, row)
        return scan

    def fail(self, id: str, reason: str) -> None:
        """Store that an own scan cannot be sent. One that has ended stays as it is. Writes files."""
        scan = self.get(id)
        if scan is not None and not scan.ended:
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
        if self._kept.is_own(id):  # or it was: then it was deleted
            own = self.get(id)
            if own is not None and own.status == "failed" and (whole := prediction(body)):
                late = Answer.of_prediction(self.item(id) or own.without_file(), whole, 0.0)
                self.answered(id, replace(late, seconds=None))  # most of the time passed while a dead letter waited
            return
        id = message_id("observed", message.scan.submission, id)
        with self._lock:
            known = self.get(id)
            if known is not None and known.status != "failed" and isinstance(message, FailureMessage):
                return  # a copy of the scan failed after its answer
            places = [] if known else over_count(self._list.all(), self._settings.console_scans, others=1)
            dropped = self._remove(places)
            self._list.put(StoredScan.observed(id, message, known.created if known else time.time()))
            if isinstance(message, PredictionMessage):
                self._packed.put(id, body)
        self._delete(dropped)

    def keep_tidy(self, stopping: threading.Event) -> None:
        """The loop of a thread."""
        while not stopping.wait(TIDY_EVERY_S):
            self.tidy()

    def tidy(self) -> None:
        """Remove what is too old or over a bound, and write the table of the answers. Reads and writes files."""
        now = time.time()
        too_old = now - 3600 * self._settings.console_hours
        with self._lock:
            old = [scan.id for scan in self._list.all() if scan.ended and scan.created < too_old]
            dropped = self._remove(old)
            dropped |= self._remove(over_count(self._list.all(), self._settings.console_scans))
            unfinished = [upload for upload in self._open.values() if upload.created < now - OPEN_S]
        self._delete(dropped)
        for upload in unfinished:
            self.discard(upload)
        if self._out is not None:
            self._out.write_table()

    def _remove(self, ids: Iterable[str]) -> dict[str, Upload]:
        """Forget scans; returns the own ones with their uploads, for ``_delete`` without the lock."""
        dropped = {}
        for id in ids:
            self._list.remove(id)
            self._items.pop(id, None)
            self._packed.drop(id)
            if upload := self._uploads.pop(id, None):
                dropped[id] = upload
        return dropped

    def _delete(self, dropped: Mapping[str, Upload]) -> None:
        """Delete the files of scans that were removed, so that a restart does not find them. Writes files."""
        for id, upload in dropped.items():
            self._kept.remove(upload, id, last=upload not in self._uploads.values())
