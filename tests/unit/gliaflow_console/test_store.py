"""The store of the console's scans: queued, in work, answered, deleted; and those of other clients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gliaflow.answer import Answer
from gliaflow_console.bounds import StoreFull
from gliaflow_console.found_scans import NotTaken
from gliaflow_console.store import ScanStore
from gliaflow_proto import FailureMessage, Scan, encode
from sample_store import PREDICTION, answer, of_others, send


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

    def test_that_is_answered_stays_as_it_is_when_something_fails(self, store: ScanStore) -> None:
        scan = send(store)
        answer(store, scan)
        before = store.get(scan)
        store.fail(scan, "a fault of another scan")
        assert store.get(scan) == before

    @pytest.mark.parametrize("fault", ["ValueError", "MemoryError"])
    def test_whose_answer_raises_any_error_fails(
        self, fault: str, store: ScanStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fails(*_: object) -> None:
            raise {"ValueError": ValueError, "MemoryError": MemoryError}[fault]("P1_flair")

        scans = send(store), send(store)
        monkeypatch.setattr(store._kept, "add_answer", fails)
        answer(store, scans[0])
        store.fail(scans[1], "the scan cannot be sent")
        stored = [store.get(scan) for scan in scans]
        assert [scan.reason for scan in stored if scan] == [
            f"the answer cannot be stored ({fault}): send the scan again",
            "the scan cannot be sent",
        ]
        assert "P1_flair" not in capsys.readouterr().err

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
        assert failed.reason.startswith("the answer cannot be stored (No space left on device): make room")


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

    def test_no_more_than_a_bounded_number_are_open(self, store: ScanStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gliaflow_console.store.MOST_OPEN", 2)
        first, _ = store.new_upload(), store.new_upload()
        with pytest.raises(StoreFull, match="2 uploads are not complete: complete or cancel them"):
            store.new_upload()
        store.discard(first)
        store.new_upload()

    def test_without_a_file_is_refused(self, store: ScanStore) -> None:
        with pytest.raises(NotTaken, match="the upload has no file"):
            store.take(store.new_upload(), alone=True)


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
        store._packed.drop(scan.id)
        assert store.grid(scan.id) == grid  # the mask is unpacked once
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
        assert store.newest(1)[0].seconds is None  # not the time for which its dead letter waited
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


def test_an_upload_that_is_taken_is_no_longer_discarded(store: ScanStore) -> None:
    """A client cancels it, or its time is over, at the same moment."""
    upload = store.new_upload()
    upload.place("P1_flair.nii.gz").write_bytes(b"scan")
    [scan] = store.take(upload, alone=True).ids
    assert not store.discard(upload)
    item = store.item(scan)
    assert item is not None
    assert item.path.exists()
