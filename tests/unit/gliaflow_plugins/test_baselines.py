"""The baseline generators: each follows its method, and is served as any other generator."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from gliaflow_plugins.contracts import FitContext, Fitted
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.generators.baselines import SMOTE, Baseline, Gaussian, Mixup, Transfer

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.export import export  # noqa: E402
from gliaflow_plugins.networks.principal_components import ComponentSpace  # noqa: E402

every = pytest.mark.parametrize(
    "baseline", [SMOTE(), Gaussian(), Transfer(), Mixup()], ids=lambda baseline: baseline.name
)


class FeaturesOfPatients(ArrayFeatures):
    """Features with the patient of each sample."""

    patients: np.ndarray


def sample(n: int = 48, rare: int = 12, shape: tuple[int, int, int] = (3, 5, 4), seed: int = 0) -> FeaturesOfPatients:
    """Features after a ReLU, channels of very different scales; the last ``rare`` are LGG. Four slices a patient."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) >= n - rare).astype(np.int64)
    features = np.maximum(0, rng.standard_normal((n, *shape)) + 1 + labels[:, None, None, None])
    features *= 10.0 ** np.arange(shape[0])[:, None, None]
    source = FeaturesOfPatients(features.astype(np.float32), labels, ("HGG", "LGG"))
    source.patients = np.array([f"P{i // 4}" for i in range(n)])
    return source


def fit(baseline: Baseline, features: ArrayFeatures, seed: int = 0, **options: float) -> Fitted:
    return baseline.fit(features, baseline.options.model_validate(options), FitContext(seed))


def draw(fitted: Fitted, label: int, count: int, seed: int = 1) -> np.ndarray:
    torch.manual_seed(seed)
    with torch.no_grad():
        generated: np.ndarray = fitted.generator(torch.randn(count, fitted.nz), torch.full((count,), label)).numpy()
    return generated


def off_segments(generated: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each sample [m, d]: the pair of ends that it is between [m, 2], and its distance from their segment [m]."""
    one, other = np.triu_indices(len(ends))
    start, along = ends[one], ends[other] - ends[one]
    length = np.maximum(np.square(along).sum(axis=1), 1e-12)
    pairs, off = [], []
    for point in generated:
        share = np.clip(((point - start) * along).sum(axis=1) / length, 0, 1)
        apart = np.linalg.norm(start + share[:, None] * along - point, axis=1)
        pairs.append((one[apart.argmin()], other[apart.argmin()]))
        off.append(apart.min())
    return np.array(pairs), np.array(off)


@every
def test_onnx_gives_the_same_features_as_torch(baseline: Baseline, tmp_path: Path) -> None:
    features = sample()
    fitted = fit(baseline, features)
    z, label = np.random.default_rng(0).standard_normal((200, fitted.nz), dtype=np.float32), np.arange(200) % 2
    example = [torch.from_numpy(z[:5]), torch.from_numpy(label[:5])]
    path = export(fitted.generator, example, tmp_path / "generator.onnx", ["z", "label"], ["features"])
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (served,) = session.run(["features"], {"z": z, "label": label})
    with torch.no_grad():
        generated = fitted.generator(torch.from_numpy(z), torch.from_numpy(label)).numpy()
    assert np.abs(served - generated).max() <= 1e-3 * generated.max()
    assert served.min() >= 0


@every
def test_the_seed_decides_and_dims_limits_the_rank(baseline: Baseline) -> None:
    features = sample()
    same, again = (draw(fit(baseline, features, seed=1), 1, 30) for _ in range(2))
    assert np.array_equal(same, again)
    flat = draw(fit(baseline, features, dims=2), 1, 30) / 10.0 ** np.arange(3)[:, None, None]
    inside = (flat > 1e-3).all(axis=(1, 2, 3))  # where nothing is clipped at 0
    assert inside.any()
    centred = flat[inside].reshape(inside.sum(), -1)
    assert np.linalg.matrix_rank(centred - centred[0], tol=1e-2) <= 2


@every
def test_its_critic_recognises_the_classes(baseline: Baseline) -> None:
    features = sample(200, 60, seed=3)
    with torch.no_grad():
        source, logits = fit(baseline, features).critic(torch.from_numpy(features.batch(np.arange(200))))
    assert source.shape == (200,)
    assert (logits.argmax(1).numpy() == features.labels).mean() > 0.9


def test_smote_draws_between_neighbours_of_the_class() -> None:
    features = sample()
    space = ComponentSpace(features, 64, 0)
    generated = draw(fit(SMOTE(), features), 1, 100)
    own = space.scores(features).numpy()[features.labels == 1]
    pairs, off = off_segments(space.scores(ArrayFeatures(generated, np.ones(100), features.classes)).numpy(), own)
    assert off.max() < 1e-3 * np.ptp(own)
    apart = np.linalg.norm(own[:, None] - own, axis=2)
    rank = apart.argsort(axis=1).argsort(axis=1)
    assert (np.minimum(rank[pairs[:, 0], pairs[:, 1]], rank[pairs[:, 1], pairs[:, 0]]) <= 5).all()


def test_gaussian_has_each_classs_mean_and_spread() -> None:
    features = sample(n=3000, rare=1000, shape=(2, 2, 2))
    fitted, space = fit(Gaussian(), features), ComponentSpace(features, 64, 0)
    torch.manual_seed(0)
    for label in (0, 1):
        real = space.scores(features).numpy()[features.labels == label]
        with torch.no_grad():
            scores = fitted.generator.first(torch.randn(4000, fitted.nz), torch.full((4000,), label)).numpy()
        assert np.allclose(np.abs(real.mean(axis=0)), np.abs(scores.mean(axis=0)), atol=0.1 * real.std())
        assert np.allclose(np.var(real, axis=0), np.var(scores, axis=0), atol=0.15 * real.var(axis=0).max())


def test_mixup_draws_between_two_patients_of_the_class() -> None:
    features = sample()
    scale = 10.0 ** np.arange(3)[:, None, None]
    own = (features.batch(np.flatnonzero(features.labels == 1)) / scale).reshape(12, -1)
    generated = (draw(fit(Mixup(), features), 1, 100) / scale).reshape(100, -1)
    pairs, off = off_segments(generated, own)
    assert off.max() < 1e-4
    assert (pairs[:, 0] // 4 != pairs[:, 1] // 4).all()
    share = np.abs(generated - own[pairs[:, 0]]).sum(axis=1) / np.abs(own[pairs[:, 1]] - own[pairs[:, 0]]).sum(axis=1)
    assert np.mean((share < 0.1) | (share > 0.9)) > 0.4, "Beta(0.4, 0.4) has most of its mass at the ends"


@pytest.mark.parametrize("rare", [1, 2, 3])
@every
def test_a_handful_of_rare_samples_of_one_patient_is_enough(baseline: Baseline, rare: int) -> None:
    generated = draw(fit(baseline, sample(n=10, rare=rare)), 1, 50)
    assert np.isfinite(generated).all()


@every
def test_features_that_are_all_the_same_are_reproduced(baseline: Baseline) -> None:
    features = np.zeros((10, 3, 5, 4), np.float32)
    features[:, 0] = 7
    generated = draw(fit(baseline, ArrayFeatures(features, np.arange(10) % 2, ("HGG", "LGG"))), 1, 6)
    assert np.allclose(generated, features[:6], rtol=1e-5)


@every
def test_a_class_without_samples_and_a_wrong_option_are_refused(baseline: Baseline) -> None:
    with pytest.raises(ValueError, match="a class has no sample"):
        fit(baseline, sample(rare=0))
    with pytest.raises(ValueError, match="dims"):
        fit(baseline, sample(), dims=0)


def test_transfer_adds_to_a_sample_what_two_samples_of_the_common_class_differ_in() -> None:
    features = sample(20, 2)
    space = ComponentSpace(features, 64, 0)
    scores = space.scores(features).numpy()
    common, rare = scores[features.labels == 0], scores[features.labels == 1]
    fitted = fit(Transfer(), features)
    with torch.no_grad():
        torch.manual_seed(1)
        drawn = fitted.generator.first(torch.randn(20, fitted.nz), torch.ones(20, dtype=torch.long)).numpy()
    possible = (rare[:, None, None] + common[:, None] - common).reshape(-1, scores.shape[1])
    off = np.linalg.norm(drawn[:, None] - possible, axis=2).min(axis=1)
    assert off.max() < 1e-3 * np.ptp(scores)
