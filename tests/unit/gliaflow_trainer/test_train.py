"""``gliaflow train`` on a few small heads, from their folders to a bundle that serves."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow_plugins.contracts import PluginError

torch = pytest.importorskip("torch")

import small  # noqa: E402
from gliaflow_extractor.extractor import UNetSession  # noqa: E402
from gliaflow_extractor.extractor import crop as served_crop  # noqa: E402
from gliaflow_generator.synthesis import Synthesizer  # noqa: E402
from gliaflow_plugins.classifiers import Shared  # noqa: E402
from gliaflow_plugins.contracts import Cohort, FitContext, FitSamples  # noqa: E402
from gliaflow_plugins.features import ArrayFeatures  # noqa: E402
from gliaflow_plugins.generators.acgan_image import ACGANImage  # noqa: E402
from gliaflow_plugins.generators.adapted import Adapted  # noqa: E402
from gliaflow_plugins.networks.image_gan import crop  # noqa: E402
from gliaflow_plugins.registry import Registry  # noqa: E402
from gliaflow_runtime.bundle.load import Bundle  # noqa: E402
from gliaflow_runtime.bundle.manifest import BundleError  # noqa: E402
from gliaflow_runtime.inference import Network  # noqa: E402
from gliaflow_store.feature_store import FeatureStore  # noqa: E402
from gliaflow_trainer.features import FeaturesWithSlices  # noqa: E402
from gliaflow_trainer.fine_tuning import unet_to_fine_tune  # noqa: E402
from gliaflow_trainer.graders import SplitFeatures, fit_graders  # noqa: E402
from gliaflow_trainer.profiles import Profile  # noqa: E402
from gliaflow_trainer.report import summary  # noqa: E402
from gliaflow_trainer.request import TrainRequest  # noqa: E402
from gliaflow_trainer.run_context import RunContext  # noqa: E402
from gliaflow_trainer.train import split_patients, train  # noqa: E402
from gliaflow_trainer.variants import choose, fit_classifier  # noqa: E402
from rich.progress import Progress  # noqa: E402

pytestmark = pytest.mark.slow
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


def test_without_any_grade_all_patients_are_split() -> None:
    parts = list(split_patients([(patient, "not known") for patient, _ in PATIENTS], seed=0).values())
    assert [parts.count(part) for part in ("train", "validation", "test")] == [28, 6, 6]


def test_patients_without_a_grade_are_training_patients_if_others_have_one() -> None:
    split = split_patients([*PATIENTS, ("ungraded", "not known")], seed=1)
    assert split == split_patients(PATIENTS, seed=1) | {"ungraded": "train"}


def test_too_few_patients_of_a_grade_are_an_error() -> None:
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


def fit(
    folder: Path,
    out: str,
    cohort: Cohort | None = None,
    profile: Profile = small.PROFILE,
    registry: Registry = small.REGISTRY,
    generators: str = "levels",
    options: dict[str, Any] | None = None,
    **request: Any,
) -> Bundle:
    with Progress(disable=True) as bar:
        bundle = train(
            TrainRequest(
                cohort=cohort or small.cohort(folder / "cohort"),
                folder=folder / "cohort",
                out=folder / out,
                name="tiny",
                profile=profile,
                **{"seed": 3, "variants": choose(registry, generators, profile, options)} | request,
            ),
            bar,
        )
    assert bundle is not None
    return bundle


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return fit(folder, "bundle", options={"spread": "0.3"})


def start_with_work_of(bundle: Bundle, out: str) -> None:
    """Give the bundle ``out`` the cut scans, the U-Net and the features of another one, which saves their time."""
    work = bundle.folder.with_name(f"{bundle.folder.name}.work")
    shutil.copytree(work, bundle.folder.with_name(f"{out}.work"), ignore=shutil.ignore_patterns("bundle"))


def test_leaks_are_refused_or_noted(folder: Path, bundle: Bundle) -> None:
    leaking = dataclasses.replace(small.cohort(folder / "cohort"), leaks=["H0 and h0"])
    with pytest.raises(PluginError, match="--allow\n  leak: H0 and h0"):
        fit(folder, "leaks", leaking)
    assert not (folder / "leaks.work").exists()
    start_with_work_of(bundle, "leaks")
    allowed = fit(folder, "leaks", leaking, allow=True)
    assert (bundle.manifest.training["cohort"]["leaks"], allowed.manifest.training["cohort"]["leaks"]) == (0, 1)


def test_two_patients_with_the_same_voxels_are_a_leak(tmp_path: Path) -> None:
    small.write_cohort(tmp_path / "cohort", 2, 2)
    for kind in ("flair", "seg"):
        source = tmp_path / f"cohort/HGG/H0/H0_{kind}.nii.gz"
        voxels = nib.load(source)
        target = tmp_path / f"cohort/LGG/X/X_{kind}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(voxels.dataobj), voxels.affine), target.with_suffix(""))
    with pytest.raises(PluginError, match="--allow\n  leak: the same voxels: ") as error:
        fit(tmp_path, "out")
    assert {"H0", "X"} <= set(" ".join(error.value.__notes__).split())
    assert not (tmp_path / "out.work/unet").exists(), "nothing was fitted"


def test_the_bundle_serves(bundle: Bundle) -> None:
    assert bundle.tap == "dec3"
    assert bundle.tap_shape == (8, 12, 12)
    features, masks = UNetSession(bundle)(np.zeros((3, 1, 48, 48), np.float32))
    assert features.shape == (3, 8, 12, 12)
    assert masks.shape == (3, 48, 48)
    (logit,) = Network(bundle, "classifier", ["logit"])(features=features.astype(np.float32))
    assert logit.shape == (3,)
    assert Synthesizer(bundle).classes == ("HGG", "LGG")


def test_the_bundle_segments_and_grades_patients_that_it_has_not_seen(bundle: Bundle) -> None:
    assert bundle.manifest.metrics["segmentation"]["dice_mean"] > 0.5
    assert bundle.manifest.metrics["grading"]["auc"] == 1
    assert bundle.manifest.metrics["unet"].keys() == {"train", "validation", "test"}
    assert bundle.manifest.metrics["synthetic"]["levels"]["critic_accuracy"] > 0.7


def test_the_manifest_says_how_the_bundle_was_made_and_names_no_patient(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.training["seed"] == 3
    assert manifest.training["cohort"]["made_by"]["seed"] == 3
    counts = manifest.training["cohort"]["patients"]
    assert counts == {
        part: {"HGG": n, "LGG": m} for part, n, m in (("train", 3, 2), ("validation", 1, 1), ("test", 1, 1))
    }
    assert manifest.training["history"].keys() == {"unet", "generator", "classifier"}
    assert manifest.generators["levels"].options == {"spread": 0.3}, "an option overrides the profile's"
    assert manifest.cropped, "as the classifier was fitted"
    assert manifest.metrics["segmentation"]["patients"] == 2
    assert {"torch", "onnxruntime", "gliaflow"} <= manifest.versions.keys()
    text = json.dumps(manifest.model_dump(mode="json"))
    assert not [name for name in ("H0", "L0", "H4", str(bundle.folder.parent)) if name in text]
    assert "not a clinical model" in manifest.notice.lower()
    assert "Trained on 5 phantoms." in manifest.notice, "those of validation and test are not counted"
    assert {"filled", "noise", "flat"} <= manifest.typical.keys(), "limits of a scan like the training scans"
    assert 0 <= manifest.min_tumour_ml <= 1


def test_a_second_run_fits_nothing_again_and_refuses_other_settings(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the U-Net was fitted again")

    monkeypatch.setattr("gliaflow_trainer.unet_bundle.fit_unet", never)
    weights = bundle.read("unet.onnx"), bundle.read("classifier.onnx")
    again = fit(folder, "bundle", options={"spread": "0.3"})
    assert (again.read("unet.onnx"), again.read("classifier.onnx")) == weights
    with pytest.raises(PluginError, match=r"another run: seed was 3 and is now 4; remove it"):
        fit(folder, "bundle", options={"spread": "0.3"}, seed=4)


def test_work_of_scans_masks_or_grades_that_changed_is_refused(folder: Path, bundle: Bundle) -> None:
    cohort = small.cohort(folder / "cohort")
    first, *others = cohort.cases
    swapped = dataclasses.replace(first, mask=others[0].mask)
    for cases, message in (
        (others, f"another run: scan {first.id} is gone; remove it, or name another --out"),
        ([dataclasses.replace(first, grade="IV"), *others], f"scan {first.id} grade was {first.grade} and is now IV;"),
        ([dataclasses.replace(first, id="new"), *others], f"scan {first.id} is gone, scan new is new;"),
        ([swapped, *others], f"bundle.work: has slices of files that changed since they were cut: {swapped.mask};"),
    ):
        with pytest.raises(PluginError, match=re.escape(message)):
            fit(folder, "bundle", dataclasses.replace(cohort, cases=cases), options={"spread": "0.3"})


def test_a_copy_of_the_cohort_resumes(folder: Path, bundle: Bundle) -> None:
    start_with_work_of(bundle, "of-copy")
    copy = shutil.copytree(folder / "cohort", folder / "copy")
    assert fit(folder, "of-copy", small.cohort(copy), options={"spread": "0.3"}).id.startswith("tiny")


def test_a_folder_that_is_not_a_bundle_is_not_overwritten(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/thesis.txt").touch()
    with pytest.raises(PluginError, match="mine: exists and is not a bundle"):
        fit(folder, "mine")
    assert (folder / "mine/thesis.txt").exists()


@pytest.mark.parametrize(
    "wrong", [{"generators": "nobody"}, {"options": {"colour": "red"}}, {"augmentations": [("none", {})]}]
)
def test_an_unknown_variant_option_or_augmentation_is_an_error_before_any_work(
    folder: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(PluginError):
        fit(folder, "wrong", **wrong)
    assert not (folder / "wrong.work").exists()


def test_a_cohort_without_grades_gives_a_unet_that_can_be_fine_tuned(folder: Path) -> None:
    known = small.cohort(folder / "cohort")
    cases = [dataclasses.replace(case, label=None) for case in known.cases]
    quick = dataclasses.replace(small.PROFILE, unet={**small.PROFILE.unet, "epochs": 1})
    start = fit(folder, "start", dataclasses.replace(known, cases=cases), profile=quick)
    assert set(start.manifest.files) == {"unet.onnx", "unet.safetensors"}
    assert start.manifest.generator == ""
    assert start.manifest.metrics["segmentation"]["patients"] == 1, "those of the part test"
    assert start.manifest.metrics["segmentation"]["dice_mean"] is not None
    shared = dataclasses.replace(quick, classifier="shared")
    registry = dataclasses.replace(small.REGISTRY, classifiers={"shared": Shared()})
    cohort = dataclasses.replace(known, cases=cases)
    with pytest.raises(PluginError, match="--unlabelled: no scan with a mask has a grade, so no classifier is fitted"):
        fit(folder, "no-use", cohort, profile=shared, registry=registry, unlabelled=known.cases)
    net = unet_to_fine_tune(start.folder, quick)
    assert (net.width, net.norm) == (4, True)
    again = {"cohort": dataclasses.replace(known, cases=cases), "profile": quick, "init": start.folder}
    with pytest.raises(PluginError, match="several parts of the split") as error:
        fit(folder, "tuned", **again)
    assert "learned from phantoms of seed 3, as these are" in error.value.__notes__[0]
    tuned = fit(folder, "tuned", **again, allow=True)
    assert tuned.manifest.training["init"] == start.id
    assert [seen["seed"] for seen in tuned.phantoms] == [3, 3], "its own, and those of the bundle that it comes from"
    assert tuned.manifest.training["phantoms"] == start.phantoms
    assert len(tuned.manifest.training["history"]["unet"]) == small.PROFILE.fine_tune["epochs"]
    with pytest.raises(BundleError, match="width 4 and batch norm, the profile needs 8"):
        unet_to_fine_tune(start.folder, dataclasses.replace(quick, width=8))


def test_the_cnn_can_be_the_classifier(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Fitted on the store alone, without slices, as the trainer service does it."""
    profile = dataclasses.replace(small.PROFILE, classifier="cnn", classifiers={"cnn": {"epochs": 2}})
    store = FeatureStore(folder / "bundle.work/features")
    split = split_patients(
        list({p: ("HGG", "LGG")[n] for p, n in zip(store.patients, store.labels, strict=True)}.items()), 3
    )
    manifest = bundle.manifest.model_dump(mode="json", exclude={"schema_", "files"})
    with Progress(disable=True) as bar:
        made = fit_graders(
            SplitFeatures(store, split, bundle), choose(small.REGISTRY, "levels", profile), manifest,
            tmp_path / "work", tmp_path / "out", RunContext(3, "cpu", bar),
        )  # fmt: skip
    assert len(made.manifest.training["history"]["classifier"]) == 2
    assert 0 <= made.manifest.metrics["grading"]["auc"] <= 1


def test_the_classifier_shared_learns_from_scans_without_labels_with_the_same_unet_and_others_refuse_them(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {case.patient for case in small.cohort(folder / "cohort").cases}
    scans = [
        case for case in small.cohort(small.write_cohort(folder / "others", 8, 7)).cases if case.patient not in known
    ]
    with pytest.raises(
        PluginError, match="'pooled' does not learn from scans without labels; give --classifier shared"
    ):
        fit(folder, "refused", unlabelled=scans)
    profile = dataclasses.replace(small.PROFILE, classifier="shared")
    registry = dataclasses.replace(small.REGISTRY, classifiers={"shared": Shared()})
    given: list[FitSamples] = []

    def spy(variant: Any, source: Any, options: Any, samples: FitSamples, context: Any) -> Any:
        given.append(samples)
        return fit_classifier(variant, source, options, samples, context)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the U-Net was fitted again")

    monkeypatch.setattr("gliaflow_trainer.graders.fit_classifier", spy)
    monkeypatch.setattr("gliaflow_trainer.unet_bundle.fit_unet", never)
    start_with_work_of(bundle, "with-scans")  # of another classifier, without these scans
    made = fit(folder, "with-scans", profile=profile, registry=registry, unlabelled=scans)
    assert made.manifest.training["cohort"]["unlabelled"] == len(scans) == 5
    assert made.manifest.training["classifier"]["name"] == "shared"
    assert {given[0].patients[sample] for sample in given[0].unlabelled} <= {scan.patient for scan in scans}
    assert len(given[0].unlabelled) > 0
    assert not set(given[0].unlabelled) & {*given[0].learn, *given[0].choose}
    fewer = fit(folder, "with-scans", profile=profile, registry=registry, unlabelled=scans[:3])
    assert fewer.manifest.training["cohort"]["unlabelled"] == 3
    assert {given[1].patients[sample] for sample in given[1].unlabelled} <= {scan.patient for scan in scans[:3]}


def test_the_classifier_learns_from_samples_of_another_cohort_with_the_same_unet(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {case.patient for case in small.cohort(folder / "cohort").cases}
    third = small.write_cohort(folder / "third", 8, 7)
    (third / "phantoms.json").write_text('{"made_by": "gliaflow phantom", "seed": 9}')
    source = [case for case in small.cohort(third).cases if case.patient not in known]
    registry = dataclasses.replace(small.REGISTRY, generators={"levels": small.Levels(), "adapted": Adapted()})
    with pytest.raises(
        PluginError, match="--source: no generator of this run learns from it; give --generator adapted"
    ):
        fit(folder, "refused", source=source)
    with pytest.raises(PluginError, match=r"^--source: no scan with a mask is of HGG"):
        fit(folder, "refused", registry=registry, generators="adapted", source=source[-1:])
    with pytest.raises(PluginError, match="generator 'adapted' needs labelled scans of another cohort"):
        fit(folder, "refused", registry=registry, generators="adapted")
    given: list[tuple[Any, FitSamples]] = []

    def spy(variant: Any, source: Any, options: Any, samples: FitSamples, context: Any) -> Any:
        given.append((source, samples))
        return fit_classifier(variant, source, options, samples, context)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the U-Net was fitted again")

    monkeypatch.setattr("gliaflow_trainer.graders.fit_classifier", spy)
    monkeypatch.setattr("gliaflow_trainer.unet_bundle.fit_unet", never)
    start_with_work_of(bundle, "with-source")
    variants = dataclasses.replace(choose(registry, "adapted", small.PROFILE), synthetic=30)
    given_source = {"registry": registry, "source": source, "source_folder": third}
    made = fit(folder, "with-source", variants=variants, **given_source)
    assert made.manifest.training["cohort"]["source"] == len(source) == 5
    assert made.manifest.training["classifier"]["synthetic"] == 30
    assert made.manifest.generator == "adapted"
    assert [seen["seed"] for seen in made.phantoms] == [3, 9], "its own, and those of the other cohort"
    said = dict(summary(made))
    assert "5 of another cohort, whose features the generator has" in said["patients"]
    assert said["generator adapted"].endswith("of its synthetic features; the classifier learned from some")
    features, samples = given[0]
    assert [samples.patients[sample] for sample in samples.learn].count("") == 30
    high, low = np.bincount(features.labels[samples.learn])
    assert abs(high - low) <= 1, "the rare class comes first, until both have as many"
    monkeypatch.setattr("gliaflow_trainer.graders.fit_classifier", never)
    assert fit(folder, "with-source", variants=variants, **given_source).id == made.id
    fewer = dataclasses.replace(variants, synthetic=20)
    with pytest.raises(AssertionError, match="fitted again"):  # the bundle is complete for the other number alone
        fit(folder, "with-source", variants=fewer, **given_source)


class Broken(small.Levels):
    """A generator variant in which something is wrong."""

    def __init__(self, name: str, fitted: Any) -> None:
        self.name, self.fitted = name, fitted

    def fit(self, features: Any, options: Any, context: FitContext) -> Any:
        return self.fitted(small.Levels().fit(features, options, context))


def broken(name: str) -> Any:
    def nan(fitted: Any) -> Any:
        fitted.generator.means[:] = np.nan
        return fitted

    how = {"raises": lambda _: 1 / 0, "exits": lambda _: sys.exit(0), "returns": lambda _: None, "nan": nan}
    return Broken(name, how[name])


@pytest.fixture(scope="module")
def unfinished(bundle: Bundle) -> str:
    """The name of a bundle whose generator and classifier are not fitted yet."""
    start_with_work_of(bundle, "unfinished")
    return "unfinished"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"'raises' could not be fitted: ZeroDivisionError: division by zero \(.*test_train.py:\d+\)"),
        ("exits", r"'exits' could not be fitted: SystemExit: 0 \(.*test_train.py:\d+\)"),
        ("returns", "'returns': fit returned NoneType, not Fitted"),
        ("nan", "'nan': its generator returned NaN"),
    ],
)
def test_an_error_in_a_generator_names_the_generator_and_the_line(
    folder: Path, unfinished: str, name: str, message: str
) -> None:
    registry = dataclasses.replace(small.REGISTRY, generators={"levels": small.Levels(), name: broken(name)})
    with pytest.raises(PluginError, match=message):
        fit(folder, unfinished, registry=registry, generators=f"levels,{name}")
    assert not (folder / unfinished).exists()


def test_a_bundle_with_several_generators_serves_each(folder: Path, bundle: Bundle) -> None:
    start_with_work_of(bundle, "several")
    second = Broken("second", lambda fitted: fitted)
    registry = dataclasses.replace(small.REGISTRY, generators={"levels": small.Levels(), "second": second})
    several = fit(
        folder, "several", registry=registry, generators="second,levels", options={"levels.spread": 0.3, "spread": 2}
    )
    assert several.manifest.generator == "second"
    assert {name: spec.options for name, spec in several.manifest.generators.items()} == {
        "second": {"spread": 2.0},
        "levels": {"spread": 0.3},
    }
    rng = np.random.default_rng(0)
    assert Synthesizer(several).generator == "second"
    assert Synthesizer(several, "levels").draw("HGG", 3, rng).shape == (3, *several.tap_shape)
    with pytest.raises(BundleError, match="has no 'acgan'; there is: second, levels"):
        Synthesizer(several, "acgan")
    with pytest.raises(PluginError, match=r"third\.spread: 'third' is not one of"):
        fit(folder, "none", registry=registry, generators="second", options={"third.spread": 1})


def test_the_extractor_in_torch_gives_the_features_of_the_one_that_serves(folder: Path, bundle: Bundle) -> None:
    """``acgan-image`` is fitted through it."""
    store = FeatureStore(folder / "bundle.work/features")
    base = Bundle(folder / "bundle.work/unet")
    known = FeaturesWithSlices(store, folder / "bundle.work/slices", base, cropped=True)
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


def test_synthetic_slices_become_a_generator_of_features(folder: Path, bundle: Bundle) -> None:
    start_with_work_of(bundle, "imaged")
    registry = dataclasses.replace(small.REGISTRY, generators={"acgan-image": ACGANImage()})
    options = {"steps": 3, "ngf": 4, "ndf": 4}
    imaged = fit(folder, "imaged", registry=registry, generators="acgan-image", options=options)
    synthesizer = Network(imaged, "generator-acgan-image", ["features"])
    noise = np.zeros((2, imaged.manifest.generators["acgan-image"].noise), np.float32)
    (features,) = synthesizer(z=noise, label=np.array([0, 1]))
    assert features.shape == (2, *imaged.tap_shape)
    source = ArrayFeatures(np.ones((8, 4, 6, 6), np.float32), np.arange(8) % 2, ("HGG", "LGG"))
    with pytest.raises(ValueError, match="without their slices"):
        ACGANImage().fit(source, ACGANImage.options(), FitContext(0))
