"""One fold: its answers, what is kept of them, generators that fail, and test patients that change no fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import small
import torch
from gliaflow_evaluation import arms as arms_module
from gliaflow_evaluation import fold as folds
from gliaflow_evaluation import progress
from gliaflow_evaluation.answers import load_answers
from gliaflow_evaluation.arms import Arms
from gliaflow_evaluation.comparators import COMPARATORS
from gliaflow_evaluation.fold import FoldArms, comparators_of, grade_fold
from gliaflow_evaluation.generator_arms import GeneratorSamples, augmented
from gliaflow_evaluation.progress import Report
from gliaflow_evaluation.protocol import Fold, Plan, PlannedVariant
from gliaflow_evaluation.remedies import penalty_chosen
from gliaflow_plugins.contracts import FitContext, Fitted, PluginError
from gliaflow_plugins.generators.adapted import Adapted, AdaptedOptions
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.inference import Network
from gliaflow_trainer.synthetic import synthetic
from gliaflow_trainer.variants import fit_classifier
from onnx import TensorProto, helper, numpy_helper
from small_fold import COHORT, FOLD, LEVELS, patients_in, plan_of, store_of


@pytest.fixture(autouse=True)
def small_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "load_registry", lambda: small.REGISTRY)


def answers(plan: Plan, fold: Fold = FOLD) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All files of seed 0 as one: the arrays, and what is noted about generators."""
    arrays, about = {}, {}
    for path in grade_fold(plan, fold, 0):
        more, noted = load_answers(path)
        arrays |= more
        about |= noted
    return arrays, about


@pytest.mark.parametrize(
    "classifier",
    [PlannedVariant("pooled", {}), PlannedVariant("cnn", {"epochs": 2})],
    ids=["pooled", "cnn"],
)
def test_test_patients_change_nothing_that_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: PlannedVariant
) -> None:
    """Wild features and wrong labels of the test patients: every classifier and generator stays the same, bit by bit.

    The control is left out: its labels are shuffled among all patients.
    """
    weights: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, spoilt in (("clean", ""), ("spoilt", " ".join(patients_in(FOLD, "test")))):
        plan = plan_of(tmp_path / name, classifier=classifier, shuffle=False, scarce=(), unlabelled="more")
        plan = replace(plan, source="labelled")
        store_of(FOLD.features(plan), spoilt)
        store_of(FOLD.features_of(plan, plan.source), prefix="third ")
        store_of(FOLD.features_of(plan, plan.unlabelled), prefix="other ")
        fits: list[dict[str, np.ndarray]] = []
        offsets: list[float] = []

        def spy(*given: Any, fits: Any = fits) -> Any:
            fitted = fit_classifier(*given)
            fits.append({key: value.numpy().copy() for key, value in fitted.module.state_dict().items()})
            return fitted

        def spy_offset(*given: Any, offsets: Any = offsets, kept: Any = arms_module.balanced_offset) -> float:
            offsets.append(kept(*given))
            return offsets[-1]

        with monkeypatch.context() as patch:
            patch.setattr(arms_module, "fit_classifier", spy)
            patch.setattr(arms_module, "balanced_offset", spy_offset)
            arms = FoldArms.of(plan, FOLD, 0).all
            for comparator in comparators_of(plan):
                comparator.compute(arms)
            fitted = arms.fit_generator(LEVELS)
            logits = augmented(arms, "levels", fitted)
            GeneratorSamples(arms, fitted).alone()
        assert len(offsets) == 12, "threshold, penalty, two with guessed labels, two with source, four, two counts"
        chosen = [f"levels@{count}" for count in (5, 10) if np.array_equal(logits["levels"], logits[f"levels@{count}"])]
        made = synthetic(fitted, 0, 10, 0)[0]
        others = (arms.shared(), arms.shared(arms.without_labels), penalty_chosen(arms))
        fits += [{"logits": other.logits("validation")} for other in others]
        adapted = Adapted().fit(arms.train, AdaptedOptions(), FitContext(0, source=arms.of_source))
        fits += [{key: value.numpy() for key, value in adapted.generator.state_dict().items()}]
        weights[name] = [*fits, {"made": made, "chosen": np.array(chosen), "offsets": np.array(offsets)}]
    assert len(weights["clean"]) == 18, (
        "real, weights, eight comparators, two counts, the generator alone; three; the rest"
    )
    for clean, spoilt_fit in zip(weights["clean"], weights["spoilt"], strict=True):
        for key, value in clean.items():
            assert np.array_equal(value, spoilt_fit[key]), key


def test_scans_without_labels_in_which_no_tumour_was_found_change_no_arm(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, shuffle=False, scarce=(), unlabelled="more")
    store_of(FOLD.features(plan))
    store_of(FOLD.features_of(plan, plan.unlabelled), prefix="other ")
    arms = FoldArms.of(plan, FOLD, 0).all
    arms.unlabelled = arms.without_labels.select(np.zeros(len(arms.without_labels), np.bool_))
    for name, same in (("shared_unlabelled", "shared"), ("self_training", "threshold"), ("propagation", "threshold")):
        assert np.array_equal(COMPARATORS[name].compute(arms), COMPARATORS[same].compute(arms)), name


def test_another_cohort_of_one_class_is_refused_by_its_flag(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, shuffle=False, scarce=(), source="labelled")
    store_of(FOLD.features(plan))
    store_of(FOLD.features_of(plan, plan.source), spoilt="L0 L1 L2 L3 L4", prefix="other ")  # their label is turned
    with pytest.raises(PluginError, match=r"^--source: no sample is of LGG: there are no such scans, or the U-Net"):
        FoldArms.of(plan, FOLD, 0)


def test_the_classifier_of_the_bundle_grades_as_in_serving_and_learns_the_threshold_alone(tmp_path: Path) -> None:
    kernel = np.zeros((4 * 6 * 6, 1), np.float32)
    kernel[:36] = 1 / 36  # the mean of the first channel, in which the classes differ
    bundle = write_bundle(tmp_path / "bundle", kernel)
    plan = plan_of(tmp_path / "work", unet=bundle.folder, shuffle=False)
    store_of(FOLD.features(plan))
    arms = FoldArms.of(plan, FOLD, 0).all
    logits = COMPARATORS["bundle"].compute(arms)
    (served,) = Network(bundle, "classifier", ["logit"])(features=arms.test.batch(np.arange(len(arms.test))))
    assert np.ptp(logits - served[:, 0]) < 1e-5
    assert ((logits > 0) == (arms.test.labels == 0)).mean() > 0.9, "the served logits are all above 0"

    def offered(**changes: Any) -> bool:
        return COMPARATORS["bundle"] in comparators_of(plan_of(tmp_path, **{"unet": bundle.folder, **changes}))

    assert offered()
    assert not offered(unet=None)
    assert not offered(task="tumour"), "its classes are grades"
    assert not offered(profile=replace(plan.profile, cropped=True)), "it was fitted on whole features"
    assert not offered(unet=write_bundle(tmp_path / "unet", None).folder), "a U-Net alone"


def write_bundle(folder: Path, kernel: np.ndarray | None) -> Bundle:
    """A bundle whose classifier multiplies features [4, 6, 6] with the kernel; None: it has none."""
    folder.mkdir()
    if kernel is not None:
        nodes = [
            helper.make_node("Flatten", ["features"], ["flat"]),
            helper.make_node("MatMul", ["flat", "kernel"], ["logit"]),
        ]
        ports = {"features": ["n", 4, 6, 6], "logit": ["n", 1]}
        of = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items()}
        graph = helper.make_graph(
            nodes, "c", [of["features"]], [of["logit"]], [numpy_helper.from_array(kernel, "kernel")]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (folder / "classifier.onnx").write_bytes(model.SerializeToString())
    manifest = {
        "name": "other", "notice": "a test", "input": {"size": (48, 48), "spacing": (4.0, 4.0)},
        "classes": ["HGG", "LGG"], "taps": {"dec3": [4, 6, 6]}, "tap": "dec3", "cropped": False, "generator": "",
        "generators": {}, "training": {}, "metrics": {}, "versions": {},
    }  # fmt: skip
    return write_manifest(folder, manifest)


def test_where_nobody_can_be_left_out_the_penalty_stays_the_default(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, shuffle=False, scarce=())
    store_of(FOLD.features(plan))
    arms = FoldArms.of(plan, FOLD, 0).all
    alone = min(patients_in(FOLD, "train") & {"L0", "L1", "L2", "L3", "L4"})
    one = {p: i[(arms.samples.labels[i] == 0) | (arms.samples.patients[i] == alone)] for p, i in arms.index.items()}
    few = Arms(arms.setting, arms.samples, one)
    assert np.array_equal(penalty_chosen(few).logits("test"), few.real.logits("test"))


class Diverged(torch.nn.Module):
    """A generator that has diverged for class 0 and makes values beyond fp16 for class 1."""

    def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        values = torch.tensor([float("nan"), 1e6])[label]
        return values[:, None, None, None].expand(-1, 4, 6, 6)


class AcceptsAll(torch.nn.Module):
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        label = torch.nan_to_num(features[:, 0, 0, 0]) > 0
        return label.float(), torch.nn.functional.one_hot(label.long(), 2).float()


def test_a_diverged_generator_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverged = Fitted(nz=2, generator=Diverged(), critic=AcceptsAll())
    nothing, share = synthetic(diverged, 0, 10, 0)
    assert (nothing.shape, share) == ((0, 4, 6, 6), 0)
    clipped, share = synthetic(diverged, 1, 10, 0)
    assert share == 1
    assert (clipped == np.finfo(np.float16).max).all()

    monkeypatch.setattr(small.Levels, "fit", lambda *_, **__: diverged)
    plan = plan_of(tmp_path)
    store_of(FOLD.features(plan))
    arrays, about = answers(plan)
    assert "its generator returned NaN" in about["levels"]["failed"]
    assert np.isfinite(arrays["arm/real"]).all()


class OneClass(torch.nn.Module):
    """A critic that takes every feature for class 1."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features[:, 0, 0, 0], torch.tensor([[0.0, 1.0]]).expand(len(features), 2)


def test_a_generator_whose_critic_accepts_too_few_of_a_class_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = small.Levels.fit

    def fit(*given: Any) -> Fitted:
        fitted = learn(*given)
        return Fitted(fitted.nz, fitted.generator, OneClass())

    monkeypatch.setattr(small.Levels, "fit", fit)
    plan = plan_of(tmp_path)
    store_of(FOLD.features(plan))
    arrays, about = answers(plan)
    assert about == {"levels": {"failed": "the critic accepted 0% of the features generated for HGG: too few"}}
    assert np.isfinite(arrays["arm/real"]).all()


def test_a_fold_in_whose_test_patients_no_tumour_was_found_is_graded(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    store = store_of(FOLD.features(plan))
    none = {patient: part for patient, part in FOLD.split.items() if part != "test"}
    arrays, _ = answers(plan, replace(FOLD, split=none))
    assert len(arrays["index"]) == len(arrays["arm/real"]) == 0 < len(store)
    of_one = {p: part for p, part in FOLD.split.items() if part == "train" or COHORT[p] == "HGG"}
    judged = answers(plan, replace(FOLD, split=of_one))[1]["levels"]["quality"]["judgements"]
    assert np.isnan([*judged["other_patients"], *judged["other_patients_real"]]).all(), "no judge of other patients"
    assert np.isfinite(judged["same_patients"]).all()


def test_a_folds_answers_are_logits_of_its_test_slices_by_arm(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    store = store_of(FOLD.features(plan))
    arrays, about = answers(plan)
    tested = arrays["index"]
    assert set(store.patients[tested]) == patients_in(FOLD, "test")
    assert len(tested) == 4 * len(patients_in(FOLD, "test"))
    augmented_arms = {"levels@5", "levels@10", "levels", "levels alone"}
    fitted = {comparator.name for comparator in comparators_of(plan)}
    assert {key.removeprefix("arm/") for key in arrays if key.startswith("arm/")} == fitted | augmented_arms
    assert {key for key in arrays if key.startswith("control/")} == {"control/real", "control/shared", "control/levels"}
    for key in arrays:
        if key.startswith(("arm/", "scarce/", "control/")):
            assert arrays[key].shape == tested.shape, key
            assert np.isfinite(arrays[key]).all(), key
    assert np.ptp(arrays["arm/threshold"] - arrays["arm/real"]) == pytest.approx(0, abs=1e-5), "a shift"
    assert about["levels"]["quality"]["options"] == {}


def test_answers_are_kept_and_one_more_generator_is_all_that_is_fitted(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    store_of(FOLD.features(plan))
    paths = grade_fold(plan, FOLD, 0)
    before = [path.stat().st_mtime_ns for path in paths]
    assert grade_fold(plan, FOLD, 0) == paths
    wide = PlannedVariant("levels", {"spread": 2.0})
    more = grade_fold(replace(plan, generators=(LEVELS, wide)), FOLD, 0)
    assert more[:-1] == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert more[-1].exists()
    assert not set(grade_fold(plan, FOLD, 1)) & set(paths)
    assert not set(grade_fold(plan_of(tmp_path, counts=(5,)), FOLD, 0)) & set(paths)


def test_a_comparator_that_comes_to_mean_something_else_is_all_that_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    store_of(FOLD.features(plan))
    paths = grade_fold(plan, FOLD, 0)
    monkeypatch.setitem(COMPARATORS, "weights", replaced(COMPARATORS["weights"], version=2))
    changed = grade_fold(plan, FOLD, 0)
    assert [path.name for path in changed if path not in paths] == [changed[list(COMPARATORS).index("weights")].name]


def replaced(entry: Any, **changes: Any) -> Any:
    copy = type(entry).__new__(type(entry))
    copy.__dict__.update(entry.__dict__ | changes)
    return copy


def test_a_generator_that_fails_is_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    store_of(FOLD.features(plan))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("mean of\nnothing")

    with monkeypatch.context() as broken:
        broken.setattr(small.Levels, "fit", fail)
        arrays, about = answers(plan)
    assert "'levels' could not be fitted: ZeroDivisionError: mean of nothing" in about["levels"]["failed"]
    assert "arm/real" in arrays
    assert not any("levels" in key for key in arrays)
    assert "arm/levels" in answers(plan)[0], "fixed"


MINE = """
import os, signal, time
import numpy as np
from gliaflow_plugins import Options, hookimpl


class Mine:
    name, options = "mine", Options

    def fit(self, features, options, context):
        {fit}


@hookimpl
def register_generators(register):
    register(Mine())
"""


@pytest.mark.parametrize(
    ("fit", "deadline_s", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 200, "generator 'mine': its process was killed by SIGSEGV"),
        ("time.sleep(1000)", 4, "generator 'mine': its fit took longer than 4 s"),
        ("raise SystemExit(0)", 200, "generator 'mine' could not be fitted: SystemExit: 0"),
        (
            "kept = [(np.ones(4_000_000), time.sleep(0.02)) for _ in range(1000)]",
            200,
            "GiB of memory, more than the limit of 1 GiB, and was ended",
        ),
    ],
    ids=["crash", "hang", "exit", "memory"],
)
def test_a_third_party_generator_that_crashes_or_hangs_does_not_affect_the_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str, deadline_s: float, reason: str
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / f"{tmp_path.name}.py").write_text(MINE.format(fit=fit))
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(tmp_path / "plugins"))
    mine = PlannedVariant("mine", {}, third_party=True)
    plan = plan_of(tmp_path, generators=(mine,), shuffle=False, scarce=(), deadline_s=deadline_s, memory_gib=1)
    store_of(FOLD.features(plan))
    arrays, about = answers(plan)
    assert reason in about["mine"]["failed"]
    assert "arm/real" in arrays


def test_a_fold_reports_each_arm_and_each_epoch_of_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(small.Levels):
        def fit(self, features: Any, options: Any, context: Any) -> Fitted:
            for epoch in (1, 2):
                context.progress(epoch, 2, {})
            return super().fit(features, options, context)

    monkeypatch.setattr(small.REGISTRY, "generators", {"levels": Slow()})
    reports: list[Report] = []
    monkeypatch.setattr(progress, "_sends", [reports.append])
    plan = plan_of(tmp_path, shuffle=False, scarce=())
    store_of(FOLD.features(plan))
    grade_fold(plan, FOLD, 0)
    assert {each.row for each in reports} == {"fold 0, seed 0, levels"}
    arms = [each.step for each in reports if each.step.endswith(", arms")]
    assert arms == [f"{name}, arms" for name in (*(each.name for each in comparators_of(plan)), "levels")]
    epochs = [(each.done, each.total) for each in reports if each.step == "epochs"]
    assert epochs == [(1, 2), (2, 2)]
    assert reports[-1].step == "", "the row ends"


def test_other_code_under_the_same_name_is_fitted_anew(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    store_of(FOLD.features(plan))
    *comparators, levels = grade_fold(plan, FOLD, 0)
    changed = grade_fold(replace(plan, generators=(replace(LEVELS, code="changed"),)), FOLD, 0)
    assert changed[:-1] == comparators
    assert changed[-1] != levels
    other = grade_fold(replace(plan, classifier=replace(plan.classifier, code="changed")), FOLD, 0)
    assert not {*comparators, levels} & set(other)
