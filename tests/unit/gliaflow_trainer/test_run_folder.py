"""A work folder belongs to one run. Another run is refused, with the differences."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import small
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort, PluginError
from gliaflow_runtime.bundle.load import Bundle, demo_bundle
from gliaflow_trainer.finished import finished_bundle, note_finished
from gliaflow_trainer.kept_work import how_to_go_on
from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_context import in_words
from gliaflow_trainer.run_folder import same_run, settings_of
from gliaflow_trainer.variants import choose

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


def test_kept_work_is_listed_in_the_order_of_the_steps(tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    assert how_to_go_on(work) == "nothing was kept yet; the same command begins anew"
    for file in (
        *("slices/a.json", "slices/b.json", "fold-1/unet/manifest.json", "fold-2/unet/manifest.json"),
        *("fold-10/unet/unet.checkpoint", "bundle/infogan-0123456789ab.checkpoint"),
    ):
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        (work / file).touch()
    assert how_to_go_on(work) == (
        f"the same command resumes, from the work in {work}: slices of 2 scans, U-Net of folds 1, 2, a part of the "
        "U-Net of fold 10, a part of the generator infogan"
    )


def test_a_training_is_finished_if_its_bundle_is_there_and_of_the_same_request(tmp_path: Path) -> None:
    out, work = shutil.copytree(demo_bundle(), tmp_path / "out"), tmp_path / "out.work"
    work.mkdir()
    variants = choose(small.REGISTRY, "levels", small.PROFILE)
    request = TrainRequest(Cohort("brats", []), tmp_path, out, "mine", small.PROFILE, variants)
    assert finished_bundle(request, work) is None
    bundle = note_finished(Bundle(out), request, work)
    again = finished_bundle(request, work)
    assert again is not None
    assert again.id == bundle.id
    others = choose(small.REGISTRY, "levels", small.PROFILE, {"spread": "0.7"})
    assert finished_bundle(replace(request, variants=others), work) is None
    assert finished_bundle(replace(request, name="another"), work) is None
    (out / "manifest.json").unlink()
    assert finished_bundle(request, work) is None


def test_an_epochs_figures_are_words_in_a_log() -> None:
    figures = {"loss": 0.8412, "val_dice": 0.71, "val_loss": 0.3, "seconds": 16.4, "left_seconds_of_all_fits": 5400.0}
    assert in_words(figures) == (
        "loss 0.841, Dice of validation patients 0.71, loss of validation patients 0.3, 16 s taken, "
        "90 min left of all fits"
    )
    assert in_words({"loss_d": 1.5, "accuracy_fake": 0.9}) == (
        "discriminator's loss 1.5, accuracy on synthetic features 0.9"
    )
