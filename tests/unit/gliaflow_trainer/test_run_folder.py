"""A work folder belongs to one run. Another run is refused, with the differences."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_trainer.run_folder import same_run, settings_of

CASE = Case("P1", NiftiFile(Path("P1.nii")), NiftiFile(Path("P1_seg.nii")), "P1", "II", label="LGG")
SETTINGS = {"scan": settings_of([CASE, replace(CASE, id="P2")]), "seed": 0, "profile": {"unet": {"epochs": 7}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    same_run(tmp_path / "work", SETTINGS)
    return tmp_path / "work"


def test_the_same_settings_are_the_same_run(folder: Path) -> None:
    moved = replace(CASE, scan=NiftiFile(Path("elsewhere/P1.nii")))
    same_run(folder, SETTINGS | {"scan": settings_of([replace(CASE, id="P2"), moved])})


@pytest.mark.parametrize(
    ("changed", "differences"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"profile": {"unet": {"epochs": 8}}}, "profile unet epochs was 7 and is now 8"),
        ({"init": "demo@1"}, "init is new"),
        ({"scan": settings_of([CASE])}, "scan P2 is gone"),
        (
            {"scan": settings_of([replace(CASE, grade="IV", label="HGG"), replace(CASE, id="P2")])},
            "scan P1 class was LGG and is now HGG, scan P1 grade was II and is now IV",
        ),
        (
            {"scan": settings_of(replace(CASE, id=f"Q{number}") for number in range(4))},
            "scan P1 is gone, scan P2 is gone, scan Q0 is new and 3 more",
        ),
    ],
)
def test_another_run_is_refused_with_the_differences(folder: Path, changed: dict[str, Any], differences: str) -> None:
    message = f"{folder}: holds the work of another run: {differences}; remove it, or name another --out"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        same_run(folder, SETTINGS | changed)
