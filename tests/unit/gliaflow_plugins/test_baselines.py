"""The plain generators: what each makes is what its name says, and it is served as any other."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from gliaflow_plugins.contracts import Fitted
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.generators.baselines import SMOTE, Gaussian, Mixup, Plain

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.export import export_generator  # noqa: E402
from gliaflow_plugins.networks.principal_components import Space  # noqa: E402

every = pytest.mark.parametrize("plain", [SMOTE(), Gaussian(), Mixup()], ids=lambda plain: plain.name)


class OfPatients(ArrayFeatures):
    """Features that know whose they are."""

    patients: np.ndarray


def sample(n: int = 48, rare: int = 12, shape: tuple[int, int, int] = (3, 5, 4), seed: int = 0) -> OfPatients:
    """Features after a ReLU, channels of very different scales; the last ``rare`` are LGG. Four slices a patient."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) >= n - rare).astype(np.int64)
    features = np.maximum(0, rng.standard_normal((n, *shape)) + 1 + labels[:, None, None, None])
    features *= 10.0 ** np.arange(shape[0])[:, None, None]
    found = OfPatients(features.astype(np.float32), labels, ("HGG", "LGG"))
    found.patients = np.array([f"P{i // 4}" for i in range(n)])
    return found


def fit(plain: Plain, features: ArrayFeatures, seed: int = 0, **options: float) -> Fitted:
    return plain.fit(features, plain.options.model_validate(options), seed=seed)


def draw(fitted: Fitted, label: int, count: int, seed: int = 1) -> np.ndarray:
    torch.manual_seed(seed)
    with torch.no_grad():
        made: np.ndarray = fitted.generator(torch.randn(count, fitted.nz), torch.full((count,), label)).numpy()
    return made


def off_segments(made: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each made sample [m, d]: the pair of ends it is between [m, 2], and how far off their segment it is [m]."""
    one, other = np.triu_indices(len(ends))
    start, along = ends[one], ends[other] - ends[one]
    length = np.maximum(np.square(along).sum(axis=1), 1e-12)
    pairs, off = [], []
    for point in made:
        share = np.clip(((point - start) * along).sum(axis=1) / length, 0, 1)
        apart = np.linalg.norm(start + share[:, None] * along - point, axis=1)
        pairs.append((one[apart.argmin()], other[apart.argmin()]))
        off.append(apart.min())
    return np.array(pairs), np.array(off)


@every
def test_its_onnx_answers_as_torch_does(plain: Plain, tmp_path: Path) -> None:
    features = sample()
    fitted = fit(plain, features)
    export_generator(fitted, tmp_path, features.shape, plain.name)
    session = ort.InferenceSession(tmp_path / f"generator-{plain.name}.onnx", providers=["CPUExecutionProvider"])
    z, label = np.random.default_rng(0).standard_normal((200, fitted.nz), dtype=np.float32), np.arange(200) % 2
    (served,) = session.run(["features"], {"z": z, "label": label})
    with torch.no_grad():
        made = fitted.generator(torch.from_numpy(z), torch.from_numpy(label)).numpy()
    assert np.abs(served - made).max() <= 1e-3 * made.max()
    assert served.min() >= 0


@every
def test_the_seed_decides_and_dims_is_obeyed(plain: Plain) -> None:
    features = sample()
    same, again = (draw(fit(plain, features, seed=1), 1, 30) for _ in range(2))
    assert np.array_equal(same, again)
    flat = draw(fit(plain, features, dims=2), 1, 30) / 10.0 ** np.arange(3)[:, None, None]
    inside = (flat > 1e-3).all(axis=(1, 2, 3))  # where nothing is clipped at 0
    assert inside.any()
    centred = flat[inside].reshape(inside.sum(), -1)
    assert np.linalg.matrix_rank(centred - centred[0], tol=1e-2) <= 2


@every
def test_its_critic_knows_the_classes(plain: Plain) -> None:
    features = sample(200, 60, seed=3)
    with torch.no_grad():
        source, logits = fit(plain, features).critic(torch.from_numpy(features.batch(np.arange(200))))
    assert source.shape == (200,)
    assert (logits.argmax(1).numpy() == features.labels).mean() > 0.9


def test_smote_lies_between_neighbours_of_the_class() -> None:
    features = sample()
    space = Space(features, 64, 0)
    made = draw(fit(SMOTE(), features), 1, 100)
    own = space.scores(features).numpy()[features.labels == 1]
    pairs, off = off_segments(space.scores(ArrayFeatures(made, np.ones(100), features.classes)).numpy(), own)
    assert off.max() < 1e-3 * np.ptp(own)
    apart = np.linalg.norm(own[:, None] - own, axis=2)
    rank = apart.argsort(axis=1).argsort(axis=1)
    assert (np.minimum(rank[pairs[:, 0], pairs[:, 1]], rank[pairs[:, 1], pairs[:, 0]]) <= 5).all()


def test_gaussian_has_each_classs_mean_and_spread() -> None:
    features = sample(n=3000, rare=1000, shape=(2, 2, 2))
    fitted, space = fit(Gaussian(), features), Space(features, 64, 0)
    torch.manual_seed(0)
    for label in (0, 1):
        real = space.scores(features).numpy()[features.labels == label]
        with torch.no_grad():
            scores = fitted.generator.drawn(torch.randn(4000, fitted.nz), torch.full((4000,), label)).numpy()
        assert np.allclose(np.abs(real.mean(axis=0)), np.abs(scores.mean(axis=0)), atol=0.1 * real.std())
        assert np.allclose(np.var(real, axis=0), np.var(scores, axis=0), atol=0.15 * real.var(axis=0).max())


def test_mixup_lies_between_two_patients_of_the_class() -> None:
    features = sample()
    scale = 10.0 ** np.arange(3)[:, None, None]
    own = (features.batch(np.flatnonzero(features.labels == 1)) / scale).reshape(12, -1)
    made = (draw(fit(Mixup(), features), 1, 100) / scale).reshape(100, -1)
    pairs, off = off_segments(made, own)
    assert off.max() < 1e-4
    assert (pairs[:, 0] // 4 != pairs[:, 1] // 4).all()
    share = np.abs(made - own[pairs[:, 0]]).sum(axis=1) / np.abs(own[pairs[:, 1]] - own[pairs[:, 0]]).sum(axis=1)
    assert np.mean((share < 0.1) | (share > 0.9)) > 0.4, "Beta(0.4, 0.4) has most of its mass at the ends"


@pytest.mark.parametrize("rare", [1, 2, 3])
@every
def test_a_handful_of_rare_samples_of_one_patient_is_enough(plain: Plain, rare: int) -> None:
    made = draw(fit(plain, sample(n=10, rare=rare)), 1, 50)
    assert np.isfinite(made).all()


@every
def test_features_that_are_all_the_same_are_made_again(plain: Plain) -> None:
    features = np.zeros((10, 3, 5, 4), np.float32)
    features[:, 0] = 7
    made = draw(fit(plain, ArrayFeatures(features, np.arange(10) % 2, ("HGG", "LGG"))), 1, 6)
    assert np.allclose(made, features[:6], rtol=1e-5)


@every
def test_what_cannot_be_made_is_refused(plain: Plain) -> None:
    with pytest.raises(ValueError, match="a class has no sample"):
        fit(plain, sample(rare=0))
    with pytest.raises(ValueError, match="dims"):
        fit(plain, sample(), dims=0)
