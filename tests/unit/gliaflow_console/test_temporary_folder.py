"""Scans in temporary folders do not stay on the disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from gliaflow_console.temporary_folder import LOCK, PREFIX, temporary_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_it_is_private_and_deleted_at_the_end() -> None:
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "scan.nii").touch()
    assert not folder.exists()


def test_what_a_killed_console_left_is_deleted_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / LOCK).touch()
    (tmp_path / f"{PREFIX}other").mkdir()  # without a lock: not a console's
    with temporary_folder() as used:
        for folder in (left, used, tmp_path / f"{PREFIX}other"):
            os.utime(folder, (0, 0))
        with temporary_folder():
            assert not left.exists()
            assert used.exists()
            assert (tmp_path / f"{PREFIX}other").exists()
