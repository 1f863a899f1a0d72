"""What is in the operator's folder after a restart."""

from __future__ import annotations

import csv
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gliaflow_client.out_folder import OutFolder
from gliaflow_console.found_scans import find_scans
from gliaflow_console.store import ScanStore
from gliaflow_console.uploads import Upload
from gliaflow_proto import Scan, encode
from gliaflow_runtime.errors import UsageError
from sample_scans import good_scan
from sample_store import PREDICTION, answer, send, settings


def two_scans(store: ScanStore) -> tuple[Upload, str, str]:
    """An uploaded folder, and the ids of its scans."""
    upload = store.new_upload()
    for name in ("P1", "P2"):
        upload.place(f"{name}/{name}_flair.nii.gz").write_bytes(b"scan")
    first, second = store.take(upload, alone=False).ids
    return upload, first, second


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
            store._out._out._record.close()
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

    def test_has_no_scan_of_an_uploaded_folder_that_was_deleted_before_a_restart(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path / "out")) as store:
            upload, first, second = two_scans(store)
            for scan in (first, second):
                answer(store, scan)
            store.delete(first)
            assert [file.stem.removesuffix(".nii") for file in upload.folder.glob("*.nii.gz")] == [second]
        with ScanStore(settings(tmp_path / "out")) as store:
            assert [scan.id for scan in store.newest(9)] == [second]
            assert store.table_row(second) is not None
            store.delete(second)
        assert not upload.folder.exists()

    def test_frees_the_mask_of_a_deleted_scan_before_it_writes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a full disk, what is freed makes room for what is written."""
        with ScanStore(settings(tmp_path)) as store:
            upload, first, second = two_scans(store)
            answer(store, first)
            size, written = upload.size, []

            def full_until_freed(path: Path, text: str) -> None:
                if list(upload.folder.glob(f"{first}*")):
                    raise OSError(errno.ENOSPC, "No space left on device")
                written.append(path.write_text(text))

            with monkeypatch.context() as disk:
                disk.setattr("gliaflow_console.kept_uploads.write_whole", full_until_freed)
                store.delete(first)
            assert written
            assert upload.size < size
        with ScanStore(settings(tmp_path)) as store:
            assert [scan.id for scan in store.newest(9)] == [second]

    def test_keeps_no_answer_that_is_written_while_its_scan_is_deleted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ScanStore(settings(tmp_path)) as store:
            upload, first, second = two_scans(store)
            size, add_answer = upload.size, store._kept.add_answer

            def late(*values: Any) -> None:
                store.delete(first)
                add_answer(*values)

            monkeypatch.setattr(store._kept, "add_answer", late)
            answer(store, first)
            assert not list(upload.folder.glob(f"{first}*"))
            assert upload.size == size
            assert [scan.id for scan in store.newest(9)] == [second]

    def test_has_no_scan_whose_deletion_a_kill_has_cut_short(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ScanStore(settings(tmp_path / "out")) as store:
            scan = send(store)
            with monkeypatch.context() as killed:
                killed.setattr("gliaflow_console.uploads.shutil.rmtree", lambda *_, **__: None)
                store.delete(scan)
        with ScanStore(settings(tmp_path / "out")) as store:
            assert len(store) == 0
            assert not [*store.uploads.glob("*/")]

    def test_has_a_row_of_each_answer_after_a_kill(self, tmp_path: Path) -> None:
        """The table is written a moment after an answer."""
        with ScanStore(settings(tmp_path / "out")) as store:
            for name in ("P1_flair.nii.gz", "P2_flair.nii.gz"):
                answer(store, send(store, name))
            rows = [store.table_row(scan.id) for scan in store.newest(9)]
            store._resources.pop_all()  # killed: nothing is closed
            assert store._out is not None
            store._out._out._record.close()
            store._out = None
        with (tmp_path / "out" / "predictions.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 1
        with ScanStore(settings(tmp_path / "out")), (tmp_path / "out" / "predictions.csv").open() as file:
            table = {row["scan"]: row for row in csv.DictReader(file)}
        assert [table[row["scan"]]["mask"] for row in rows if row] == ["P2_flair_seg.nii.gz", "P1_flair_seg.nii.gz"]

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

    def test_counts_the_bytes_of_the_answers_and_knows_deleted_scans_after_a_restart(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path)) as store:
            deleted, scan = send(store), send(store)
            answer(store, scan)
            store.delete(deleted)
            size = store.size
            assert size > len(b"scan") + 500
        with ScanStore(settings(tmp_path)) as store:
            assert store.size == size
            late = replace(PREDICTION, scan=Scan(id=deleted, submission="ours", name="P1_flair"))
            store.observed(late, encode(late))
            assert [scan.id for scan in store.newest(9)] == [scan]

    def test_is_searched_once_for_all_scans_of_an_upload(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with ScanStore(settings(tmp_path)) as store:
            upload = store.new_upload()
            for patient in range(5):
                upload.place(f"P{patient}_flair.nii.gz").write_bytes(b"scan")
            ids = store.take(upload, alone=False).ids
        searches = []
        monkeypatch.setattr(
            "gliaflow_console.store.find_scans",
            lambda *values, **names: searches.append(1) or find_scans(*values, **names),
        )
        with ScanStore(settings(tmp_path)) as store:
            items = [store.item(id) for id in ids]
        assert [item.name for item in items if item] == [f"P{patient}_flair" for patient in range(5)]
        assert len(searches) == 1

    def test_its_scans_are_in_one_folder_also_behind_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        with ScanStore(settings(tmp_path / "link")) as store:
            item = store.item(send(store))
            assert item is not None
            assert Path(item.root).is_relative_to(store.uploads)  # which the stages in this process may read

    def test_keeps_the_class_of_a_phantom_which_no_name_gives(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path)) as store:
            sent = send(store, "phantom_LGG_7.nii.gz")
            upload = store.new_upload()
            upload.place("phantom_HGG_7.nii.gz").write_bytes(b"scan")
            [drawn] = store.take(upload, alone=True, drawn="HGG").ids
        for answered in (False, True):
            with ScanStore(settings(tmp_path)) as store:
                assert {scan.id: scan.drawn for scan in store.newest(9)} == {sent: "", drawn: "HGG"}
                if not answered:
                    answer(store, drawn)

    def test_has_a_table_that_is_not_written_after_each_scan(self, tmp_path: Path) -> None:
        with ScanStore(settings(tmp_path)) as store:
            for name in ("P1_flair.nii.gz", "P2_flair.nii.gz"):
                answer(store, send(store, name))
            rows = [len((tmp_path / "predictions.csv").read_text().splitlines())]
            store.tidy()
            rows.append(len((tmp_path / "predictions.csv").read_text().splitlines()))
            answer(store, send(store, "P3_flair.nii.gz"))
        rows.append(len((tmp_path / "predictions.csv").read_text().splitlines()))
        assert rows == [2, 3, 4]  # with the line of the names

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
