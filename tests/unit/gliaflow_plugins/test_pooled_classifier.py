"""The default grader: known answers, every patient alike, the optimum itself, and an ONNX file that agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from gliaflow_plugins.features import ArrayFeatures, Joined
from sklearn.linear_model import LogisticRegression

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.export import export  # noqa: E402
from gliaflow_plugins.networks.pooled_classifier import PooledClassifier, fit_pooled, pooled, statistics  # noqa: E402


def table(patients: int = 12, slices: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Statistics [n, 6] of patients, a third of them LGG; classes overlap."""
    rng = np.random.default_rng(seed)
    grade = (np.arange(patients) % 3 == 0).astype(np.int64)
    of = np.repeat(np.arange(patients), slices)
    known = rng.normal(0, 1, (len(of), 6)) + 0.8 * grade[of, None] * np.array([1, -1, 0, 0, 0, 0]) + 5
    return known.astype(np.float32), grade[of], [f"P{n:02d}" for n in of]


def logits(module: PooledClassifier, known: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = module.grade(torch.from_numpy(known)).numpy()
    return found


def test_mean_deviation_and_maximum_within_the_tumour() -> None:
    features = torch.zeros(2, 2, 3, 3)
    features[0, 0, 1, 1], features[0, 0, 1, 2] = 2, 4
    features[0, 1, 1, 1] = 6  # the tumour is where either channel is over 0: two positions
    assert pooled(features)[0].tolist() == pytest.approx([3, 3, 1, 3, 4, 6], abs=1e-5)
    assert pooled(features)[1].tolist() == pytest.approx([0] * 6, abs=1e-5), "no tumour at all"


def test_what_is_zero_around_the_tumour_does_not_count() -> None:
    inside = torch.rand(1, 3, 4, 4) + 0.1
    around = torch.zeros(1, 3, 9, 12)
    around[:, :, 2:6, 5:9] = inside
    assert torch.allclose(pooled(inside), pooled(around), atol=1e-6)


def test_statistics_are_the_same_whatever_is_read_at_a_time() -> None:
    features = np.random.default_rng(0).random((150, 2, 3, 3)).astype(np.float32)
    source = ArrayFeatures(features, np.zeros(150, np.int64), ("a", "b"))
    assert np.allclose(statistics(source), pooled(torch.from_numpy(features)), atol=1e-6)
    none = ArrayFeatures(features[:0], np.zeros(0, int), source.classes)
    assert statistics(none).shape == (0, 6)
    assert np.array_equal(statistics(Joined(none, source, source))[150:], statistics(source))


@pytest.mark.parametrize("weights", [None, "balanced"])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_it_is_penalised_logistic_regression_at_its_optimum(weights: str | None, penalty: float) -> None:
    known, labels, patients = table()
    module = fit_pooled(known, labels, patients, weights=weights, penalty=penalty)  # type: ignore[arg-type]
    share = np.ones(len(labels))
    if weights == "balanced":
        share /= np.bincount(labels)[labels]
    share /= share.sum()
    middle = share @ known
    scaled = (known - middle) / np.sqrt(share @ (known - middle) ** 2)
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000).fit(scaled, labels == 0, sample_weight=share)
    assert np.allclose(logits(module, known), model.decision_function(scaled), atol=2e-3)
    assert logits(module, known)[labels == 0].mean() > logits(module, known)[labels == 1].mean(), "positive is HGG"


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_each_patient_counts_alike_however_many_slices(weights: str | None) -> None:
    known, labels, patients = table()
    more = np.concatenate([known, *[known[:5]] * 9])  # the first patient's slices ten times
    fits = [
        fit_pooled(known, labels, patients, weights=weights),  # type: ignore[arg-type]
        fit_pooled(more, np.concatenate([labels, *[labels[:5]] * 9]), [*patients, *patients[:5] * 9], weights=weights),  # type: ignore[arg-type]
    ]
    first, second = (logits(module, known) for module in fits)
    assert np.allclose(first, second, atol=2e-3)


def test_a_synthetic_sample_counts_as_much_as_the_average_one() -> None:
    known, labels, patients = table(slices=4)
    made, of = known[:8] + 1, labels[:8]
    joined = np.concatenate([known, made]), np.concatenate([labels, of])
    first = fit_pooled(*joined, [*patients, *[""] * 8])
    second = fit_pooled(*joined, [str(number) for number in range(len(joined[0]))])  # a patient each: equal weights
    assert np.allclose(logits(first, known), logits(second, known), atol=2e-3)


def test_synthetic_samples_alone_will_do() -> None:
    known, labels, _ = table()
    module = fit_pooled(known, labels, [""] * len(labels))
    assert np.isfinite(logits(module, known)).all()


def test_a_channel_that_never_changed_says_nothing_later() -> None:
    known, labels, patients = table()
    known[:, 3] = 7
    module = fit_pooled(known, labels, patients)
    other = known.copy()
    other[:, 3] = 1e6
    assert np.array_equal(logits(module, known), logits(module, other))


def test_it_needs_no_seed() -> None:
    known, labels, patients = table()
    torch.manual_seed(1)
    first = fit_pooled(known, labels, patients)
    torch.manual_seed(2)
    assert np.array_equal(logits(first, known), logits(fit_pooled(known, labels, patients), known))


def test_one_class_is_refused() -> None:
    known, labels, patients = table()
    with pytest.raises(ValueError, match="all of one class"):
        fit_pooled(known[labels == 1], labels[labels == 1], patients)


def test_its_onnx_agrees_a_slice_without_tumour_included(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    features = (rng.random((40, 3, 6, 6)) * (rng.random((40, 1, 6, 6)) < 0.3)).astype(np.float16).astype(np.float32)
    features[0] = 0
    labels = np.arange(40) % 2
    source = ArrayFeatures(features, labels, ("HGG", "LGG"))
    module = fit_pooled(statistics(source), labels, [str(n // 4) for n in range(40)])
    path = export(module, [torch.from_numpy(features[:5])], tmp_path / "classifier.onnx", ["features"], ["logit"])
    run = onnxruntime.InferenceSession(str(path)).run
    with torch.no_grad():
        expected = module(torch.from_numpy(features)).numpy()
    assert np.allclose(run(None, {"features": features})[0], expected, atol=1e-4)
    assert np.allclose(run(None, {"features": features[:1]})[0], expected[:1], atol=1e-4)
