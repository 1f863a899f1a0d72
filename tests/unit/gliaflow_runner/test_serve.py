"""``gliaflow serve trainer``: the modes of its folders."""

from __future__ import annotations

import stat
from pathlib import Path

from gliaflow_runner.serve import prepare_folders
from gliaflow_runtime.settings import Settings


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_default_store_and_bundles_are_closed_and_the_state_folder_keeps_its_mode(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "store").mkdir(parents=True)
    for folder in (state, state / "store"):
        folder.chmod(0o775)
    prepare_folders(Settings(state=state))
    assert [mode(path) for path in (state, state / "store", state / "bundles")] == [0o775, 0o700, 0o700]


def test_folders_that_the_operator_named_keep_their_mode(tmp_path: Path) -> None:
    for name in ("shared-store", "shared-bundles"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    prepare_folders(Settings(state=tmp_path, store=tmp_path / "shared-store", bundles=tmp_path / "shared-bundles"))
    assert [mode(tmp_path / name) for name in ("shared-store", "shared-bundles")] == [0o755] * 2
