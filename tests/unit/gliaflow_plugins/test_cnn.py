"""The grade classifier: learns, is judged by patient, follows any tap and stays small."""

from pathlib import Path

import numpy as np
import pytest
from gliaflow_plugins.features import ArrayFeatures

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.cnn import Classifier, fit_classifier, patient_scores, slice_logits  # noqa: E402
from gliaflow_plugins.networks.export import export  # noqa: E402


def cohort(signal: float, patients: int = 24, slices: int = 8, seed: int = 0) -> tuple[ArrayFeatures, list[str]]:
    """A third of the patients are LGG; each patient has a look of its own, stronger than the grade's if signal < 1."""
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


def test_it_grades_patients_it_has_not_seen() -> None:
    features, names = cohort(signal=2.5)
    train, val = sides(names)
    module, history = fit_classifier(features, train, val, names, seed=0, epochs=12)
    scores = patient_scores(slice_logits(module, features, val), features.labels[val], [names[i] for i in val])
    assert scores.auc > 0.9
    assert scores.balanced_accuracy > 0.8
    best = max((step["val_balanced_accuracy"] + step["val_auc"]) / 2 for step in history)
    assert (scores.balanced_accuracy + scores.auc) / 2 == pytest.approx(best)  # the best epoch is what is returned


def test_the_positive_class_is_the_first() -> None:
    features, names = cohort(signal=3)
    train, val = sides(names)
    module, _ = fit_classifier(features, train, val, names, seed=0, epochs=8)
    logits = slice_logits(module, features, val)
    assert logits[features.labels[val] == 0].mean() > 0 > logits[features.labels[val] == 1].mean()


def test_it_stops_early_where_nothing_is_to_be_learnt() -> None:
    features, names = cohort(signal=0)
    train, val = sides(names)
    _, history = fit_classifier(features, train, val, names, seed=0, epochs=60, patience=3)
    assert len(history) < 60


def test_the_same_seed_learns_the_same() -> None:
    features, names = cohort(signal=1, patients=16)
    train, val = sides(names)
    first, again, other = (
        slice_logits(fit_classifier(features, train, val, names, seed=s, epochs=2)[0], features, val) for s in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_patient_on_both_sides_is_refused() -> None:
    features, names = cohort(signal=1, patients=4)
    everything = np.arange(len(names))
    with pytest.raises(ValueError, match="P00"):
        fit_classifier(features, everything, everything, names, seed=0)


def test_training_samples_of_one_class_are_refused() -> None:
    features, names = cohort(signal=1, patients=3)
    with pytest.raises(ValueError, match="one class"):
        fit_classifier(features, np.flatnonzero(features.labels == 0), np.zeros(0, int), names, seed=0)


def test_without_validation_the_last_epoch_is_kept_and_its_weights_may_be_given() -> None:
    features, names = cohort(signal=2, patients=6)
    everything = np.arange(len(names))
    for weights in ("balanced", None, (1.0, 5.0)):
        _, history = fit_classifier(features, everything, np.zeros(0, int), names, seed=0, epochs=3, weights=weights)
        assert [set(step) for step in history] == [{"loss"}] * 3


def test_a_patients_score_is_the_mean_logit() -> None:
    scores = patient_scores(np.array([3.0, -1, -2, -4]), np.array([0, 0, 1, 1]), ["b", "b", "a", "a"])
    assert scores.patients.tolist() == ["a", "b"]
    assert scores.logits.tolist() == [-3, 1]
    assert scores.positive.tolist() == [False, True]
    assert scores.auc == scores.balanced_accuracy == 1
    assert np.isnan(patient_scores(np.ones(2), np.zeros(2, int), ["a", "b"]).auc)


@pytest.mark.parametrize("shape", [(128, 15, 15), (1024, 15, 15), (64, 30, 30), (16, 120, 120), (3, 5, 9), (2, 1, 1)])
def test_it_follows_the_tap(shape: tuple[int, int, int]) -> None:
    module = Classifier(shape).eval()
    with torch.no_grad():
        assert module(torch.zeros(2, *shape)).shape == (2,)
    assert sum(weight.numel() for weight in module.parameters()) < 2_000_000


def test_its_onnx_is_small_and_answers_alike(tmp_path: Path) -> None:
    module = Classifier((128, 15, 15), np.linspace(0, 2, 128).astype(np.float32))
    torch.manual_seed(0)
    path = export(module, [torch.rand(2, 128, 15, 15)], tmp_path / "classifier.onnx", ["features"], ["logit"])
    assert path.stat().st_size < 700_000
