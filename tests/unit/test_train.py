"""``gliaflow train`` on a handful of phantoms: small, but all of it, from folders to a bundle that serves."""

import dataclasses
import json

import numpy as np
import pytest
from gliaflow_plugins.base import PluginError

pytest.importorskip("torch")

from gliaflow_extractor.extractor import UNet
from gliaflow_generator.synthesis import Synthesizer
from gliaflow_runtime.bundle import Bundle
from gliaflow_runtime.inference import Network
from gliaflow_trainer.phantom import write_cohort
from gliaflow_trainer.train import PROFILES, split_patients, train
from rich.progress import Progress

PATIENTS = [(f"p{n}", "HGG" if n % 3 else "LGG") for n in range(40)]


def test_patients_are_split_once_by_grade():
    split = split_patients(PATIENTS * 2, seed=1)  # two scans of each: a patient never straddles
    assert split.keys() == {patient for patient, _ in PATIENTS}
    for grade, expected in (
        ("HGG", {"train": 18, "validation": 4, "test": 4}),
        ("LGG", {"train": 10, "validation": 2, "test": 2}),
    ):
        parts = [split[patient] for patient, its in PATIENTS if its == grade]
        assert {part: parts.count(part) for part in expected} == expected
    assert split == split_patients(PATIENTS, seed=1)
    assert split != split_patients(PATIENTS, seed=2)


def test_too_few_patients_of_a_grade_is_said():
    with pytest.raises(PluginError, match="3 patients of grade LGG"):
        split_patients(PATIENTS[:8], seed=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle trained for seconds on eight phantoms, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("train")
    write_cohort(folder / "cohort", 9, seed=3, hgg_share=0.5)
    broken = next(folder.glob("cohort/LGG/*/*_flair.nii.gz"))
    broken.write_bytes(b"not a scan")
    demo = PROFILES["demo"]
    tiny = dataclasses.replace(
        demo,
        width=4,
        unet={**demo.unet, "epochs": 3, "epoch_slices": 96},
        acgan={"epochs": 1, "ngf": 8, "ndf": 8},
        classifier={"epochs": 2},
    )
    with Progress(disable=True) as bar:
        return train(folder / "cohort", folder / "bundle", tiny, name="tiny", seed=3, bar=bar)


def test_the_bundle_serves(bundle):
    assert bundle.tap_shape == (64, 15, 15)
    features, masks = UNet(bundle)(np.zeros((3, 1, 240, 240), np.float32))
    assert features.shape == (3, 64, 15, 15)
    assert (features >= 0).all(), "the tap is behind a ReLU"
    assert masks.shape == (3, 240, 240)
    (logit,) = Network(bundle, "classifier", ["logit"])(features=features.astype(np.float32))
    assert logit.shape == (3,)
    assert Synthesizer(bundle).classes == ("HGG", "LGG")


def test_the_manifest_says_how_it_was_made_and_names_no_patient(bundle):
    manifest = bundle.manifest
    assert manifest.training["seed"] == 3
    assert manifest.training["cohort"]["made_by"]["seed"] == 3
    counts = manifest.training["cohort"]["patients"]
    assert sum(counts["train"].values()) + sum(counts["validation"].values()) + sum(counts["test"].values()) == 8
    assert len(manifest.training["history"]["unet"]) == 3
    assert manifest.metrics["segmentation"]["patients"] == counts["test"]["HGG"] + counts["test"]["LGG"]
    assert {"torch", "onnxruntime", "gliaflow"} <= manifest.versions.keys()
    assert "phantom_3" not in json.dumps(manifest.model_dump(mode="json"))
    assert "not a clinical model" in manifest.notice.lower()
