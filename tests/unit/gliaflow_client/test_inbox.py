"""Each scan in an inbox is answered once, whatever the clock does and whatever happens meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gliaflow.flow import Flow
from gliaflow.places import search
from gliaflow.scans import find_inputs
from gliaflow_client.inbox import Inbox, write_answer
from gliaflow_client.out_folder import OutFolder
from gliaflow_client.record import RECORD
from gliaflow_client.table import read_table, write_table
from gliaflow_proto import ScanMessage
from gliaflow_runtime.broker.interface import Broker
from stand_in import StandIn, fail

NOW = "gliaflow_client.inbox.time.time_ns"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    for number in range(3):
        drop(tmp_path / f"inbox/P{number}/flair.nii.gz", "a scan")
    return tmp_path / "inbox"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files have been copied completely."""
    monkeypatch.setattr(NOW, lambda: int((time.time() + 100) * 1e9))


@pytest.fixture
def flow() -> Iterator[Flow]:
    def answer(broker: Broker, message: ScanMessage) -> None:
        fail(broker, message, "because")

    with StandIn(answer) as stages:
        yield Flow(stages.broker.attach(), timeout=30)


def drop(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def watch(inbox: Path, out: Path, flow: Flow) -> list[str]:
    """One round of ``gliaflow watch``: the sources of the scans that it answers."""
    with OutFolder(out) as folder:
        return poll(Inbox(inbox, folder), folder, flow)


def poll(scans: Inbox, folder: OutFolder, flow: Flow) -> list[str]:
    new = scans.new_scans()
    folder.answer(flow, new.targets, lambda target, answer, row: write_answer(folder, row))
    return [target.state.source for target in new.targets]


def answers(out: Path) -> dict[str, str]:
    """The file with each answer, by source."""
    files = [file for file in out.glob("*.json") if not file.name.startswith(".")]
    return {json.loads(file.read_text())["source"]: file.name for file in files}


def test_scans_with_one_file_name_have_an_answer_each(inbox: Path, tmp_path: Path, flow: Flow, later: None) -> None:
    out = tmp_path / "out"
    assert watch(inbox, out, flow) == ["P0/flair.nii.gz", "P1/flair.nii.gz", "P2/flair.nii.gz"]
    assert watch(inbox, out, flow) == [], "a restart answers nothing twice"
    before = answers(out)
    drop(inbox / "A/flair.nii.gz", "a later scan")
    assert watch(inbox, out, flow) == ["A/flair.nii.gz"]
    assert answers(out).items() > before.items()
    assert len({*answers(out).values()}) == 4


def test_a_scan_that_is_replaced_or_has_lost_its_answer_is_answered_again(
    inbox: Path, tmp_path: Path, flow: Flow, later: None
) -> None:
    out = tmp_path / "out"
    watch(inbox, out, flow)
    before = answers(out)
    drop(inbox / "P1/flair.nii.gz", "another scan")
    (out / before["P2/flair.nii.gz"]).unlink()
    assert watch(inbox, out, flow) == ["P1/flair.nii.gz", "P2/flair.nii.gz"]
    assert answers(out) == before


def test_a_scan_waits_for_its_sequences_and_is_answered_again_when_one_comes_or_changes(
    inbox: Path, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch_t1ce() -> list[str]:
        with OutFolder(tmp_path / "out") as folder:
            return poll(Inbox(inbox, folder, sequences=["t1ce"]), folder, flow)

    real = time.time_ns
    monkeypatch.setattr(NOW, lambda: int((time.time() + 100) * 1e9))
    assert len(watch_t1ce()) == 3
    drop(inbox / "P1/t1_gd.nii.gz", "another sequence")
    assert watch_t1ce() == ["P1/flair.nii.gz"]
    assert watch_t1ce() == []
    drop(inbox / "P1/t1_gd.nii.gz", "another one")
    assert watch_t1ce() == ["P1/flair.nii.gz"]
    monkeypatch.setattr(NOW, real)
    drop(inbox / "P2/t1_gd.nii.gz", "is still being copied")
    assert watch_t1ce() == []


def test_an_answer_has_the_fields_of_a_row(inbox: Path, tmp_path: Path, flow: Flow, later: None) -> None:
    watch(inbox, tmp_path / "out", flow)
    answer = json.loads((tmp_path / "out" / answers(tmp_path / "out")["P1/flair.nii.gz"]).read_text())
    assert (answer["status"], answer["error"], answer["warnings"]) == ("failed", "test: because", [])
    header = (tmp_path / "out/predictions.csv").read_text().splitlines()[0]
    assert ",".join(answer) == header


def test_a_json_of_the_user_is_kept(inbox: Path, tmp_path: Path, flow: Flow, later: None) -> None:
    watch(inbox, tmp_path / "other", flow)
    name = answers(tmp_path / "other")["P1/flair.nii.gz"]
    drop(tmp_path / "out" / name, "mine")
    watch(inbox, tmp_path / "out", flow)
    assert (tmp_path / "out" / name).read_text() == "mine"
    (tmp_path / "out" / name).unlink()
    assert len(answers(tmp_path / "out")) == 3


@pytest.mark.parametrize("out", [".", "out"])
def test_inbox_and_out_may_be_one_folder(inbox: Path, out: str, flow: Flow, later: None) -> None:
    assert len(watch(inbox, inbox / out, flow)) == 3
    with OutFolder(inbox / out) as folder:
        folder.save("P1", "P1_flair", "_seg.nii.gz", lambda part: part.write_text("a mask"))
        folder.save("P1", "own", ".nii.gz", lambda part: part.write_text("a mask with a scan's name"))
        left_out = Inbox(inbox, folder).new_scans()
        assert (left_out.targets, left_out.left_out) == ([], [])


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_a_scan_is_answered_once_even_if_the_clock_jumps(
    inbox: Path, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    jumped = time.time_ns() + jump_s * 10**9
    monkeypatch.setattr(NOW, lambda: jumped)
    out = tmp_path / "out"
    with OutFolder(out) as folder:
        targets = Inbox(inbox, folder).new_scans().targets
        time.sleep(0.01)
        drop(inbox / "P2/flair.nii.gz", "another scan, while the first is in work")
        folder.answer(flow, targets, lambda target, answer, row: write_answer(folder, row))
    assert watch(inbox, out, flow) == ["P2/flair.nii.gz"]


def test_an_answer_that_is_not_written_completely_does_not_count(
    inbox: Path, tmp_path: Path, flow: Flow, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        self.touch()
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            watch(inbox, tmp_path / "out", flow)
    assert len(watch(inbox, tmp_path / "out", flow)) == 3


def test_a_scan_that_is_still_being_copied_is_left_for_later(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with OutFolder(tmp_path / "out") as folder:
        assert Inbox(inbox, folder).new_scans().targets == []
        assert Inbox(tmp_path / "empty", folder).new_scans().targets == []


def test_the_files_that_are_left_out_now_are_listed_with_the_reason(tmp_path: Path) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "out"

    def list_after_a_poll(scans: Inbox) -> tuple[str, list[str]]:
        scans.new_scans()
        name = scans.list_left_out()
        return name, (out / "left_out.txt").read_text().splitlines() if (out / "left_out.txt").exists() else []

    drop(inbox / "P1.nii.gz", "a scan")
    with OutFolder(out) as folder:
        scans = Inbox(inbox, folder)
        assert list_after_a_poll(scans) == ("", [])
        for name in ("brain.nii", "image.nii", "scan.nii"):
            drop(inbox / "P2" / name, name)
            list_after_a_poll(scans)
        which = "nothing says which of 3 files is the FLAIR scan (brain.nii, image.nii, scan.nii)"
        lines = [f"{inbox}/P2/{name}: {which}" for name in ("brain.nii", "image.nii", "scan.nii")]
        assert list_after_a_poll(scans) == ("", lines), "it is written if it changed"
        (inbox / "P2/brain.nii").unlink()
        assert [line.partition(":")[0] for line in list_after_a_poll(scans)[1]] == [
            f"{inbox}/P2/image.nii",
            f"{inbox}/P2/scan.nii",
        ]
    for name in ("image.nii", "scan.nii"):
        (inbox / "P2" / name).unlink()
    with OutFolder(out) as folder:
        assert list_after_a_poll(Inbox(inbox, folder)) == ("left_out.txt", [])


def test_an_inbox_without_a_scan_says_what_is_left_out(tmp_path: Path) -> None:
    drop(tmp_path / "inbox/P1_t1.nii.gz", "a T1")
    with OutFolder(tmp_path / "out") as folder:
        new = Inbox(tmp_path / "inbox", folder).new_scans()
        assert new.targets == []
        assert [left.path.name for left in new.left_out] == ["P1_t1.nii.gz"]
        assert Inbox(tmp_path / "nothing", folder).new_scans().left_out == []


def test_a_scan_whose_row_was_lost_with_a_killed_run_is_answered_again(
    inbox: Path, tmp_path: Path, flow: Flow, later: None
) -> None:
    out = tmp_path / "out"
    watch(inbox, out, flow)
    before = answers(out)
    lines = (out / RECORD).read_text().splitlines()
    (out / RECORD).write_text("\n".join(lines[:-1]))  # killed before the table was written for the last time
    rows = list(read_table(out / "predictions.csv").values())
    write_table(out / "predictions.csv", rows[:-1])
    with OutFolder(out) as folder:
        scans = Inbox(inbox, folder)
        assert poll(scans, folder, flow) == [rows[-1].source]
        assert poll(scans, folder, flow) == [], "the new row is in the table"
    assert answers(out) == before
    (out / "predictions.csv").unlink()
    assert watch(inbox, out, flow) == [], "a table that the user took away begins anew"


@pytest.mark.parametrize("nested", [False, True])
def test_the_inbox_is_searched_only_after_a_file_changed(
    inbox: Path, tmp_path: Path, flow: Flow, later: None, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    searches: list[object] = []
    monkeypatch.setattr(
        f"{Inbox.__module__}.find_inputs", lambda *how, **more: searches.append(how) or find_inputs(*how, **more)
    )
    with OutFolder(inbox / "out" if nested else tmp_path / "out") as folder:
        scans = Inbox(inbox, folder)

        def polls() -> list[str]:
            """The scans that are answered in the first of several polls; the last one searches nothing."""
            answered = poll(scans, folder, flow)
            assert poll(scans, folder, flow) == []
            searches.clear()
            assert poll(scans, folder, flow) == []
            assert searches == []
            return answered

        assert len(polls()) == 3
        drop(inbox / "P1/flair.nii.gz", "another scan")
        drop(inbox / "P3/flair.nii.gz", "a new scan")
        assert polls() == ["P1/flair.nii.gz", "P3/flair.nii.gz"]
        (folder.path / answers(folder.path)["P2/flair.nii.gz"]).unlink()
        assert polls() == ["P2/flair.nii.gz"]
        (inbox / "P0/flair.nii.gz").unlink()
        assert polls() == []


def test_a_scan_that_is_being_copied_is_seen_later_although_no_file_changes(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OutFolder(tmp_path / "out") as folder:
        scans = Inbox(inbox, folder)
        assert scans.new_scans().targets == []
        monkeypatch.setattr(NOW, lambda: int((time.time() + 100) * 1e9))
        assert len(scans.new_scans().targets) == 3
        assert len(scans.new_scans().targets) == 3, "until they are answered"


def test_a_scan_with_new_rights_or_times_or_links_is_not_answered_again(
    inbox: Path, tmp_path: Path, flow: Flow, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    watch(inbox, out, flow)
    (inbox / "P0/flair.nii.gz").chmod(0o640)
    (tmp_path / "backup").hardlink_to(inbox / "P1/flair.nii.gz")
    (inbox / "P2/flair.nii.gz").touch()
    assert watch(inbox, out, flow) == []
    monkeypatch.setattr("gliaflow_client.out_folder.scan_sha256", lambda item: pytest.fail("read again"))
    assert watch(inbox, out, flow) == [], "the new times are recorded"
    monkeypatch.undo()
    rows = list(read_table(out / "predictions.csv").values())
    write_table(out / "predictions.csv", rows[:-1])
    monkeypatch.setattr(NOW, lambda: int((time.time() + 100) * 1e9))
    assert watch(inbox, out, flow) == [], "new times are no answer of which the row was lost"


def test_one_bad_link_does_not_stop_the_others(inbox: Path, tmp_path: Path, flow: Flow, later: None) -> None:
    (inbox / "a").symlink_to("a")
    with OutFolder(tmp_path / "out") as folder:
        new = Inbox(inbox, folder).new_scans()
    assert len(new.targets) == 3
    assert [(left.path.name, left.kind) for left in new.left_out] == [("a", "broken link")]


def test_an_inbox_without_a_scan_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(tmp_path / "inbox/P1_t1.nii.gz", "a T1")
    searches: list[object] = []
    monkeypatch.setattr("gliaflow.scans.search", lambda *given, **how: searches.append(given) or search(*given, **how))
    with OutFolder(tmp_path / "out") as folder:
        assert len(Inbox(tmp_path / "inbox", folder).new_scans().left_out) == 1
    assert len(searches) == 1
