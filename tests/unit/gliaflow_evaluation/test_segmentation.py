"""The U-Net of a fold sees nothing of the fold's test patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import small
from gliaflow_proto import Geometry
from gliaflow_trainer import unet_bundle
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.slices import CutScan, Slices
from rich.progress import Progress
from small_fold import COHORT, FOLD

GEOMETRY = Geometry(
    affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    shape=[48, 48, 2],
    orientation=[0, 1, 1, 1, 2, 1],
    origin=[0.0, 0.0],
    step=[1.0, 1.0],
    size=[48, 48],
    slices=[0, 1],
)


def test_test_patients_do_not_change_the_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With wild images and masks of the test patients the weights are the same, bit by bit."""
    monkeypatch.setattr(unet_bundle, "export", lambda *_: None)
    rng = np.random.default_rng(0)
    plain = []
    for patient, label in COHORT.items():
        image, mask = rng.random((2, 1, 48, 48)).astype(np.float16), np.uint8(rng.random((2, 48, 48)) < 0.1)
        plain.append(CutScan(patient, patient, patient, label, GEOMETRY, image, mask, voxels=patient))
    wild = [
        replace(scan, image=scan.image * 100, mask=1 - scan.mask) if FOLD.split[scan.patient] == "test" else scan
        for scan in plain
    ]
    unet = {**small.PROFILE.unet, "epochs": 2, "epoch_slices": None, "randomise": True}
    recipe = unet_bundle.UNetRecipe("unet", replace(small.PROFILE, unet=unet))
    bundles = []
    with Progress(disable=True) as bar:
        for name, scans in (("plain", plain), ("wild", wild)):
            context = RunContext(0, "cpu", bar)
            bundle = unet_bundle.fit_unet_bundle(Slices(scans), FOLD.split, recipe, tmp_path / name, context)
            assert bundle is not None
            bundles.append(bundle)
    first, second = bundles
    assert first.read(unet_bundle.WEIGHTS) == second.read(unet_bundle.WEIGHTS)
    assert first.manifest.metrics["unet"]["train"] == second.manifest.metrics["unet"]["train"]
    assert first.manifest.metrics["unet"]["test"] != second.manifest.metrics["unet"]["test"]
