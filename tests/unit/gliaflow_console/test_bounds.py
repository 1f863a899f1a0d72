"""What the store removes when it is full, when it refuses an upload, and what gets old."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from gliaflow_console.bounds import StoreFull
from gliaflow_console.store import ScanStore
from sample_store import answer, of_others, send, settings


class TestBounds:
    def test_the_oldest_answered_scans_make_place_for_new_ones(self) -> None:
        with ScanStore(settings(console_scans=2)) as store:
            first, second = send(store), send(store)
            with pytest.raises(StoreFull, match=r"at most 2 scans.*GLIAFLOW_CONSOLE_SCANS"):
                send(store)
            answer(store, second)
            third = send(store)
            assert {scan.id for scan in store.newest(9)} == {first, third}  # the first one is not answered yet

    def test_own_scans_and_those_of_other_clients_keep_half_of_the_places_each(self) -> None:
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
            for _ in range(2):
                send(store)
            for number in range(9):
                store.observed(*of_others(number))
            assert [scan.status for scan in store.newest(9) if scan.own] == ["queued", "queued"]

    def test_more_scans_than_there_are_places_are_refused_with_a_remedy_that_helps(self) -> None:
        with ScanStore(settings(console_scans=2)) as store:
            upload = store.new_upload()
            for patient in range(3):
                upload.place(f"P{patient}_flair.nii.gz").write_bytes(b"scan")
            with pytest.raises(StoreFull, match=r"^3 scans are more than the 2 .*: upload fewer at once, or raise"):
                store.take(upload, alone=False)
            assert not (upload.folder / "upload.json").exists()  # a restart does not take it for complete
            assert store.open_upload(upload.id) is upload

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
            store.new_upload().count(1500)
            with pytest.raises(StoreFull):  # the bytes that are being received count
                store.make_room(1000)

    def test_where_no_room_can_be_made_nothing_is_removed(self) -> None:
        with ScanStore(settings(console_gib=5000 / 2**30)) as store:
            answered = send(store, data=b"x" * 1000)
            answer(store, answered)
            folder = store.new_upload()
            for name, size in (("P1_flair.nii", 10), ("P2_flair.nii", 1000)):
                folder.place(name).write_bytes(b"x" * size)
            half, _ = store.take(folder, alone=False).ids
            answer(store, half)  # the other scan of its folder waits, so its files stay
            growing = store.new_upload()
            growing.count(2000)
            with pytest.raises(StoreFull, match=r"scans in work and other uploads need the room: wait"):
                store.make_room(2500, store.new_upload())
            with pytest.raises(StoreFull, match=r"this upload is larger: upload fewer files at once, or raise"):
                store.make_room(3500, growing)
            assert len(store) == 3

    def test_a_full_disk_is_a_reason_to_remove_answered_scans_and_then_to_refuse(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered, waiting = send(store, data=b"x" * 1000), send(store)
        answer(store, answered)
        free = [2**20 - 500]
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
        store.make_room(10)
        assert [scan.id for scan in store.newest(9)] == [waiting]
        with pytest.raises(StoreFull, match="the disk of the console's folder is full: make room"):
            store.make_room(10)

    def test_old_answers_and_incomplete_uploads_are_deleted(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered, waiting, upload = send(store), send(store), store.new_upload()
        answer(store, answered)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3700)
        store.tidy()
        assert (len(store), store.open_upload(upload.id), upload.folder.exists()) == (2, None, False)
        monkeypatch.setattr(time, "time", lambda: now + 73 * 3600)
        store.tidy()
        assert [scan.id for scan in store.newest(9)] == [waiting]

    def test_what_is_old_is_deleted_also_while_no_scan_is_sent(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer(store, send(store))
        now, stopping = time.time(), threading.Event()
        monkeypatch.setattr(time, "time", lambda: now + 73 * 3600)
        monkeypatch.setattr("gliaflow_console.store.TIDY_EVERY_S", 0.01)
        thread = threading.Thread(target=store.keep_tidy, args=[stopping])
        thread.start()
        deadline = time.monotonic() + 10
        while len(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        stopping.set()
        thread.join(10)
        assert len(store) == 0

    def test_other_clients_masks_are_dropped_before_their_rows(
        self, store: ScanStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store._packed, "_size", 2 * len(of_others(0)[1]))
        for number in range(3):
            store.observed(*of_others(number))
        assert [store.has_mask(scan.id) for scan in store.newest(9)] == [True, True, False]
        dropped = store.newest(9)[2]
        assert store.mask(dropped.id) is None
        grid = store.grid(dropped.id)
        assert grid is not None  # the number of slices is in the message's head
        assert (grid.shape, grid.spacing, grid.slice_ml) == ((4, 4, 4), (1.0, 1.0, 1.0), None)
