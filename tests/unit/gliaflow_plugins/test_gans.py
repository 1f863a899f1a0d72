"""The GANs: the contract of their networks, at any tap; what they learn; and that a resumed fit gives the same."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from gliaflow_plugins.contracts import FitContext, Fitted
from gliaflow_plugins.features import ArrayFeatures, channel_scale
from gliaflow_plugins.gan import GAN
from gliaflow_plugins.generators.acgan import ACGAN, ACGANOptions, PaperACGAN, PaperOptions
from gliaflow_plugins.generators.adcgan import ADCGAN
from gliaflow_plugins.generators.infogan import InfoGAN
from gliaflow_plugins.generators.reacgan import ReACGAN
from gliaflow_plugins.generators.sngan_projection import SNGANProjection
from gliaflow_plugins.generators.wgan_gp import WGANGP
from gliaflow_plugins.registry import Origin, Registry

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.export import ExportError, export, export_generator  # noqa: E402
from gliaflow_plugins.networks.gan_networks import GANGenerator, ladder, paper_networks, patch  # noqa: E402
from gliaflow_plugins.networks.gan_training import augmented  # noqa: E402
from gliaflow_plugins.networks.pooled_classifier import fit_pooled, statistics  # noqa: E402

pytestmark = pytest.mark.slow
CLASSES = ("HGG", "LGG")
SHIPPED = (ACGAN, PaperACGAN, SNGANProjection, ReACGAN, ADCGAN, WGANGP, InfoGAN)
every_gan = pytest.mark.parametrize("gan", [gan() for gan in SHIPPED], ids=[gan.name for gan in SHIPPED])


def separable(n: int = 120, shape: tuple[int, int, int] = (12, 15, 15), seed: int = 0) -> ArrayFeatures:
    """ReLU features whose channels lean to one class or the other; channel 0 is dead and channel 1 very loud."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    lean = np.where(np.arange(shape[0]) % 2, 1.0, -1.0)
    level = lean * np.where(labels, 1.0, -1.0)[:, None] + 0.3 * rng.standard_normal((n, shape[0]))
    features = np.maximum(0, level[:, :, None, None] + 0.5 * rng.standard_normal((n, *shape)))
    features[:, 0] = 0
    features[:, 1] *= 1000
    return ArrayFeatures(features.astype(np.float16), labels, CLASSES)


def fit(features: ArrayFeatures, seed: int = 0, **options: float) -> Fitted:
    return ACGAN().fit(features, ACGANOptions.model_validate({"ngf": 16, "ndf": 16, **options}), FitContext(seed))


def fit_briefly(gan: GAN, features: ArrayFeatures, seed: int = 0, steps: int = 4, **more: Any) -> Fitted:
    length = {"epochs": steps} if isinstance(gan, PaperACGAN) else {"steps": steps}
    return gan.fit(features, gan.options.model_validate({"ngf": 4, "ndf": 4, **length}), FitContext(seed, **more))


def fit_paper(features: ArrayFeatures, seed: int = 0, **options: float) -> Fitted:
    return PaperACGAN().fit(features, PaperOptions.model_validate({"ngf": 16, "ndf": 16, **options}), FitContext(seed))


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit(separable(), steps=200)


def sample(fitted: Fitted, n: int = 200) -> tuple["torch.Tensor", "torch.Tensor"]:
    torch.manual_seed(1)
    label = torch.arange(n) % 2
    with torch.no_grad():
        return fitted.generator(torch.randn(n, fitted.nz), label), label


def test_the_critic_recognises_the_class_of_synthetic_features(fitted: Fitted) -> None:
    features, label = sample(fitted)
    with torch.no_grad():
        _, logits = fitted.critic(features)
    assert (logits.argmax(1) == label).float().mean() >= 0.9


def test_synthetic_features_look_like_the_real_ones(fitted: Fitted) -> None:
    features, label = sample(fitted)
    real = separable(400, seed=9)
    assert torch.isfinite(features).all()
    assert features.min() == 0
    assert (features[:, 0] == 0).all()  # a dead channel stays dead
    for kind in (0, 1):
        want = real.batch(np.flatnonzero(real.labels == kind)).mean(axis=(0, 2, 3))
        got = features[label == kind].mean(dim=(0, 2, 3)).numpy()
        scale = channel_scale(real)
        assert np.abs(got - want)[1:] / scale[1:] == pytest.approx(0, abs=0.5)
    spread = features[label == 0].std(dim=0).mean(dim=(1, 2))[2]
    assert spread > 0.02  # not one picture a class


def test_cropped_features_carry_the_class() -> None:
    """The judge is a grader that was fitted on real features alone."""
    whole = separable(200, (8, 16, 16))
    inside = np.hypot(*np.mgrid[-8:8, -8:8]) < 5
    real = ArrayFeatures((whole.batch(np.arange(200)) * inside).astype(np.float16), whole.labels, CLASSES)
    grader = fit_pooled(statistics(real), real.labels, [str(n) for n in range(200)], weights="balanced")
    features, label = sample(fit(real, steps=200))
    with torch.no_grad():
        assert ((grader(features) < 0) == (label == 1)).float().mean() >= 0.9


def test_all_channels_are_0_where_the_generator_outputs_no_tumour() -> None:
    occupied = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    made = torch.cat([torch.full((1, 3, 2, 2), 4.0), occupied[None, None]], dim=1)
    layers = torch.nn.Conv2d(5, 4, 1)
    layers.register_forward_hook(lambda *_: made)
    generator = GANGenerator(layers, classes=2, scale=torch.tensor([1.0, 2.0, 0.5]))
    features = generator(torch.randn(1, 3), torch.tensor([0]))
    assert features[0, 1].tolist() == [[0, 0], [4, 8]]
    assert features[0, 2].tolist() == [[0, 0], [1, 2]]


def test_the_history_has_the_figures_of_the_papers_figure_11(fitted: Fitted) -> None:
    assert len(fitted.history) == 20, "a run without epochs reports 20 times"
    assert set(fitted.history[0]) == {"loss_d", "loss_g", "accuracy_real", "accuracy_fake"}
    assert fitted.history[-1]["accuracy_real"] > 0.9
    assert len(fit_paper(separable(40), epochs=3).history) == 3


@pytest.mark.parametrize("gan", [InfoGAN(), SNGANProjection()], ids=lambda gan: gan.name)
def test_onnx_gives_the_same_outputs_as_torch(gan: GAN, tmp_path: Path) -> None:
    """At more batch sizes than the export itself checks, which test_conformance runs for every variant."""
    fitted = fit_briefly(gan, separable(40))
    generator, critic = export_generator(fitted, tmp_path, (12, 15, 15), gan.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"critic-{gan.name}.onnx", f"generator-{gan.name}.onnx"]
    assert str(Path(__file__).parents[3]).encode() not in generator.read_bytes(), "no path of the machine that made it"
    assert b"site-packages" not in generator.read_bytes()
    g, d = (ort.InferenceSession(str(path)) for path in (generator, critic))
    for n in (1, 2, 5, 33):
        torch.manual_seed(n)
        z, label = torch.randn(n, fitted.nz), torch.arange(n) % 2
        with torch.no_grad():
            want = fitted.generator(z, label)
            want_source, want_class = fitted.critic(want)
        (got,) = g.run(["features"], {"z": z.numpy(), "label": label.numpy()})
        source, logits = d.run(["source_logit", "class_logits"], {"features": got})
        assert got == pytest.approx(want.numpy(), rel=1e-4, abs=1e-4 * float(want.max()))
        assert source == pytest.approx(want_source.numpy(), rel=1e-3, abs=1e-3)
        assert logits == pytest.approx(want_class.numpy(), rel=1e-3, abs=1e-3)


@every_gan
def test_the_same_seed_gives_the_same_networks(gan: GAN) -> None:
    features = separable(40)
    first, again, other = (fit_briefly(gan, features, seed) for seed in (1, 1, 2))
    assert torch.equal(sample(first)[0], sample(again)[0])
    assert not torch.equal(sample(first)[0], sample(other)[0])


@every_gan
def test_a_fit_that_is_killed_and_resumed_gives_the_same_networks(gan: GAN, tmp_path: Path) -> None:
    features, file = separable(40), tmp_path / "generator.checkpoint"

    def killed(epoch: int, epochs: int, figures: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_briefly(gan, features, 4, steps=6, checkpoint=file, progress=killed)
    resumed, whole = fit_briefly(gan, features, 4, steps=6, checkpoint=file), fit_briefly(gan, features, 4, steps=6)
    assert torch.equal(sample(resumed)[0], sample(whole)[0])
    assert resumed.history == whole.history


@every_gan
@pytest.mark.parametrize("shape", [(8, 15, 15), (4, 30, 30), (2, 120, 120), (3, 7, 12), (1, 1, 1)])
def test_it_fits_any_tap(shape: tuple[int, int, int], gan: GAN) -> None:
    few = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    fitted = fit_briefly(gan, ArrayFeatures(few, np.arange(20) % 2, CLASSES), steps=2)
    features, _ = sample(fitted, 3)
    assert features.shape == (3, *shape)
    source, logits = fitted.critic(features)
    assert (source.shape, logits.shape) == ((3,), (3, 2))


@pytest.mark.parametrize("gan", [variant() for variant in SHIPPED[2:]], ids=lambda gan: str(gan.name))
def test_each_learns_the_classes(gan: GAN) -> None:
    """The judge is a grader that was fitted on real features alone."""
    real = separable(200, (12, 8, 8))
    grader = fit_pooled(statistics(real), real.labels, [str(n) for n in range(200)], weights="balanced")
    options = gan.options.model_validate({"ngf": 16, "ndf": 16, "steps": 150})
    fitted = gan.fit(real, options, FitContext(0))
    features, label = sample(fitted)
    with torch.no_grad():
        assert ((grader(features) < 0) == (label == 1)).float().mean() >= 0.9
        accepted = fitted.critic(features)[1].argmax(1) == label
    assert accepted.float().mean() >= 0.5, "its own critic accepts them"


def test_the_gan_of_the_docs_learns_the_classes() -> None:
    """docs/plugins.md: a GAN is two losses."""
    page = (Path(__file__).parents[3] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class LSGAN" in block)
    module: dict[str, Any] = {}
    exec(code, module)
    registry = Registry()
    registry.add(SimpleNamespace(**module), Origin("lsgan", "docs", "1", "docs/plugins.md"))
    assert not registry.problems
    gan = registry.generator("lsgan")
    fitted = gan.fit(separable(200), gan.options(ngf=16, ndf=16, steps=200), FitContext(0))
    features, label = sample(fitted)
    _, logits = fitted.critic(features)
    assert (logits.argmax(1) == label).float().mean() >= 0.9
    for shipped in SHIPPED:
        assert f"| `{shipped.name}` |" in page, f"docs/plugins.md lacks {shipped.name}"


def test_the_discriminator_may_see_maps_shifted_and_with_a_hole() -> None:
    maps = torch.ones(2, 3, 16, 16)
    assert augmented(maps, 0.0) is maps
    torch.manual_seed(0)
    seen = augmented(maps, 1.0)
    assert seen.shape == maps.shape
    assert (seen == 0).any(dim=(1, 2, 3)).all()
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert (seen[0] != seen[1]).any(), "each map has its own shift and hole"
    torch.manual_seed(0)
    leaf = maps.clone().requires_grad_()
    augmented(leaf, 1.0).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.sum() == seen.sum(), "the generator gets gradients only from the visible part"


def test_the_papers_networks_have_three_hidden_layers_at_its_tap() -> None:
    assert ladder((15, 15), least=3) == [(15, 15), (8, 8), (4, 4)]
    g, d = paper_networks(PaperACGAN(), (1024, 15, 15), 2, PaperOptions(), torch.ones(1024))
    transposed = [m for m in g.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.kernel_size for m in transposed] == [(4, 4), (4, 4), (3, 3)]
    assert [m.out_channels for m in transposed] == [128, 64, 1024]
    assert [m.out_channels for m in d.modules() if isinstance(m, torch.nn.Conv2d)] == [64, 128]


def test_a_large_map_is_seen_in_patches() -> None:
    sides = {(128, 120, 120): 8, (512, 30, 30): 2, (1024, 15, 15): 1, (16, 32, 32): 2, (3, 7, 12): 1}
    assert {shape: patch(shape) for shape in sides} == sides


def test_a_class_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match="'LGG': 0"):
        fit(ArrayFeatures(np.ones((4, 2, 15, 15), np.float32), np.zeros(4, int), CLASSES))


def test_export_refuses_networks_that_disagree_or_break_the_contract(tmp_path: Path) -> None:
    class Fickle(torch.nn.Module):
        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return x / torch.zeros_like(x)  # NaN for 0 on both sides, which does not count as agreement

    with pytest.raises(ExportError, match="differs"):
        export(Fickle(), [torch.zeros(2, 3)], tmp_path / "x.onnx", ["x"], ["y"])
    with pytest.raises(ValueError, match="at least 2"):
        export(torch.nn.Identity(), [torch.zeros(1, 3)], tmp_path / "x.onnx", ["x"], ["y"])
    wrong = Fitted(4, torch.nn.Bilinear(1, 1, 1), torch.nn.Identity())
    wrong.generator = type("Flat", (torch.nn.Module,), {"forward": lambda self, z, label: z})()
    wrong.critic = type("Two", (torch.nn.Module,), {"forward": lambda self, x: (x[:, 0], x)})()
    with pytest.raises(
        ExportError, match=r"wrong: its generator must return \[5, 2, 3, 3\] for 5 labels, not \[5, 4\]"
    ):
        export_generator(wrong, tmp_path, (2, 3, 3), "wrong")
    wrong.generator = type("Lost", (torch.nn.Module,), {"forward": lambda self, z, label: z * torch.inf})()
    with pytest.raises(ExportError, match="not finite"):
        export_generator(wrong, tmp_path, (4,), "wrong")  # type: ignore[arg-type]  # a wrong shape on purpose
    wrong.generator = type("Flat", (torch.nn.Module,), {"forward": lambda self, z, label: z})()
    wrong.critic = type("One", (torch.nn.Module,), {"forward": lambda self, x: x[:, 0]})()
    with pytest.raises(ExportError, match=r"\[5\] and \[5, 2\]"):
        export_generator(wrong, tmp_path, (4,), "wrong")  # type: ignore[arg-type]
