"""Each scan in an inbox is answered once, whatever the clock does and whatever happens meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gliaflow.flow import Flow
from gliaflow_cli.client.inbox import list_left_out, new_scans, write_answer
from gliaflow_cli.client.out_folder import OutFolder
from gliaflow_cli.client.record import RECORD
from gliaflow_cli.client.table import read_table, write_table
from gliaflow_plugins.cohorts.walk import LeftOut
from gliaflow_proto import ScanMessage
from gliaflow_runtime.broker.interface import Broker
from stand_in import StandIn, fail

NOW = "gliaflow_cli.client.inbox.time.time_ns"


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
        new = new_scans(inbox, folder)
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
        left_out = new_scans(inbox, folder)
        assert (left_out.targets, left_out.left_out) == ([], [])


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_a_scan_is_answered_once_even_if_the_clock_jumps(
    inbox: Path, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    jumped = time.time_ns() + jump_s * 10**9
    monkeypatch.setattr(NOW, lambda: jumped)
    out = tmp_path / "out"
    with OutFolder(out) as folder:
        targets = new_scans(inbox, folder).targets
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
        assert new_scans(inbox, folder).targets == []
        assert new_scans(tmp_path / "empty", folder).targets == []


def test_files_that_are_left_out_are_listed_with_the_reason(tmp_path: Path) -> None:
    left_out = {LeftOut(Path("P1/t1.nii"), "a T1", "sequence"), LeftOut(Path("P1/seg.nii"), "a mask", "mask")}
    with OutFolder(tmp_path) as folder:
        name = list_left_out(folder, left_out)
    assert (tmp_path / name).read_text() == "P1/seg.nii: a mask\nP1/t1.nii: a T1\n"


def test_an_inbox_without_a_scan_says_what_is_left_out(tmp_path: Path) -> None:
    drop(tmp_path / "inbox/P1_t1.nii.gz", "a T1")
    with OutFolder(tmp_path / "out") as folder:
        new = new_scans(tmp_path / "inbox", folder)
        assert new.targets == []
        assert [left.path.name for left in new.left_out] == ["P1_t1.nii.gz"]
        assert new_scans(tmp_path / "nothing", folder).left_out == []


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
    assert watch(inbox, out, flow) == [rows[-1].source]
    assert answers(out) == before
    (out / "predictions.csv").unlink()
    assert watch(inbox, out, flow) == [], "a table that the user took away begins anew"
