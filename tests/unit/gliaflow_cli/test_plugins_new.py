"""``gliaflow plugins new`` writes a plugin that passes the contract's tests unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from gliaflow_cli.commands.plugins_new import KINDS, write_plugin
from gliaflow_runtime.errors import UsageError

pytest.importorskip("torch")

from gliaflow_plugins.conformance import checks


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_the_contract_unchanged(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new"
    project, code = write_plugin(f"my-{kind}", kind, folder)
    module = code.parent.name
    config = tomllib.loads(project.read_text())
    assert config["project"]["name"] == f"gliaflow-my-{kind}"
    assert config["project"]["entry-points"]["gliaflow"] == {f"my-{kind}": module}
    assert len(code.read_text().splitlines()) < 75, "short enough to read before changing it"
    monkeypatch.syspath_prepend(str(folder))
    done = 0
    for name, check in checks(module, {"steps": "60", "ngf": "16", "ndf": "16"}):
        if "5×24" not in name:
            check()
            done += 1
    assert done >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_its_words_are_of_its_kind(kind: str, tmp_path: Path) -> None:
    text = "".join(path.read_text() for path in write_plugin("mine", kind, tmp_path / "new"))
    words = {"generator": r"GAN\b", "classifier": r"[Cc]lassifier", "augmentation": r"[Aa]ugment"}
    assert [each for each, word in words.items() if each != kind and re.search(word, text)] == []
    assert ("steps=" in text) == (kind in ("generator", "classifier")), "the other kinds are not fitted"


def test_its_tests_run_by_the_printed_instructions(tmp_path: Path) -> None:
    project, _ = write_plugin("mine", "augmentation", tmp_path / "new")
    assert tomllib.loads(project.read_text())["project"]["optional-dependencies"] == {"test": ["pytest>=8"]}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_modules_that_are_added_are_packed(tmp_path: Path) -> None:
    """setuptools finds what goes into the wheel. In a process of its own, since it replaces distutils when imported."""
    project, code = write_plugin("mine", "step", tmp_path / "new")
    (code.parent / "filters").mkdir()
    (code.parent / "filters/__init__.py").touch()
    (project.parent / "tests").mkdir()
    (project.parent / "tests/__init__.py").touch()
    include = tomllib.loads(project.read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    find = f"import setuptools; print(*sorted(setuptools.find_packages({str(project.parent)!r}, include={include!r})))"
    done = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gliaflow_mine", "gliaflow_mine.filters"]


@pytest.mark.parametrize("name", ["", "My", "a--b", "-a", "a_b", "../up", "1a"])
def test_an_invalid_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lower-case"):
        write_plugin(name, "step", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        write_plugin("mine", "step", tmp_path)
    with pytest.raises(UsageError, match="--kind: 'gan' is not one of augmentation, generator"):
        write_plugin("mine", "gan", tmp_path / "new")


@pytest.mark.parametrize("name", ["n4", "plugins", "runtime"])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose another name"):
        write_plugin(name, "step", tmp_path / "new")


@pytest.mark.parametrize("name", ["none", "class", "cohort"])
def test_a_name_may_be_a_word_of_python_or_gliaflow(name: str, tmp_path: Path) -> None:
    _, code = write_plugin(name, "reader", tmp_path / "new")
    compile(code.read_text(), "code", "exec")
    assert f"class {name.capitalize()}Reader:" in code.read_text()
