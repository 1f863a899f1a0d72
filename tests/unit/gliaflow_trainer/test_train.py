"""``gliaflow train`` on a handful of small heads: all of it, from folders to a bundle that serves."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_plugins.contracts import PluginError

torch = pytest.importorskip("torch")

import small  # noqa: E402
from gliaflow_extractor.extractor import UNet  # noqa: E402
from gliaflow_extractor.extractor import crop as served_crop  # noqa: E402
from gliaflow_generator.synthesis import Synthesizer  # noqa: E402
from gliaflow_plugins.contracts import Cohort  # noqa: E402
from gliaflow_plugins.features import ArrayFeatures  # noqa: E402
from gliaflow_plugins.generators.acgan_image import ACGANImage  # noqa: E402
from gliaflow_plugins.networks.image_gan import crop  # noqa: E402
from gliaflow_runtime.bundle.load import Bundle  # noqa: E402
from gliaflow_runtime.bundle.manifest import BundleError  # noqa: E402
from gliaflow_runtime.inference import Network  # noqa: E402
from gliaflow_store.feature_store import FeatureStore  # noqa: E402
from gliaflow_trainer import train as module  # noqa: E402
from gliaflow_trainer.slice_features import Imaged  # noqa: E402
from gliaflow_trainer.steps import initial, synthetic  # noqa: E402
from gliaflow_trainer.train import split_patients, train  # noqa: E402
from gliaflow_trainer.variants import choose  # noqa: E402
from rich.progress import Progress  # noqa: E402

PATIENTS = [(f"p{n}", "HGG" if n % 3 else "LGG") for n in range(40)]


def test_patients_are_split_once_by_grade() -> None:
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


def test_patients_of_no_known_grade_are_split_too() -> None:
    parts = list(split_patients([(patient, "not known") for patient, _ in PATIENTS], seed=0).values())
    assert [parts.count(part) for part in ("train", "validation", "test")] == [28, 6, 6]


def test_patients_without_a_grade_are_learnt_from_where_others_have_one() -> None:
    split = split_patients([*PATIENTS, ("ungraded", "not known")], seed=1)
    assert split == split_patients(PATIENTS, seed=1) | {"ungraded": "train"}


def test_too_few_patients_of_a_grade_is_said() -> None:
    with pytest.raises(PluginError, match="3 patients of grade LGG"):
        split_patients(PATIENTS[:8], seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients, one of whose scans cannot be read."""
    folder = tmp_path_factory.mktemp("train")
    small.write_cohort(folder / "cohort", 6, 4)
    (folder / "cohort/HGG/H5/H5_flair.nii.gz").write_bytes(b"not a scan")
    (folder / "cohort/phantoms.json").write_text('{"made_by": "gliaflow phantom", "seed": 3}')
    return folder


def fit(folder: Path, out: str, cohort: Cohort | None = None, **options: Any) -> Bundle:
    options = {"profile": small.PROFILE, "registry": small.REGISTRY, "generators": "levels", "seed": 3} | options
    with Progress(disable=True) as bar:
        cases = cohort or small.cohort(folder / "cohort")
        return train(cases, folder / "cohort", folder / out, name="tiny", bar=bar, **options)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return fit(folder, "bundle", options={"spread": "0.3"})


def test_the_bundle_serves(bundle: Bundle) -> None:
    assert bundle.tap == "dec3"
    assert bundle.tap_shape == (8, 12, 12)
    features, masks = UNet(bundle)(np.zeros((3, 1, 48, 48), np.float32))
    assert features.shape == (3, 8, 12, 12)
    assert masks.shape == (3, 48, 48)
    (logit,) = Network(bundle, "classifier", ["logit"])(features=features.astype(np.float32))
    assert logit.shape == (3,)
    assert Synthesizer(bundle).classes == ("HGG", "LGG")


def test_it_segments_and_grades_patients_it_has_not_seen(bundle: Bundle) -> None:
    assert bundle.manifest.metrics["segmentation"]["dice_mean"] > 0.5
    assert bundle.manifest.metrics["grading"]["auc"] == 1
    assert bundle.manifest.metrics["unet"].keys() == {"train", "validation", "test"}
    assert bundle.manifest.metrics["synthetic"]["levels"]["critic_accuracy"] > 0.7


def test_the_manifest_says_how_it_was_made_and_names_no_patient(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.training["seed"] == 3
    assert manifest.training["cohort"]["made_by"]["seed"] == 3
    counts = manifest.training["cohort"]["patients"]
    assert counts == {
        part: {"HGG": n, "LGG": m} for part, n, m in (("train", 3, 2), ("validation", 1, 1), ("test", 1, 1))
    }
    assert manifest.training["history"].keys() == {"unet", "generator", "classifier"}
    assert manifest.generators["levels"].options == {"spread": 0.3}, "an option goes over the profile's"
    assert manifest.cropped, "as the classifier was fitted"
    assert manifest.metrics["segmentation"]["patients"] == 2
    assert {"torch", "onnxruntime", "gliaflow"} <= manifest.versions.keys()
    text = json.dumps(manifest.model_dump(mode="json"))
    assert not [name for name in ("H0", "L0", "H4", str(bundle.folder.parent)) if name in text]
    assert "not a clinical model" in manifest.notice.lower()
    assert "9 phantoms" in manifest.notice


def test_called_again_it_does_nothing_anew_and_with_other_settings_it_says_so(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the U-Net was fitted again")

    monkeypatch.setattr("gliaflow_trainer.steps.fit_unet", never)
    weights = bundle.read("unet.onnx"), bundle.read("classifier.onnx")
    again = fit(folder, "bundle", options={"spread": "0.3"})
    assert (again.read("unet.onnx"), again.read("classifier.onnx")) == weights
    with pytest.raises(PluginError, match=r"differs in seed; remove it"):
        fit(folder, "bundle", options={"spread": "0.3"}, seed=4)


def test_a_folder_that_is_no_bundle_is_left_alone(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/thesis.txt").touch()
    with pytest.raises(PluginError, match="mine: is there already and is no bundle"):
        fit(folder, "mine")
    assert (folder / "mine/thesis.txt").exists()


@pytest.mark.parametrize(
    "wrong", [{"generators": "nobody"}, {"options": {"colour": "red"}}, {"augmentations": [("none", {})]}]
)
def test_what_is_not_known_is_said_before_anything_is_done(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(PluginError):
        fit(folder, "wrong", **wrong)
    assert not (folder / "wrong.work").exists()


def test_without_grades_it_segments_alone_and_is_fine_tuned_from(folder: Path) -> None:
    known = small.cohort(folder / "cohort")
    cases = [dataclasses.replace(case, label=None) for case in known.cases]
    quick = dataclasses.replace(small.PROFILE, unet={**small.PROFILE.unet, "epochs": 1})
    start = fit(folder, "start", dataclasses.replace(known, cases=cases), profile=quick)
    assert set(start.manifest.files) == {"unet.onnx", "unet.safetensors"}
    assert start.manifest.generator == ""
    net = initial(start.folder, quick)
    assert (net.width, net.norm) == (4, True)
    tuned = fit(folder, "tuned", dataclasses.replace(known, cases=cases), profile=quick, init=start.folder)
    assert tuned.manifest.training["init"] == start.id
    assert len(tuned.manifest.training["history"]["unet"]) == small.PROFILE.fine_tune["epochs"]
    with pytest.raises(BundleError, match="width 4 and batch norm, the profile asks for 8"):
        initial(start.folder, dataclasses.replace(quick, width=8))


def test_several_processes_share_an_epoch_and_one_of_them_talks(tmp_path: Path) -> None:
    cohort = small.write_cohort(tmp_path / "cohort", 4, 0)
    scans = [path.relative_to(cohort) for path in sorted(cohort.glob("*/*/*_flair.nii.gz"))]
    rows = [f"{scan},{str(scan).replace('flair', 'seg')},{scan.parent.name}" for scan in scans]
    (cohort / "cohort.csv").write_text("\n".join(["scan,mask,patient", *rows]), encoding="utf-8")
    options = ["--out", str(tmp_path / "made"), "--profile", "demo", "--epochs", "1"]
    command = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "gliaflow_cli", "train", str(cohort), *options]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("U-Net 1/1:") == 1
    made = Bundle(tmp_path / "made")
    assert made.manifest.metrics["unet"]["train"]["hard_dice"] > 0.3
    assert len(made.manifest.training["history"]["unet"]) == 1


def test_the_cnn_may_grade_instead(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Fitted on what lies in the store, as the trainer service does it."""
    profile = dataclasses.replace(small.PROFILE, classifier="cnn", classifiers={"cnn": {"epochs": 2}})
    store = FeatureStore(folder / "bundle.work/features")
    split = split_patients(
        list({p: ("HGG", "LGG")[n] for p, n in zip(store.patients, store.labels, strict=True)}.items()), 3
    )
    manifest = bundle.manifest.model_dump(mode="json", exclude={"schema_", "files"})
    with Progress(disable=True) as bar:
        made = module.fit_graders(
            store, split, bundle, tmp_path / "work", tmp_path / "out", manifest,
            choose(small.REGISTRY, "levels", profile), 3, "cpu", bar,
        )  # fmt: skip
    assert len(made.manifest.training["history"]["classifier"]) == 2
    assert 0 <= made.manifest.metrics["grading"]["auc"] <= 1


def test_synthetic_features_are_those_that_the_critic_accepts() -> None:
    class Generator(torch.nn.Module):
        def forward(self, z: Any, label: Any) -> Any:
            return z[:, :1, None, None].expand(-1, 2, 3, 3)

    class Critic(torch.nn.Module):
        def forward(self, features: Any) -> Any:
            level = features.mean(dim=(1, 2, 3))
            return level, torch.stack([level - 1, 1 - level], dim=1)  # class 0 only where the level is over 1

    fitted = small.Fitted(1, Generator(), Critic())
    features, share = synthetic(fitted, 0, 50, seed=0)
    assert features.shape == (50, 2, 3, 3)
    assert (features > 1).all()
    assert share == pytest.approx(0.16, abs=0.08)
    assert np.array_equal(features, synthetic(fitted, 0, 50, seed=0)[0])
    none, share = synthetic(small.Fitted(1, Generator(), Never()), 0, 10, seed=0)
    assert none.shape == (0, 2, 3, 3)
    assert share == 0


class Never(torch.nn.Module):
    """A critic that takes all for class 1."""

    def forward(self, features: Any) -> Any:
        return features[:, 0, 0, 0], torch.tensor([[0.0, 1.0]]).expand(len(features), 2)


class Broken(small.Levels):
    """A generator variant in which something is wrong."""

    def __init__(self, name: str, fitted: Any) -> None:
        self.name, self.fitted = name, fitted

    def fit(self, features: Any, options: Any, **_: Any) -> Any:
        return self.fitted(small.Levels().fit(features, options, seed=0))


def broken(name: str) -> Any:
    def nan(fitted: Any) -> Any:
        fitted.generator.means[:] = np.nan
        return fitted

    how = {"raises": lambda _: 1 / 0, "exits": lambda _: sys.exit(0), "returns": lambda _: None, "nan": nan}
    return Broken(name, how[name])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", r"'raises' could not be fitted: ZeroDivisionError: division by zero \(.*test_train.py:\d+\)"),
        ("exits", r"'exits' could not be fitted: SystemExit: 0 \(.*test_train.py:\d+\)"),
        ("returns", "'returns': fit returned NoneType, not Fitted"),
        ("nan", "'nan': its generator made NaN"),
    ],
)
def test_a_broken_generator_is_told_by_name_and_line(folder: Path, name: str, told: str) -> None:
    registry = dataclasses.replace(small.REGISTRY, generators={"levels": small.Levels(), name: broken(name)})
    with pytest.raises(PluginError, match=told):
        fit(folder, "broken", registry=registry, generators=f"levels,{name}")
    assert not (folder / "broken").exists()


def test_a_bundle_of_several_generators_serves_each(folder: Path) -> None:
    second = Broken("second", lambda fitted: fitted)
    registry = dataclasses.replace(small.REGISTRY, generators={"levels": small.Levels(), "second": second})
    bundle = fit(
        folder, "several", registry=registry, generators="second,levels", options={"levels.spread": 0.3, "spread": 2}
    )
    assert bundle.manifest.generator == "second"
    assert {name: spec.options for name, spec in bundle.manifest.generators.items()} == {
        "second": {"spread": 2.0},
        "levels": {"spread": 0.3},
    }
    rng = np.random.default_rng(0)
    assert Synthesizer(bundle).generator == "second"
    assert Synthesizer(bundle, "levels").draw("HGG", 3, rng).shape == (3, *bundle.tap_shape)
    with pytest.raises(BundleError, match="has no 'acgan'; there is: second, levels"):
        Synthesizer(bundle, "acgan")
    with pytest.raises(PluginError, match=r"third\.spread: 'third' is not one of"):
        fit(folder, "none", registry=registry, generators="second", options={"third.spread": 1})


def test_slices_go_through_the_extractor_in_torch_as_in_serving(folder: Path, bundle: Bundle) -> None:
    """What ``acgan-image`` is fitted on and through: the features of the store come out, cropped or not."""
    store = FeatureStore(folder / "bundle.work/features")
    base = Bundle(folder / "bundle.work/unet")
    known = Imaged(store, folder / "bundle.work/slices", base, cropped=True)
    some = np.arange(0, len(store), 7)
    slices = known.slices
    assert slices.images.shape == (1, 48, 48)
    assert np.array_equal(slices.images.labels, known.labels)
    with torch.no_grad():
        features = slices.extractor(torch.from_numpy(slices.images.batch(some))).numpy()
    assert features.shape == (len(some), *store.shape)
    expected = store.batch(some)
    assert np.abs(features - expected).max() < 0.02 * expected.max()
    masks = torch.rand(20, 48, 48) > 0.97
    masks[0] = False
    masks[1, :, :3] = True
    maps = torch.rand(20, 5, 24, 24)
    np.testing.assert_allclose(
        crop(maps, masks).numpy(), served_crop(maps.numpy(), masks.numpy()), atol=1e-6, err_msg="crop"
    )


def test_synthetic_slices_become_a_generator_of_features(folder: Path) -> None:
    registry = dataclasses.replace(small.REGISTRY, generators={"acgan-image": ACGANImage()})
    options = {"steps": 3, "ngf": 4, "ndf": 4}
    bundle = fit(folder, "imaged", registry=registry, generators="acgan-image", options=options)
    synthesizer = Network(bundle, "generator-acgan-image", ["features"])
    noise = np.zeros((2, bundle.manifest.generators["acgan-image"].noise), np.float32)
    (features,) = synthesizer(z=noise, label=np.array([0, 1]))
    assert features.shape == (2, *bundle.tap_shape)
    source = ArrayFeatures(np.ones((8, 4, 6, 6), np.float32), np.arange(8) % 2, ("HGG", "LGG"))
    with pytest.raises(ValueError, match="without their slices"):
        ACGANImage().fit(source, ACGANImage.options(), seed=0)
