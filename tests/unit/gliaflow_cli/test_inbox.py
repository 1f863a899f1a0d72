"""Each scan in an inbox is answered once, whatever the clock does and whatever happens meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from gliaflow.answer import Answer
from gliaflow.scans import Input
from gliaflow_cli.client.inbox import new_scans, write_answer

NOW = "gliaflow_cli.client.inbox.time.time_ns"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    for number in range(3):
        (folder / f"s{number}.nii").write_bytes(b"a scan")
    return folder


def answer(item: Input) -> Answer:
    return Answer.failed(item, "because")


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_a_scan_is_answered_once_even_if_the_clock_jumps(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    out = tmp_path / "out"
    jumped = time.time_ns() + jump_s * 10**9
    monkeypatch.setattr(NOW, lambda: jumped)
    found = new_scans(inbox, out)
    assert [item.name for item, _ in found] == ["s0", "s1", "s2"]
    time.sleep(0.01)
    (inbox / "s2.nii").write_bytes(b"another scan, while the first is in work")
    for item, changed in found:
        write_answer(out, answer(item), changed)
    assert [item.name for item, _ in new_scans(inbox, out)] == ["s2"]
    time.sleep(0.01)
    (inbox / "s1.nii").write_bytes(b"another scan, after the answer")
    assert [item.name for item, _ in new_scans(inbox, out)] == ["s1", "s2"]


def test_an_answer_that_is_not_written_completely_does_not_count(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        self.touch()
        raise OSError("no space left on device")

    out = tmp_path / "out"
    later = time.time_ns() + 10**11
    monkeypatch.setattr(NOW, lambda: later)
    found, *_ = new_scans(inbox, out)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_answer(out, answer(found[0]), found[1])
    assert found in new_scans(inbox, out)


def test_a_scan_that_is_still_being_copied_is_left_for_later(inbox: Path, tmp_path: Path) -> None:
    assert new_scans(inbox, tmp_path / "out") == []
    assert new_scans(tmp_path / "out", tmp_path) == [], "an empty inbox"
