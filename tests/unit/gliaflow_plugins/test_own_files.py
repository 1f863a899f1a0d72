"""A folder of plugins is code that the stages run: only its owner and root may be able to change it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from gliaflow_plugins import PluginError
from gliaflow_plugins.own_files import who_else_may_write
from gliaflow_plugins.registry import load_registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins.d"
    (folder / "mine" / "__pycache__").mkdir(parents=True)
    for name in ("one.py", "_helper.py", "notes.txt", "mine/__init__.py", "mine/__pycache__/code.pyc"):
        (folder / name).touch()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


EACH = [".", "one.py", "_helper.py", "mine", "mine/__init__.py", "mine/__pycache__", "mine/__pycache__/code.pyc"]


def test_a_folder_that_only_its_owner_may_write_is_accepted(folder: Path) -> None:
    (folder / "link.py").symlink_to("one.py")
    assert who_else_may_write(folder) == ""


@pytest.mark.parametrize("mode", [0o002, 0o020])
@pytest.mark.parametrize("name", EACH)
def test_a_path_that_others_may_write_is_named_with_the_remedy(folder: Path, name: str, mode: int) -> None:
    path = folder / name
    path.chmod(path.stat().st_mode | mode)
    assert who_else_may_write(folder) == f"other users may write {path}: chmod -R go-w {folder}"


@pytest.mark.parametrize("name", EACH[1:])
def test_a_path_of_another_owner_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The folder's owner may differ from the user of the process, as in a container."""
    lstat = Path.lstat

    def of_another(self: Path) -> os.stat_result:
        status = lstat(self)
        return os.stat_result((*status[:4], 54321, *status[5:])) if self == folder / name else status

    monkeypatch.setattr(Path, "lstat", of_another)
    assert who_else_may_write(folder).startswith(f"{folder / name} belongs to another user than {folder} (uid 54321)")


@pytest.mark.parametrize("target", ["/etc/hostname", "../../outside", "/nowhere"])
def test_a_link_out_of_the_folder_is_named(folder: Path, target: str) -> None:
    (folder / "mine" / "link").symlink_to(target)
    assert who_else_may_write(folder) == f"{folder}/mine/link is a link out of the folder: copy the file instead"


def test_a_folder_that_others_may_replace_is_refused(folder: Path) -> None:
    for mode in (0o777, 0o775):
        folder.parent.chmod(mode)
        assert f"other users may replace {folder}" in who_else_may_write(folder)
    folder.parent.chmod(0o1777)  # as /tmp
    assert who_else_may_write(folder) == ""


def test_loading_leaves_nothing_that_the_next_start_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would write its cache with the rights that the umask leaves."""
    (folder / "one_of_these.py").write_text("import _helper\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(folder))
    umask = os.umask(0o002)
    try:
        load_registry()
    finally:
        os.umask(umask)
    assert who_else_may_write(folder) == ""


def test_no_plugin_of_such_a_folder_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command or stage ends with the reason: without its plugins it would silently do something else."""
    (folder / "one.py").write_text("raise SystemExit('it ran')")
    (folder / "notes.txt").chmod(0o666)
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(folder))
    reason = f"GLIAFLOW_PLUGINS: no plugin is loaded: other users may write {folder}/notes.txt: chmod -R go-w {folder}"
    with pytest.raises(PluginError, match=f"^{re.escape(reason)}$"):
        load_registry()
