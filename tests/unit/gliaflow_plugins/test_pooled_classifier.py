"""The default grader: known statistics, equal weight of patients, the optimum of the loss, ONNX that agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from gliaflow_plugins.features import ArrayFeatures, Joined
from sklearn.linear_model import LogisticRegression

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.export import export  # noqa: E402
from gliaflow_plugins.networks.pooled_classifier import PooledClassifier, fit_pooled, statistics  # noqa: E402
from gliaflow_plugins.networks.tumour_statistics import pooled  # noqa: E402


def table(patients: int = 12, slices: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Statistics [n, 6] of patients, a third of them LGG; classes overlap."""
    rng = np.random.default_rng(seed)
    grade = (np.arange(patients) % 3 == 0).astype(np.int64)
    owner = np.repeat(np.arange(patients), slices)
    values = rng.normal(0, 1, (len(owner), 6)) + 0.8 * grade[owner, None] * np.array([1, -1, 0, 0, 0, 0]) + 5
    return values.astype(np.float32), grade[owner], [f"P{n:02d}" for n in owner]


def logits(module: PooledClassifier, values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output: np.ndarray = module.grade(torch.from_numpy(values)).numpy()
    return output


def test_mean_deviation_and_maximum_within_the_tumour() -> None:
    features = torch.zeros(2, 2, 3, 3)
    features[0, 0, 1, 1], features[0, 0, 1, 2] = 2, 4
    features[0, 1, 1, 1] = 6  # the tumour is where either channel is over 0: two positions
    assert pooled(features)[0].tolist() == pytest.approx([3, 3, 1, 3, 4, 6], abs=1e-5)
    assert pooled(features)[1].tolist() == pytest.approx([0] * 6, abs=1e-5), "no tumour at all"


def test_zeros_around_the_tumour_do_not_change_the_statistics() -> None:
    inside = torch.rand(1, 3, 4, 4) + 0.1
    around = torch.zeros(1, 3, 9, 12)
    around[:, :, 2:6, 5:9] = inside
    assert torch.allclose(pooled(inside), pooled(around), atol=1e-6)


def test_statistics_do_not_depend_on_how_many_samples_are_read_at_once() -> None:
    features = np.random.default_rng(0).random((150, 2, 3, 3)).astype(np.float32)
    source = ArrayFeatures(features, np.zeros(150, np.int64), ("a", "b"))
    assert np.allclose(statistics(source), pooled(torch.from_numpy(features)), atol=1e-6)
    none = ArrayFeatures(features[:0], np.zeros(0, int), source.classes)
    assert statistics(none).shape == (0, 6)
    assert np.array_equal(statistics(Joined(none, source, source))[150:], statistics(source))


@pytest.mark.parametrize("weights", [None, "balanced"])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_it_is_penalised_logistic_regression_at_its_optimum(weights: str | None, penalty: float) -> None:
    values, labels, patients = table()
    module = fit_pooled(values, labels, patients, weights=weights, penalty=penalty)  # type: ignore[arg-type]
    share = np.ones(len(labels))
    if weights == "balanced":
        share /= np.bincount(labels)[labels]
    share /= share.sum()
    mean = share @ values
    scaled = (values - mean) / np.sqrt(share @ (values - mean) ** 2)
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000).fit(scaled, labels == 0, sample_weight=share)
    assert np.allclose(logits(module, values), model.decision_function(scaled), atol=2e-3)
    assert logits(module, values)[labels == 0].mean() > logits(module, values)[labels == 1].mean(), "positive is HGG"


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_each_patient_weighs_the_same_however_many_slices_there_are(weights: str | None) -> None:
    values, labels, patients = table()
    more = np.concatenate([values, *[values[:5]] * 9])  # the first patient's slices ten times
    fits = [
        fit_pooled(values, labels, patients, weights=weights),  # type: ignore[arg-type]
        fit_pooled(more, np.concatenate([labels, *[labels[:5]] * 9]), [*patients, *patients[:5] * 9], weights=weights),  # type: ignore[arg-type]
    ]
    first, second = (logits(module, values) for module in fits)
    assert np.allclose(first, second, atol=2e-3)


def test_a_synthetic_sample_weighs_as_much_as_the_average_one() -> None:
    values, labels, patients = table(slices=4)
    joined = np.concatenate([values, values[:8] + 1]), np.concatenate([labels, labels[:8]])
    first = fit_pooled(*joined, [*patients, *[""] * 8])
    second = fit_pooled(*joined, [str(number) for number in range(len(joined[0]))])  # a patient each: equal weights
    assert np.allclose(logits(first, values), logits(second, values), atol=2e-3)


def test_it_can_be_fitted_on_synthetic_samples_alone() -> None:
    values, labels, _ = table()
    module = fit_pooled(values, labels, [""] * len(labels))
    assert np.isfinite(logits(module, values)).all()


def test_a_statistic_that_never_changed_in_training_is_ignored_later() -> None:
    values, labels, patients = table()
    values[:, 3] = 7
    module = fit_pooled(values, labels, patients)
    other = values.copy()
    other[:, 3] = 1e6
    assert np.array_equal(logits(module, values), logits(module, other))


def test_it_needs_no_seed() -> None:
    values, labels, patients = table()
    torch.manual_seed(1)
    first = fit_pooled(values, labels, patients)
    torch.manual_seed(2)
    assert np.array_equal(logits(first, values), logits(fit_pooled(values, labels, patients), values))


def test_one_class_is_refused() -> None:
    values, labels, patients = table()
    with pytest.raises(ValueError, match="all of one class"):
        fit_pooled(values[labels == 1], labels[labels == 1], patients)


def test_its_onnx_file_agrees_also_for_a_slice_without_tumour(tmp_path: Path) -> None:
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
