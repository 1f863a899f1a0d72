"""The paper's CNN: it learns, is judged by patient, fits any tap and stays small."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from gliaflow_plugins.classifiers import CNN
from gliaflow_plugins.contracts import FitContext, FitSamples, FittedClassifier
from gliaflow_plugins.features import ArrayFeatures

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.cnn import CNNClassifier, patient_scores, slice_logits  # noqa: E402
from gliaflow_plugins.networks.export import export  # noqa: E402


def cohort(signal: float, patients: int = 24, slices: int = 8, seed: int = 0) -> tuple[ArrayFeatures, list[str]]:
    """A third of the patients are LGG. Patients differ from each other, by more than the grades do if signal < 1."""
    rng = np.random.default_rng(seed)
    grade = (np.arange(patients) % 3 == 0).astype(np.int64)
    look = rng.standard_normal((patients, 8))
    look[:, :2] += signal * (2 * grade[:, None] - 1)
    of_slice = np.repeat(np.arange(patients), slices)
    features = np.maximum(0, look[of_slice, :, None, None] + 0.5 * rng.standard_normal((len(of_slice), 8, 15, 15)))
    names = [f"P{number:02d}" for number in of_slice]
    return ArrayFeatures(features.astype(np.float16), grade[of_slice], ("HGG", "LGG")), names


def sides(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    number = np.array([int(name[1:]) for name in names])
    return np.flatnonzero(number < 14), np.flatnonzero(number >= 14)


def fit(
    features: ArrayFeatures,
    learn: np.ndarray,
    choose: np.ndarray,
    names: list[str],
    seed: int = 0,
    weights: Literal["balanced"] | None = "balanced",
    **options: int,
) -> FittedClassifier:
    return CNN().fit(features, CNN.options(**options), FitSamples(learn, choose, names, weights), FitContext(seed))


def test_it_grades_patients_it_has_not_seen() -> None:
    features, names = cohort(signal=2.5)
    train, val = sides(names)
    fitted = fit(features, train, val, names, epochs=12)
    module, history = fitted.module, fitted.history
    scores = patient_scores(slice_logits(module, features, val), features.labels[val], [names[i] for i in val])
    assert scores.auc > 0.9
    assert scores.balanced_accuracy > 0.8
    best = max((step["val_balanced_accuracy"] + step["val_auc"]) / 2 for step in history)
    assert (scores.balanced_accuracy + scores.auc) / 2 == pytest.approx(best)  # the best epoch is what is returned


def test_the_positive_class_is_the_first() -> None:
    features, names = cohort(signal=3)
    train, val = sides(names)
    module = fit(features, train, val, names, epochs=8).module
    logits = slice_logits(module, features, val)
    assert logits[features.labels[val] == 0].mean() > 0 > logits[features.labels[val] == 1].mean()


def test_it_stops_early_if_there_is_nothing_to_learn() -> None:
    features, names = cohort(signal=0)
    train, val = sides(names)
    history = fit(features, train, val, names, epochs=60, patience=3).history
    assert len(history) < 60


def test_the_same_seed_learns_the_same() -> None:
    features, names = cohort(signal=1, patients=16)
    train, val = sides(names)
    first, again, other = (
        slice_logits(fit(features, train, val, names, seed, epochs=2).module, features, val) for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_patient_on_both_sides_is_refused() -> None:
    features, names = cohort(signal=1, patients=4)
    everything = np.arange(len(names))
    with pytest.raises(ValueError, match="P00"):
        fit(features, everything, everything, names)


def test_training_samples_of_one_class_are_refused() -> None:
    features, names = cohort(signal=1, patients=3)
    with pytest.raises(ValueError, match="one class"):
        fit(features, np.flatnonzero(features.labels == 0), np.zeros(0, int), names)


def test_without_validation_the_last_epoch_is_kept_with_or_without_weights() -> None:
    features, names = cohort(signal=2, patients=6)
    everything = np.arange(len(names))
    losses = []
    for weights in ("balanced", None):
        history = fit(features, everything, np.zeros(0, int), names, weights=weights, epochs=3).history
        assert [set(step) for step in history] == [{"loss"}] * 3
        losses.append(history[0]["loss"])
    assert losses[0] != losses[1], "the weights change the loss"


def test_a_patients_score_is_the_mean_logit() -> None:
    scores = patient_scores(np.array([3.0, -1, -2, -4]), np.array([0, 0, 1, 1]), ["b", "b", "a", "a"])
    assert scores.patients.tolist() == ["a", "b"]
    assert scores.logits.tolist() == [-3, 1]
    assert scores.positive.tolist() == [False, True]
    assert scores.auc == scores.balanced_accuracy == 1
    assert np.isnan(patient_scores(np.ones(2), np.zeros(2, int), ["a", "b"]).auc)


@pytest.mark.parametrize("shape", [(128, 15, 15), (1024, 15, 15), (64, 30, 30), (16, 120, 120), (3, 5, 9), (2, 1, 1)])
def test_it_fits_any_tap(shape: tuple[int, int, int]) -> None:
    module = CNNClassifier(shape).eval()
    with torch.no_grad():
        assert module(torch.zeros(2, *shape)).shape == (2,)
    assert sum(weight.numel() for weight in module.parameters()) < 2_000_000


def test_its_onnx_file_is_small_and_agrees(tmp_path: Path) -> None:
    module = CNNClassifier((128, 15, 15), np.linspace(0, 2, 128).astype(np.float32))
    torch.manual_seed(0)
    path = export(module, [torch.rand(2, 128, 15, 15)], tmp_path / "classifier.onnx", ["features"], ["logit"])
    assert path.stat().st_size < 700_000
