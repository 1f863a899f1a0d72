"""The store of the console's scans: what it keeps, what it removes, and what is there after a restart."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow.answer import Answer
from gliaflow_client.out_folder import OutFolder
from gliaflow_console.found_scans import NotTaken
from gliaflow_console.store import ScanStore, StoreFull
from gliaflow_proto import FailureMessage, PredictionMessage, Scan, encode
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from sample_messages import ONE_OF_EACH
from sample_scans import good_scan

[PREDICTION] = [
    replace(message, status="ok", mask=np.pad(np.ones((2, 2, 2), np.uint8), 1))
    for message in ONE_OF_EACH
    if isinstance(message, PredictionMessage)
]


def settings(folder: Path | None = None, **values: Any) -> Settings:
    return Settings(console_folder=folder, **values)


@pytest.fixture
def store() -> Iterator[ScanStore]:
    with ScanStore(settings()) as store:
        yield store


def send(store: ScanStore, name: str = "P1_flair.nii.gz", data: bytes = b"scan") -> str:
    upload = store.new_upload()
    store.grow(upload, len(data))
    upload.place(name).write_bytes(data)
    [scan] = store.take(upload, alone=True).ids
    return scan


def answer(store: ScanStore, scan: str, message: PredictionMessage = PREDICTION) -> None:
    item = store.item(scan)
    assert item is not None
    store.answered(scan, Answer.of_prediction(item, message, 1.5))


def of_others(number: int, **changes: Any) -> tuple[PredictionMessage, bytes]:
    message = replace(PREDICTION, scan=Scan(id=f"s{number}", submission="theirs", name=f"their {number}"), **changes)
    return message, encode(message, "lz4")


class TestAScan:
    def test_is_queued_then_in_work_then_answered(self, store: ScanStore) -> None:
        scan = send(store)
        queued = store.get(scan)
        assert queued is not None
        assert (queued.name, queued.patient, queued.status, queued.own) == ("P1_flair", "P1", "queued", True)
        assert (store.in_work(), store.has_image(scan), store.has_mask(scan)) == (False, True, False)
        working = store.next_queued()
        assert working is not None
        assert (working.id, working.status) == (scan, "working")
        assert store.in_work()
        assert store.next_queued() is None
        answer(store, scan)
        answered = store.get(scan)
        assert answered is not None
        assert (answered.status, answered.grade, answered.p_hgg, answered.seconds) == ("ok", "HGG", 0.75, 1.5)
        assert not store.in_work()
        assert store.mask(scan).get_fdata().sum() == 8
        grid = store.grid(scan)
        assert grid is not None
        assert grid.slice_ml == ((1, 0.004), (2, 0.004))

    def test_shows_its_progress_by_the_parts_that_are_graded(self, store: ScanStore) -> None:
        scan = send(store)
        store.graded(scan, [0, 4])
        assert store.newest(1)[0].progress is None  # it is not in work
        store.next_queued()
        for part in (0, 2, 2):
            store.graded(scan, [part, 4])
        store.graded("of another client", [0, 1])
        assert store.newest(1)[0].progress == 0.5
        answer(store, scan)
        assert store.newest(1)[0].progress is None

    def test_is_queued_again_if_the_stream_ends(self, store: ScanStore) -> None:
        scan = send(store)
        store.next_queued()
        store.queue_again()
        queued = store.next_queued()
        assert queued is not None
        assert queued.id == scan

    def test_that_fails_names_files_as_their_sender_did(self, store: ScanStore) -> None:
        scan = send(store)
        item = store.item(scan)
        assert item is not None
        store.answered(scan, Answer.failed(item, f"{item.source}: not a NIfTI file"))
        failed = store.get(scan)
        assert failed is not None
        assert (failed.status, failed.reason) == ("failed", "P1_flair.nii.gz: not a NIfTI file")
        assert not store.has_mask(scan)

    def test_that_is_deleted_leaves_no_file_and_its_answer_is_dropped(self, store: ScanStore) -> None:
        scan = send(store)
        item = store.item(scan)
        assert item is not None
        store.next_queued()
        assert store.delete(scan)
        assert not item.path.exists()
        assert store.size == 0
        store.answered(scan, Answer.of_prediction(item, PREDICTION, 1))
        late = replace(PREDICTION, scan=Scan(id=scan, submission="ours", name="P1_flair"))
        store.observed(late, encode(late))
        assert len(store) == 0
        assert not store.delete(scan)

    def test_has_the_row_of_the_table(self, store: ScanStore) -> None:
        scan = send(store)
        assert store.table_row(scan) is None
        answer(store, scan)
        row = store.table_row(scan)
        assert row is not None
        assert (row["scan"], row["source"], row["mask"]) == ("P1_flair", "P1_flair.nii.gz", "P1_flair_seg.nii.gz")

    def test_that_cannot_be_stored_fails_with_the_remedy(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        scan = send(store)
        monkeypatch.setattr("gliaflow_console.kept_uploads.write_image", full)
        answer(store, scan)
        failed = store.get(scan)
        assert failed is not None
        assert failed.status == "failed"
        assert failed.reason.startswith("the answer cannot be stored: No space left on device: make room")


class TestAFolder:
    def test_gives_its_flair_scans_and_the_reasons_for_the_rest(self, store: ScanStore) -> None:
        upload = store.new_upload()
        for name in ("P1/P1_flair.nii.gz", "P1/P1_t1.nii.gz", "P2/P2_flair.nii.gz"):
            upload.place(f"cohort/{name}").write_bytes(b"scan")
        taken = store.take(upload, alone=False)
        assert [(scan.name, scan.patient, scan.relative) for scan in store.newest(9)[::-1]] == [
            ("P1_flair", "P1", "P1/P1_flair.nii.gz"),
            ("P2_flair", "P2", "P2/P2_flair.nii.gz"),
        ]
        [(name, why)] = taken.left_out
        assert name == "cohort/P1/P1_t1.nii.gz"
        assert "t1" in why

    def test_without_a_scan_stays_open_so_that_a_series_can_be_named(self, store: ScanStore) -> None:
        upload = store.new_upload()
        upload.place("P1/P1_t1.nii.gz").write_bytes(b"scan")
        with pytest.raises(NotTaken, match=r"^no FLAIR scan in P1: P1/P1_t1.nii.gz: ") as caught:
            store.take(upload, alone=False)
        assert str(store.folder) not in str(caught.value)
        assert caught.value.left_out[0][0] == "P1/P1_t1.nii.gz"
        assert store.open_upload(upload.id) is upload
        upload.place("P1/P1_flair.nii.gz").write_bytes(b"scan")
        assert len(store.take(upload, alone=False).ids) == 1
        with pytest.raises(KeyError):
            store.take(upload, alone=False)

    def test_its_files_are_there_until_its_last_scan_is_deleted(self, store: ScanStore) -> None:
        upload = store.new_upload()
        for patient in ("P1", "P2"):
            upload.place(f"{patient}_flair.nii.gz").write_bytes(b"scan")
        first, second = store.take(upload, alone=False).ids
        store.delete(first)
        assert upload.folder.exists()
        store.delete(second)
        assert not upload.folder.exists()

    def test_without_a_file_is_refused(self, store: ScanStore) -> None:
        with pytest.raises(NotTaken, match="the upload has no file"):
            store.take(store.new_upload(), alone=True)


class TestBounds:
    def test_the_oldest_answered_scans_make_place_for_new_ones(self) -> None:
        with ScanStore(settings(console_scans=2)) as store:
            first, second = send(store), send(store)
            with pytest.raises(StoreFull, match=r"at most 2 scans.*GLIAFLOW_CONSOLE_SCANS"):
                send(store)
            answer(store, second)
            third = send(store)
            assert {scan.id for scan in store.newest(9)} == {first, third}  # the first one is not answered yet

    def test_other_clients_do_not_displace_own_scans_nor_the_other_way(self) -> None:
        with ScanStore(settings(console_scans=4)) as store:
            own = [send(store) for _ in range(2)]
            for scan in own:
                answer(store, scan)
            for number in range(20):
                store.observed(*of_others(number))
            assert [scan.name for scan in store.newest(9)] == ["their 19", "their 18", "P1_flair", "P1_flair"]
            for _ in range(9):
                answer(store, send(store))
            assert [scan.own for scan in store.newest(9)].count(False) == 2

    def test_the_oldest_answered_scans_make_room_for_bytes(self) -> None:
        with ScanStore(settings(console_gib=3000 / 2**30)) as store:
            first, second = send(store, data=b"x" * 1000), send(store, data=b"x" * 1000)
            with pytest.raises(StoreFull, match="GLIAFLOW_CONSOLE_GIB"):
                store.make_room(1500)
            answer(store, second)
            store.make_room(1500)
            assert [scan.id for scan in store.newest(9)] == [first]
            with pytest.raises(StoreFull):  # more than there is room at all: nothing is removed for it
                store.make_room(4000)
            upload = store.new_upload()
            store.grow(upload, 1500)
            with pytest.raises(StoreFull):  # the bytes that are being received count
                store.grow(store.new_upload(), 1000)

    def test_old_answers_and_incomplete_uploads_are_deleted(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered, waiting, upload = send(store), send(store), store.new_upload()
        answer(store, answered)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3700)
        store.next_queued()
        assert (len(store), store.open_upload(upload.id), upload.folder.exists()) == (2, None, False)
        monkeypatch.setattr(time, "time", lambda: now + 73 * 3600)
        store.next_queued()
        assert [scan.id for scan in store.newest(9)] == [waiting]

    def test_other_clients_masks_are_dropped_before_their_rows(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store._packed, "_size", 2 * len(of_others(0)[1]))
        for number in range(3):
            store.observed(*of_others(number))
        assert [store.has_mask(scan.id) for scan in store.newest(9)] == [True, True, False]
        assert store.mask(store.newest(9)[2].id) is None


class TestOtherClients:
    def test_their_answers_are_rows_with_a_mask_on_demand(self, store: ScanStore) -> None:
        message, body = of_others(1)
        store.observed(replace(message, mask=np.empty(message.mask.shape, np.uint8)), body)  # as the observer does
        [scan] = store.newest(9)
        assert (scan.name, scan.own, scan.status, scan.p_hgg) == ("their 1", False, "ok", 0.75)
        assert len(scan.id) == 32  # an id of ours: theirs may be any text
        assert (store.has_image(scan.id), store.has_mask(scan.id), store.item(scan.id)) == (False, True, None)
        assert store.mask(scan.id).get_fdata().sum() == 8
        grid = store.grid(scan.id)
        assert grid is not None
        assert grid.slice_ml == ((1, 0.004), (2, 0.004))
        row = store.table_row(scan.id)
        assert row is not None
        assert row["scan"] == "their 1"

    def test_a_scan_that_failed_and_was_sent_again_has_one_row(self, store: ScanStore) -> None:
        message, body = of_others(1)
        failure = FailureMessage(id="f", scan=message.scan, stage="extractor", reason="x" * 4000)
        store.observed(failure, encode(failure))
        assert store.newest(1)[0].status == "failed"
        assert len(store.newest(1)[0].reason) <= 500
        store.observed(message, body)
        store.observed(failure, encode(failure))  # a copy
        assert [scan.status for scan in store.newest(9)] == ["ok"]

    def test_a_late_answer_updates_a_failed_own_scan_and_no_other(self, store: ScanStore) -> None:
        scan = send(store)
        late = replace(PREDICTION, scan=Scan(id=scan, submission="ours", name="P1_flair"))
        store.next_queued()
        store.observed(late, encode(late))
        assert store.newest(1)[0].status == "working"  # the sender gets this answer too
        store.fail(scan, "no answer within 1800 s")
        store.observed(late, encode(late))
        assert store.newest(1)[0].status == "ok"
        assert store.newest(1)[0].reason == ""
        assert store.mask(scan).get_fdata().sum() == 8


class TestChanges:
    def test_are_the_scans_since_a_version_and_the_removed_ones(self, store: ScanStore) -> None:
        first, second = send(store), send(store)
        seen = store.changes(0)
        assert [scan.id for scan in seen.rows] == [first, second]
        assert store.changes(seen.version).rows == []
        answer(store, second)
        store.delete(first)
        changes = store.changes(seen.version)
        assert ([scan.id for scan in changes.rows], changes.removed) == ([second], [first])
        assert changes.version == store.version

    def test_pages_go_from_the_newest_to_the_oldest(self, store: ScanStore) -> None:
        ids = [send(store) for _ in range(5)][::-1]
        assert [scan.id for scan in store.newest(2)] == ids[:2]
        assert [scan.id for scan in store.newest(2, before=ids[1])] == ids[2:4]
        assert store.newest(2, before="unknown") == []


class TestAFolderOfTheOperator:
    def test_has_the_scans_and_answers_after_a_restart(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path / "out")) as store:
            answered, waiting = send(store), send(store, "P2_flair.nii.gz")
            answer(store, answered)
            store.next_queued()
            store.graded(waiting, [0, 2])
            before = store.get(answered)
            unfinished = store.new_upload()
            unfinished.place("P3_flair.nii.gz").write_bytes(b"scan")
            row = store.table_row(answered)
            os.utime(tmp_path / "out" / "uploads")
            store._resources.pop_all()  # killed: nothing is closed
            assert store._out is not None
            store._out._record.close()
        with ScanStore(settings(tmp_path / "out")) as store:
            assert store.get(answered) == before
            assert store.table_row(answered) == row
            assert store.mask(answered).get_fdata().sum() == 8
            assert store.has_image(answered)
            assert not unfinished.folder.exists()
            queued = store.next_queued()
            assert queued is not None
            assert queued.id == waiting
            item = store.item(waiting)
            assert item is not None
            assert (item.id, item.name, item.path.read_bytes()) == (waiting, "P2_flair", b"scan")
            assert store.next_queued() is None

    def test_has_the_files_that_submit_writes(self, tmp_path: Path) -> None:
        scan_file = good_scan(tmp_path / "P1_flair.nii.gz")
        with ScanStore(settings(tmp_path / "out")) as store:
            for _ in range(2):  # the second one is another scan
                answer(store, send(store, scan_file.name, scan_file.read_bytes()))
            rows = [store.table_row(scan.id) for scan in store.newest(9)[::-1]]
        with (tmp_path / "out" / "predictions.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [row["scan"] for row in table] == [row["scan"] for row in rows if row] == ["P1_flair", "P1_flair-2"]
        assert table[0]["source"] == "P1_flair.nii.gz"
        for row in table:
            assert (tmp_path / "out" / row["mask"]).is_file()
        assert (tmp_path / "out" / "uploads").stat().st_mode & 0o777 == 0o700

    def test_is_used_by_one_command_at_a_time(self, tmp_path: Path) -> None:
        with OutFolder(tmp_path), pytest.raises(UsageError, match="another gliaflow command"):
            ScanStore(settings(tmp_path))
        with ScanStore(settings(tmp_path)):
            pass

    def test_with_somebody_elses_uploads_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "uploads").mkdir()
        (tmp_path / "uploads" / "holiday.jpg").touch()
        with pytest.raises(UsageError, match=r"uploads: has files that are not the console's: .*another --out"):
            ScanStore(settings(tmp_path))
        assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["holiday.jpg"]

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"scan": {}}', '{"scan": null, "row": 1}', "\udcff"])
    def test_a_damaged_answer_is_computed_again(self, damage: str, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path)) as store:
            scan = send(store)
            answer(store, scan)
        [file] = tmp_path.glob(f"uploads/*/{scan}.json")
        file.write_bytes(damage.encode("utf-8", "surrogateescape"))
        with ScanStore(settings(tmp_path)) as store:
            queued = store.next_queued()
            assert queued is not None
            assert queued.id == scan

    def test_an_upload_of_a_later_version_is_passed_over_and_stays(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path)) as store:
            send(store)
        [about] = tmp_path.glob("uploads/*/upload.json")
        about.write_text(about.read_text().replace('"alone"', '"single"'))
        with ScanStore(settings(tmp_path)) as store:
            assert len(store) == 0
        assert (about.parent / "files" / "P1_flair.nii.gz").exists()

    def test_a_smaller_bound_removes_answered_scans_at_the_start(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path)) as store:
            for _ in range(3):
                answer(store, send(store))
        with ScanStore(settings(tmp_path, console_scans=1)) as store:
            assert len(store) == 1
