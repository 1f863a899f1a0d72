"""``gliaflow generate``: the file's ending is its format, and a class has its name in any case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_cli.main import app
from gliaflow_runtime.errors import UsageError
from safetensors import safe_open
from typer.testing import CliRunner

ABOUT = {"class": "LGG", "classes": "HGG,LGG", "generator": "infogan", "seed": "7"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GLIAFLOW_THREADS", "1")


def generate(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["generate", "--count", "3", "--seed", "7", *arguments], catch_exceptions=False)


def test_both_formats_have_the_same_features_labels_and_origin() -> None:
    for out in ("a.safetensors", "new/b.npz"):
        done = generate("--grade", "lgg", "--out", out)
        assert done.exit_code == 0
        assert "3 LGG features" in done.output
    arrays = np.load("new/b.npz")
    with safe_open("a.safetensors", "numpy") as tensors:
        assert np.array_equal(arrays["features"], tensors.get_tensor("features"))
        assert np.array_equal(arrays["label"], tensors.get_tensor("label"))
        assert tensors.metadata().items() >= ABOUT.items()
        assert {name: str(arrays[name]) for name in tensors.metadata()} == tensors.metadata()
    assert arrays["features"].shape[0] == 3
    assert arrays["label"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("out", ["x.pt", "x", "folder.npz"])
def test_another_ending_or_a_folder_is_refused_before_work_begins(out: str) -> None:
    Path("folder.npz").mkdir()
    with pytest.raises(UsageError, match=r"--out: .*: name a file that ends in .safetensors or .npz"):
        generate("--grade", "LGG", "--out", out)


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(UsageError, match="grade: 'IV' is not one of HGG, LGG"):
        generate("--grade", "IV", "--out", "x.npz")


def test_a_file_that_exists_is_not_overwritten() -> None:
    Path("mine.npz").write_text("notes")
    with pytest.raises(UsageError, match=r"mine\.npz exists already"):
        generate("--grade", "LGG", "--out", "mine.npz")
    assert Path("mine.npz").read_text() == "notes"
