"""A folder that cannot be used: the text names the folder, its owner and the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gliaflow_runtime import folders
from gliaflow_runtime.folders import existing, why_unreadable, why_unwritable


def test_a_usable_folder_has_no_problem(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path, 0) == ""
    assert why_unreadable(tmp_path) == ""


@pytest.mark.parametrize(("check", "verb"), [(why_unwritable, "write into"), (why_unreadable, "read")])
def test_the_owner_and_the_mode_are_named(
    check: Callable[[Path], str], verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o711)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do all
    problem = check(tmp_path)
    for part in (str(tmp_path), f"cannot {verb} it", f"belongs to user {tmp_path.stat().st_uid}", "mode 0711", "chown"):
        assert part in problem


def test_a_missing_folder_and_a_file_in_its_place(tmp_path: Path) -> None:
    assert "create it, mount it" in why_unreadable(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "not a folder" in why_unwritable(tmp_path / "file")
    assert existing(tmp_path / "missing" / "deep") == tmp_path


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: free)
    assert "only 1 MiB are free on its disk: make room" in why_unwritable(tmp_path)
