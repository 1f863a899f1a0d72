"""Measures of synthetic features: known values, a floor to compare with, and null where they cannot be measured."""

import numpy as np
import pytest
from gliaflow_evaluation.generator_quality import DISTANCES, Pair, distances, frechet, kid, nearest, pool, principal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.linalg import sqrtm

CLASSES = ("HGG", "LGG")


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A sample [n, d] whose own mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).standard_normal((n, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def test_frechet_distance_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    (m1, m2), (a, b) = rng.standard_normal((2, 5)), rng.standard_normal((2, 5, 5))
    s1, s2 = a @ a.T + np.eye(5), b @ b.T + np.eye(5)
    expected = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    x, y = with_moments(m1, s1, 40, 1), with_moments(m2, s2, 90, 2)
    assert frechet(Pair(x, y)) == pytest.approx(expected)
    assert frechet(Pair(x, x)) == pytest.approx(0, abs=1e-9)
    assert frechet(Pair(x, x + 3)) == pytest.approx(5 * 9)


def test_frechet_distance_with_fewer_samples_than_dimensions() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 20))
    assert frechet(Pair(x, 2 * x - x.mean(axis=0))) == pytest.approx(np.square(x - x.mean(axis=0)).sum() / 5)


def test_kid_is_the_unbiased_mmd() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((9, 3)) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert kid(Pair(x, y)) == pytest.approx(xx + yy - 2 * xy)


def test_kid_of_one_distribution_is_about_nothing() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 400, 8))
    assert abs(kid(Pair(x, y))) < 0.02 < 0.5 < kid(Pair(x, y + 1))


BALLS = ("precision", "recall", "density", "coverage")


def prdc(real: np.ndarray, other: np.ndarray, k: int) -> dict[str, float]:
    pair = Pair(real, other, k=k)
    return {name: DISTANCES[name].compute(pair) for name in BALLS}


def test_precision_recall_density_coverage_of_sets_laid_out_by_hand() -> None:
    real = np.arange(10.0)[:, None]  # k = 2: each ball reaches 1, or 2 at the ends
    assert prdc(real, real, k=2) == {"precision": 1, "recall": 1, "density": pytest.approx(0.6), "coverage": 1}
    far = prdc(real, real + 100, k=2)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    # One mode only: all there is looks real, little of the real is there, and many balls hold the same few.
    collapsed = prdc(real, 4.5 + np.linspace(-0.1, 0.1, 5)[:, None], k=2)
    assert collapsed == {"precision": 1, "recall": 0, "density": 1, "coverage": pytest.approx(0.2)}
    # One real and one stray half.
    mixed = prdc(real, np.concatenate([real[:5], real[:5] + 50]), k=2)
    assert mixed["precision"] == pytest.approx(0.5)
    assert mixed["coverage"] == pytest.approx(0.5)


def test_too_few_samples_for_balls_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 5"):
        DISTANCES["precision"].compute(Pair(np.zeros((5, 2)), np.zeros((9, 2))))


def test_copies_of_training_samples_are_much_nearer_to_them_than_other_samples() -> None:
    rng = np.random.default_rng(6)
    train, held_out, honest = rng.standard_normal((3, 200, 6))
    floor = nearest(Pair(train, held_out))
    assert nearest(Pair(train, train + 1e-3 * rng.standard_normal(train.shape))) < 0.01 * floor
    assert nearest(Pair(train, honest)) == pytest.approx(floor, rel=0.15)


@given(arrays.arrays(np.float32, (3, 2, 6, 9), elements=st.floats(0, 100, width=32)))
def test_pooling_keeps_the_mean_and_a_coarse_grid(features: np.ndarray) -> None:
    pooled = pool(features)
    assert pooled.shape == (3, 2 * 10)
    assert np.allclose(pooled[:, :2], features.mean(axis=(2, 3)), rtol=1e-4, atol=1e-4)
    grid = pooled[:, 2:].reshape(3, 2, 3, 3)
    assert np.allclose(grid[:, :, 1, 2], features[:, :, 2:4, 6:9].mean(axis=(2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 2, 5), (4, 15, 15)])
def test_pooling_follows_the_tap(shape: tuple[int, int, int]) -> None:
    _, rows, columns = shape
    constant = np.full((70, *shape), 2, np.float16)
    pooled = pool(constant)
    assert pooled.shape == (70, 4 * (1 + min(3, rows) * min(3, columns)))
    assert (pooled == 2).all()
    assert pool(constant[:0]).shape == (0, pooled.shape[1])


def test_principal_components_are_those_of_an_exact_decomposition() -> None:
    rng = np.random.default_rng(7)
    samples = (rng.standard_normal((50, 5)) * [9, 7, 5, 3, 1] @ rng.standard_normal((5, 300))).astype(np.float32)
    samples -= samples.mean(axis=0)
    components, spread = principal(samples, 5)
    _, exact, axes = np.linalg.svd(samples, full_matrices=False)
    assert np.allclose(spread, exact[:5] / 7, rtol=1e-3)
    assert np.allclose(np.abs(components @ axes[:5].T), np.eye(5), atol=1e-3)
    assert principal(samples[:3])[0].shape == (2, 300)
    assert principal(samples[:1])[0].shape == (0, 300)


def sample(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features of n samples, a third of them LGG, which differ."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.int64)
    return (rng.standard_normal((n, 30)) + labels[:, None] + shift).astype(np.float32), labels


def test_synthetic_features_as_good_as_real_ones_are_at_the_floor() -> None:
    by_class = distances(sample(300, 1), sample(150, 2), sample(600, 3), CLASSES)
    for name in CLASSES:
        for measure in ("frechet", "precision", "recall", "density", "coverage"):
            pair = by_class[name][measure]
            assert pair["synthetic"] == pytest.approx(pair["floor"], rel=0.25), (name, measure)
        kid_pair = by_class[name]["kid"]
        assert kid_pair["synthetic"] == pytest.approx(kid_pair["floor"], abs=0.1)
        assert by_class[name]["nearest"]["synthetic"] == pytest.approx(by_class[name]["nearest"]["floor"], rel=0.1)


def test_bad_synthetic_features_are_far_from_the_floor() -> None:
    pairs = distances(sample(300, 1), sample(150, 2), sample(300, 3, shift=2), CLASSES)["HGG"]
    values = {name: (pairs[name]["synthetic"] or 0, pairs[name]["floor"] or 0) for name in DISTANCES}
    assert values["frechet"][0] > 2 * values["frechet"][1]
    assert values["kid"][0] > 10 * abs(values["kid"][1])
    assert values["coverage"][0] < values["coverage"][1] / 2


def test_too_few_samples_and_values_that_are_not_finite_give_null() -> None:
    nothing = {"synthetic": None, "floor": None}
    train, held_out, made = sample(90, 1), sample(9, 2), sample(90, 3)
    few = distances(train, held_out, made, CLASSES)
    assert few["LGG"]["precision"] == nothing, "3 held-out samples"
    assert few["LGG"]["frechet"]["floor"] is not None
    assert few["HGG"]["precision"]["floor"] is not None

    only_hgg = made[0][made[1] == 0], made[1][made[1] == 0]
    missing = distances(train, held_out, only_hgg, CLASSES)["LGG"]
    assert all(missing[name] == nothing for name in DISTANCES)

    infinite = distances(train, held_out, (np.full_like(made[0], np.inf), made[1]), CLASSES)
    assert infinite["HGG"]["kid"] == nothing


@pytest.mark.parametrize("n", [0, 1, 2, 5, 20])
def test_few_and_equal_samples_do_not_raise(n: int) -> None:
    for side in (sample(n, 1), (np.ones((n, 30), np.float32), sample(n, 1)[1])):
        by_class = distances(side, side, side, CLASSES)
        for name in CLASSES:
            assert by_class[name].keys() == DISTANCES.keys()
