"""The folder of the answers: the table, the mask and the DICOM objects of each scan, and the record of these files.

A scan is known by its place, not by its file name. No two scans share a file, and gliaflow overwrites only files that
it wrote and that nobody changed since.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gliaflow.answer import Answer, as_gzip
from gliaflow.flow import Flow
from gliaflow.scans import Input, find_series
from gliaflow_plugins.cohorts.dicom_scans import as_series
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import whole_file

from gliaflow_client.record import Record, ScanState, free_name, name_key, readable, scan_sha256, sha256_of
from gliaflow_client.table import ANSWERED, TABLE, ScanRow, read_table, write_table

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.series import DicomSeries

MASK = "_seg.nii.gz"
SEGMENTATION, REPORT, CAPTURE = OBJECTS = ("_seg.dcm", "_sr.dcm", "_sc.dcm")  # of the answer to a DICOM series
NO_OBJECTS = "no DICOM answer: "
NOT_AGAIN = "not answered again: "
VALUES = ("status", "grade", "p_hgg", "tumour_ml", "slices")  # of a row: nobody else can know them
WRITE_EVERY_S = 2.0  # the whole table is written each time, so not after each of ten thousand scans
Places = dict[tuple[str, str], list[str]]  # names of scans, by ScanState.place


@dataclass(frozen=True)
class Target:
    """A scan and the name of its answers in the folder. ``note``: why that is not the scan's own name."""

    item: Input
    scan: str
    state: ScanState
    note: str = ""

    @property
    def place(self) -> str:
        """The scan's path or URI, for messages."""
        return self.item.source


class OutFolder:
    """The folder ``path``, for one command at a time. Close it: ``with`` does.

    ``capture``: also write a secondary capture of the answer to a DICOM series, a picture that every viewer shows.

    Raises
    ------
    UsageError: it is not a folder, another command writes into it, or its table cannot be read.
    """

    def __init__(self, path: Path, *, capture: bool = False) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"--out {path}: not a folder") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UsageError(f"--out {path}: cannot be created ({reason}); name a folder you can write to") from None
        self.path, self._capture = path, capture
        self._record = Record(path)
        self._new: dict[str, ScanRow] = {}  # rows that the table on the disk does not have yet
        self._decided: set[str] = set()  # rows that it has still, of studies whose series is chosen now
        self._table, self._table_stamp = TABLE, _stamp(path / TABLE)
        self.notes: list[str] = []  # what was restored in the table
        try:
            self.rows = self._read_table()
        except BaseException:
            self._record.close()
            raise
        self._lost = self._record.not_in_table - self.rows.keys()

    @property
    def table(self) -> Path:
        """The table's file: ``predictions.csv``, or another if the user made that one unreadable during the run."""
        return self.path / self._table

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._record.close()

    def assign(self, inputs: Sequence[Input]) -> list[Target]:
        """Give each scan the name that it has in this folder, or a new one that no other scan has.

        A scan is known by its place. If its folder was moved, it is known by its relative path and its content.
        """
        states = [ScanState.of(item) for item in inputs]
        places, moved = self._known_places({state.location for state in states})
        series = [(name, known) for name, known in self._record.scans.items() if known.series]
        taken = {name_key(name) for name in (*self._record.scans, *self.rows)}
        given: set[str] = set()
        targets = []
        for item, state in zip(inputs, states, strict=True):
            known = [name for name in places[state.place] if name not in given]
            if not known:
                known = [name for name, other in series if state.is_same_series(other) and name not in given]
            if not known and (names := [name for name in moved[state.source] if name not in given]):
                digest = scan_sha256(item)
                known = [name for name in names if digest and self._record.scans[name].sha256 == digest]
            if not known and self._is_unrecorded_row_of(item, state) and item.name not in given:
                known = [item.name]
            if known:
                name, note = item.name if item.name in known else known[-1], ""
            else:
                name = free_name(item.name, taken)
                other = f"another scan in {self.path} is named {item.name}; this scan's answers are named {name}"
                note = "" if name == item.name else other
            given.add(name)
            taken.add(name_key(name))
            targets.append(Target(item, name, state, note))
        return targets

    def is_answered(self, target: Target) -> bool:
        """Whether the table has an answer of the scan as it is now, and the mask and the DICOM objects are there."""
        row = self.rows.get(target.scan)
        has_mask = row is not None and row.mask != "" and (self.path / row.mask).is_file()
        return has_mask and self._has_objects(target) and self._has_valid_row(target)

    def row(self, scan: str) -> ScanRow:
        """The scan's row, as the table has it or will have it."""
        return self._new.get(scan) or self.rows[scan]

    def has_lost_row(self, scan: str) -> bool:
        """Whether a run was killed between the scan's answer and the writing of the table."""
        return scan in self._lost

    def restore_row(self, row: ScanRow) -> None:
        """Have the next ``write_rows`` write the row of an answer that was written before."""
        self._new[row.scan] = row

    def is_unchanged(self, target: Target) -> bool:
        """Whether the scan has the sizes and times that it had when it was answered."""
        now, known = target.state, self._record.scans.get(target.scan)
        same = known is not None and (*known.place, known.channel, known.stamp) == (*now.place, now.channel, now.stamp)
        return same and now.stamp != ""

    def has_same_content(self, target: Target) -> bool:
        """Whether the scan's files have the bytes that were answered. Their times are recorded for the next check."""
        known = self._record.scans.get(target.scan)
        if known is None or known.sha256 == "" or known.channel != target.state.channel:
            return False
        if known.sha256 != scan_sha256(target.item) or ScanState.of(target.item) != target.state:
            return False
        self._record.add_times(target.scan, replace(known, location=target.state.location, stamp=target.state.stamp))
        return True

    def has_file(self, scan: str, ending: str) -> bool:
        """Whether a file with this ending, which gliaflow wrote for the scan, still exists."""
        return any((self.path / file).exists() for file in self._record.files_of(scan, ending))

    def owns(self, path: PurePath) -> bool:
        """Whether gliaflow wrote a file of this name into this folder."""
        return self._record.owns(path)

    def recorded_input(self, scan: str) -> Input | None:
        """The scan of an earlier submission; None if it is no longer as it was when it was answered."""
        state = self._record.scans.get(scan)
        if state is None:
            return None
        if state.series:
            found = find_series(Path(state.location), state.series)
            item = replace(found, relative=state.source) if found else None
            return item if item and ScanState.of(item).stamp == state.own_stamp else None
        uri = state.location if "://" in state.location else ""
        item = Input(Path(state.location), scan, "", channel=state.channel or None, uri=uri, relative=state.source)
        return item if state.stamp and ScanState.of(item).stamp == state.own_stamp else None

    def keep(self, targets: Iterable[Target]) -> None:
        """Keep the answers of these scans, with the patient and the true grade that the scans come with now."""
        for target in targets:
            row = self.rows[target.scan]
            item = target.item
            self._decide(target)
            kept = replace(row, patient=item.patient, source=readable(target.state.source))
            kept = replace(kept, true_grade=item.grade or row.true_grade)
            if kept != row:
                self._new[row.scan] = kept
            known = self._record.scans[target.scan]  # it may have been moved, or touched
            self._record.add_scan(target.scan, replace(target.state, sha256=known.sha256))
        self.write_rows({})

    def answer(
        self,
        flow: Flow,
        targets: Sequence[Target],
        answered: Callable[[Target, Answer, ScanRow], None] = lambda target, answer, row: None,
    ) -> None:
        """Submit scans. Write each mask as its answer comes, and the table every few seconds and at the end.

        ``answered`` is called for each answer, after its mask is written. If an unchanged scan fails that has an
        answer, the table keeps the answer with a warning; ``answered`` gets the failure.

        Raises
        ------
        BrokerError: as ``Flow.submit_all``.
        """
        by_name = {target.item.name: target for target in targets}
        order = {target.scan: number for number, target in enumerate(targets) if target.scan not in self.rows}
        written = 0.0
        try:
            for answer in flow.submit_all([target.item for target in targets]):
                target = by_name[answer.scan]
                row = self.save_answer(target, answer)
                if time.monotonic() - written > WRITE_EVERY_S:
                    self.write_rows(order)
                    written = time.monotonic()
                answered(target, answer, row)
        finally:
            try:
                self.write_rows(order)
            except KeyboardInterrupt:  # further ones are ignored
                self.write_rows(order)
                raise

    def save(self, scan: str, stem: str, ending: str, write: Callable[[Path], object]) -> str:
        """Write a file of a scan, and return its name: another one if a file of the user has ``<stem><ending>``.

        A file that belongs to no scan has an empty ``scan``.
        """
        names = (f"{stem}_gliaflow{number if number > 1 else ''}{ending}" for number in count(1))
        file = stem + ending
        while not self._record.may_write(file, scan):
            file = next(names)
        self._write(file, scan, write, ending)
        return file

    def _write(self, file: str, scan: str, write: Callable[[Path], object], ending: str) -> None:
        with whole_file(self.path / file, ending=f".part{ending}") as part:
            write(part)
            self._record.add_file(file, scan, sha256_of(part))  # before the file has its name

    def save_answer(self, target: Target, answer: Answer) -> ScanRow:
        """Write the mask and the DICOM objects of an answer, and return its row, which ``write_rows`` writes.

        If an unchanged scan fails that has an answer, the table keeps the answer with a warning.
        """
        scan, item = target.scan, target.item
        row = replace(ScanRow.of(answer), scan=scan, source=readable(target.state.source))
        row = replace(row, true_grade=item.grade or "", series=item.series)
        written: list[str] = []
        if (mask := answer.mask) is not None:
            try:
                row, file = self._saved(row, MASK, lambda part: part.write_bytes(as_gzip(mask)))
                row = replace(row, mask=file)
                written.append(file)
            except OSError as error:
                failed = ScanRow.of(Answer.failed(item, f"mask not written: {error.strerror}", answer.seconds))
                row = replace(failed, scan=scan, source=row.source, true_grade=row.true_grade, series=row.series)
        if row.status in ANSWERED and (series := as_series(item.volume)):
            row = self._with_objects(row, series, answer, written)
        if row.status == "failed" and self._has_valid_row(target):
            before = self.rows[scan]
            warnings = [each for each in before.warnings if not each.startswith(NOT_AGAIN)]
            self._new[scan] = replace(before, warnings=(*warnings, NOT_AGAIN + row.error))
            return row
        self._new[scan] = row
        self._decide(target)
        for ending in (MASK, *OBJECTS):  # the files of an answer that this one replaces
            for file in self._record.files_of(scan, ending):
                if file not in written and self._record.wrote(self.path / file):
                    (self.path / file).unlink(missing_ok=True)
        unchanged = ScanState.of(item) == target.state
        self._record.add_scan(scan, replace(target.state, sha256=scan_sha256(item) if unchanged else ""))
        self._record.add_answer(scan, {name: getattr(row, name) for name in VALUES})
        return row

    def _decide(self, target: Target) -> None:
        """Drop the failed row of a study of which several series may be FLAIR, if this is the one that was chosen."""
        if (series := as_series(target.item.volume)) and not series.choices:
            self._decided |= self._record.undecided(series.study) - {target.scan}

    def _has_valid_row(self, target: Target) -> bool:
        row = self.rows.get(target.scan)
        answered = row is not None and row.status in ANSWERED
        return answered and (self.is_unchanged(target) or self.has_same_content(target))

    def _has_objects(self, target: Target) -> bool:
        """Whether the DICOM objects of the scan are there, if it is a DICOM series of which they could be made."""
        wanted = OBJECTS if self._capture else (SEGMENTATION, REPORT)
        if not target.item.series or any(each.startswith(NO_OBJECTS) for each in self.rows[target.scan].warnings):
            return True
        return all(self.has_file(target.scan, ending) for ending in wanted)

    def _with_objects(self, row: ScanRow, series: DicomSeries, answer: Answer, written: list[str]) -> ScanRow:
        """The row, after the DICOM objects of its answer are written; a warning says why one cannot be made."""
        from gliaflow_dicom.objects.make import make_objects
        from gliaflow_plugins.dicom.headers import quiet

        try:
            for ending, dataset in make_objects(series, answer, capture=self._capture).items():
                with quiet():
                    row, file = self._saved(row, ending, partial(dataset.save_as, enforce_file_format=True))
                written.append(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return replace(row, warnings=(*row.warnings, f"{NO_OBJECTS}{reason}"))
        except Exception as error:  # the DICOM libraries raise many types; their texts quote headers
            return replace(
                row, warnings=(*row.warnings, f"{NO_OBJECTS}a header cannot be written ({type(error).__name__})")
            )
        return row

    def _saved(self, row: ScanRow, ending: str, write: Callable[[Path], object]) -> tuple[ScanRow, str]:
        """Write a file of the row's scan: the row, with a warning if the file has another name; and the file's name."""
        wanted = row.scan + ending
        file = self.save(row.scan, row.scan, ending, write)
        if file == wanted:
            return row, file
        what = "the mask" if ending == MASK else "that of this answer"
        kept = f"gliaflow did not write {wanted}, or it was changed since: it is kept, and {what} is {file}"
        return replace(row, warnings=(*row.warnings, kept)), file

    def _known_places(self, submitted: Collection[str]) -> tuple[Places, dict[str, list[str]]]:
        """The recorded scans by place; and those whose file is no longer there, by relative path."""
        places, moved = defaultdict(list), defaultdict(list)
        for name, state in self._record.scans.items():
            places[state.place].append(name)
            if state.location not in submitted and "://" not in state.location and not os.path.lexists(state.location):
                moved[state.source].append(name)
        return places, moved

    def _is_unrecorded_row_of(self, item: Input, state: ScanState) -> bool:
        """Whether the record was lost, or never existed, and the table has a row of this scan."""
        row = self.rows.get(item.name)
        if row is None or item.name in self._record.scans:
            return False
        return row.source == readable(state.source) if row.source else row.patient == item.patient

    def _read_table(self) -> dict[str, ScanRow]:
        path = self.table
        rows = read_table(path, unchanged=self._record.wrote(path))
        return {scan: self._restored(row) for scan, row in rows.items()}

    def _restored(self, row: ScanRow) -> ScanRow:
        """The row as gliaflow wrote it: a spreadsheet program makes 12 of the patient 0012, or sorts one column."""
        state = self._record.scans.get(row.scan)
        if state is None:
            return row
        masks = [file for file in self._record.files_of(row.scan, MASK) if (self.path / file).exists()]
        mask = row.mask or (masks[-1] if masks and row.status in ANSWERED else "")
        values = {name: value for name, value in self._record.answers.get(row.scan, {}).items() if name in VALUES}
        source = readable(state.source)
        restored = replace(row, **values, patient=state.patient, source=source, mask=mask, series=state.series)
        for name in (*VALUES, "patient", "source", "mask", "series"):
            before, now = getattr(row, name), getattr(restored, name)
            if before != now:
                self.notes.append(f"{self.table}: {row.scan}: {name} {before!r} is {now!r} again, as gliaflow wrote it")
        if restored != row:
            self._new[row.scan] = restored
        return restored

    def write_rows(self, order: dict[str, int]) -> None:
        """Write the table with the new rows: those in ``order`` in that order after all others.

        If the user changed the table meanwhile, the changes are kept.
        """
        path = self.table
        if _stamp(path) != self._table_stamp:
            try:
                self.rows = self._read_table()
            except UsageError:
                names = (f"predictions_gliaflow{number}.csv" for number in count(1))
                self._table = next(name for name in names if not (self.path / name).exists())
                path = self.table
        for scan, row in self._new.items():
            before = self.rows.get(scan)
            self.rows[scan] = replace(row, added=before.added) if before else row
        rows = sorted(self.rows.items(), key=lambda item: order.get(item[0], -1))
        self.rows = {name: row for name, row in rows if name not in self._decided}
        if self._new or self._decided or not path.exists():
            self._write(self._table, "", lambda part: write_table(part, self.rows.values()), ".csv")
            self._table_stamp = _stamp(path)
        self._lost -= self._new.keys()
        self._new.clear()
        self._decided.clear()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
