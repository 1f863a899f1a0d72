"""What a plugin must do to train, serve and compete, as tests: ``pytest --gliaflow MODULE`` runs those that apply.

MODULE has the hooks. Each thing that it registers is put to the checks of its kind; ``addopts = "--gliaflow mine"`` in
a pyproject.toml makes that lasting. Variants are fitted with their defaults, or as ``--gliaflow-option steps=50`` says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gliaflow_plugins.contracts import PluginError, parse_options
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.registry import Origin, Registry

if TYPE_CHECKING:
    from torch import nn

SHAPES = {"12×15×15": (12, 15, 15), "5×24×20": (5, 24, 20)}  # a variant follows any tap
CLASSES = ("HGG", "LGG")
AT_ONCE = 64  # samples: who asks for more at a time takes more memory the more patients there are
ACCEPTED = 0.1  # of what is made for a class, the critic's least share in it

Check = Callable[[], None]


class Streamed(ArrayFeatures):
    """Features of two classes that differ, four samples a patient; so many at a time and no more.

    As after a ReLU: nothing is below 0, one channel is always 0, another is loud, and LGG is rare.
    """

    def __init__(self, shape: tuple[int, int, int], count: int = 200) -> None:
        rng = np.random.default_rng(0)
        labels = (np.arange(count) % 4 == 3).astype(np.int64).repeat(4)[:count]
        lean = np.where(np.arange(shape[0]) % 2, 1.0, -1.0) * np.where(labels, 1.0, -1.0)[:, None]
        level = 1 + lean + 0.3 * rng.standard_normal((count, shape[0]))
        features = np.maximum(0, level[:, :, None, None] + 0.5 * rng.standard_normal((count, *shape)))
        features[:, 0] = 0
        features[:, 1] *= 100
        super().__init__(features.astype(np.float16), labels, CLASSES)
        self.patients = np.array([f"P{n // 4}" for n in range(count)])

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        assert len(indices) <= AT_ONCE, f"it asked for {len(indices)} samples at once: read them a few at a time"
        return super().batch(indices)


class Generator:
    """A variant, and what it makes of features at one tap; fitted once for all checks."""

    def __init__(self, variant: Any, options: dict[str, str], shape: tuple[int, int, int]) -> None:
        self.variant, self.shape, self.options = variant, shape, _options(variant, options)

    @cached_property
    def fitted(self) -> Any:
        return self.fit()

    def fit(self, seed: int = 0, checkpoint: Path | None = None) -> Any:
        return self.variant.fit(Streamed(self.shape), self.options, seed=seed, checkpoint=checkpoint)

    def draw(self, fitted: Any, label: int, count: int = 64) -> Any:
        import torch

        torch.manual_seed(1)
        with torch.no_grad():
            return fitted.generator(torch.randn(count, fitted.nz), torch.full((count,), label))

    def test_fit_leaves_two_networks(self) -> None:
        from torch import nn

        from gliaflow_plugins.contracts import Fitted

        assert isinstance(self.fitted, Fitted), f"fit returns Fitted, not {type(self.fitted).__name__}"
        assert isinstance(self.fitted.nz, int), f"nz is {self.fitted.nz!r}, not a number"
        assert self.fitted.nz > 0, "nz is 0: there is no noise"
        for network in (self.fitted.generator, self.fitted.critic):
            assert isinstance(network, nn.Module), f"{type(network).__name__} is no torch module"

    def test_features_have_the_shape_of_the_tap(self) -> None:
        import torch

        made = self.draw(self.fitted, 1)
        assert tuple(made.shape) == (64, *self.shape), f"{tuple(made.shape)} for 64 features of {self.shape}"
        assert made.dtype == torch.float32, f"features are {made.dtype}, not float32"
        assert made.isfinite().all(), "features that are not finite"

    def test_noise_and_class_both_matter(self) -> None:
        one, other = (self.draw(self.fitted, label) for label in (0, 1))
        assert (one != other).any(), "both classes give the same features: is the label used?"
        assert (one[0] != one[1]).any(), "all noise gives the same features: is z used?"

    def test_the_critic_accepts_some_of_each_class(self) -> None:
        import torch

        for label, kind in enumerate(CLASSES):
            with torch.no_grad():
                source, classes = self.fitted.critic(self.draw(self.fitted, label))
            shapes = [tuple(source.shape), tuple(classes.shape)]
            assert shapes == [(64,), (64, 2)], f"the critic answers {shapes} to 64 features, not [(64,), (64, 2)]"
            share = float((classes.argmax(1) == label).float().mean())
            assert share >= ACCEPTED, f"of the features made for {kind} the critic puts {share:.0%} there"

    def test_the_seed_decides(self) -> None:
        again = self.draw(self.fit(), 0)
        assert (self.draw(self.fitted, 0) == again).all(), "the same seed gives other networks: seed all chance with it"

    def test_a_kept_fit_is_gone_on_with(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            first = self.draw(self.fit(checkpoint=path), 0)
            if not path.exists():
                return
            again = self.draw(self.fit(checkpoint=path), 0)
        assert (first == again).all(), "a fit that goes on from its checkpoint ends elsewhere"

    def test_onnx_answers_alike(self) -> None:
        from gliaflow_plugins.networks.export import export_generator

        with tempfile.TemporaryDirectory() as folder:
            export_generator(self.fitted, Path(folder), self.shape, self.variant.name)


class Classifier:
    """A variant, and what it learns of features at one tap."""

    def __init__(self, variant: Any, options: dict[str, str], shape: tuple[int, int, int]) -> None:
        self.variant, self.shape, self.options = variant, shape, _options(variant, options)
        self.features = Streamed(shape)

    def fit(self, *, seed: int = 0, choose: bool = True) -> nn.Module:
        every = np.arange(len(self.features))
        fitted = self.variant.fit(
            self.features,
            self.options,
            learn=every[:160],
            choose=every[160:] if choose else every[:0],
            patients=self.features.patients.tolist(),
            weights="balanced",
            seed=seed,
        )
        module: nn.Module = fitted.module
        return module

    def logits(self, module: nn.Module) -> NDArray[np.float32]:
        import torch

        parts = np.array_split(np.arange(200), 4)
        with torch.no_grad():
            answered = [module(torch.from_numpy(self.features.batch(part))).numpy() for part in parts]
        return np.concatenate(answered)

    def test_it_learns_and_the_first_class_is_positive(self) -> None:
        logits = self.logits(self.fit())
        assert logits.shape == (200,), f"{logits.shape} for 200 features, not (200,)"
        right = ((logits > 0) == (self.features.labels == 0))[160:].mean()
        assert right > 0.8, f"of other patients' samples that differ plainly it gets {right:.0%} right"

    def test_the_seed_decides(self) -> None:
        assert np.array_equal(self.logits(self.fit()), self.logits(self.fit())), "the same seed gives another network"

    def test_without_patients_to_choose_by(self) -> None:
        assert np.isfinite(self.logits(self.fit(choose=False))).all(), "logits that are not finite"

    def test_onnx_answers_alike(self) -> None:
        import torch

        from gliaflow_plugins.networks.export import export

        example = torch.from_numpy(self.features.batch(np.arange(5)))
        with tempfile.TemporaryDirectory() as folder:
            export(self.fit(), [example], Path(folder) / "classifier.onnx", ["features"], ["logit"])


class Augmentation:
    """An augmentation, on a slice with a tumour."""

    def __init__(self, plugin: Any, options: dict[str, str]) -> None:
        self.plugin, self.options = plugin, _options(plugin, options)
        rng = np.random.default_rng(0)
        self.image = rng.random((48, 40), dtype=np.float32)
        self.mask = np.zeros((48, 40), np.uint8)
        self.mask[12:20, 10:30] = 1

    def apply(self, seed: int = 0) -> tuple[Any, Any]:
        image, mask = self.image.copy(), self.mask.copy()
        image.setflags(write=False)
        mask.setflags(write=False)  # the slice is somebody else's: make a new one
        found: tuple[Any, Any] = self.plugin(image, mask, np.random.default_rng(seed), self.options)
        return found

    def test_image_and_mask_stay_what_they_are(self) -> None:
        for seed in range(20):
            image, mask = self.apply(seed)
            assert image.shape == mask.shape, f"image {image.shape} and mask {mask.shape} differ in shape"
            assert image.dtype == np.float32, f"the image is {image.dtype}, not float32"
            assert np.isfinite(image).all(), "pixels that are not finite"
            assert set(np.unique(mask)) <= {0, 1}, "a mask has other values than before"

    def test_all_chance_is_from_rng(self) -> None:
        assert all(map(np.array_equal, self.apply(), self.apply())), "the same rng gives another slice"


class Step:
    """A step, on a ball in a cube."""

    def __init__(self, plugin: Any, options: dict[str, str]) -> None:
        self.plugin, self.options = plugin, _options(plugin, options)
        away = np.indices((32, 30, 28)) - np.array([15.5, 14.5, 13.5])[:, None, None, None]
        self.volume = np.maximum(0, 100 - np.square(away).sum(axis=0)).astype(np.float32)
        self.volume.setflags(write=False)

    def test_it_leaves_a_scan_of_the_same_shape(self) -> None:
        found = self.plugin(self.volume, np.diag([1.0, 1, 2, 1]), self.options)
        assert found.shape == self.volume.shape, f"{found.shape} of {self.volume.shape}"
        assert np.isfinite(found).all(), "voxels that are not finite"

    def test_it_does_the_same_again(self) -> None:
        first, again = (self.plugin(self.volume, np.eye(4), self.options) for _ in range(2))
        assert np.array_equal(first, again), "the same scan gives another: a step has no chance in it"


class Reader:
    """A reader, on folders that are not its own."""

    def __init__(self, plugin: Any, options: dict[str, str]) -> None:
        self.plugin = plugin

    def test_a_layout_of_others_is_none_of_its(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert self.plugin.read(Path(folder)) is None, "it takes an empty folder for its own"
            (Path(folder) / "holiday.jpg").write_bytes(b"no scan")
            assert self.plugin.read(Path(folder)) is None, "it takes a picture of something for a cohort"


def checks(module: str, options: dict[str, str]) -> Iterator[tuple[str, Check]]:
    """Each check by name; called, it raises AssertionError where the plugin does not keep to it."""
    registry = Registry()
    try:
        import_module(module)
    except (Exception, SystemExit) as error:
        yield f"{module}::test_it_is_imported", partial(_fail, f"{type(error).__name__}: {error}")
        return
    registry.add(import_module(module), Origin(module, module, "under test", str(sys.modules[module].__file__)))
    yield f"{module}::test_it_is_registered_without_torch", partial(_check_registered, registry, module)
    for found, suite, shapes in (
        (registry.generators, Generator, SHAPES),
        (registry.classifiers, Classifier, SHAPES),
        (registry.augmentations, Augmentation, {"": ()}),
        (registry.steps, Step, {"": ()}),
        (registry.readers, Reader, {"": ()}),
    ):
        for name, plugin in found.items():
            if suite is not Reader:
                yield f"{name}::test_options_are_told_and_wrong_ones_refused", partial(_check_options, plugin)
            for told, shape in shapes.items():
                subject = suite(plugin, options, *([shape] if shape else []))  # its checks share a fit
                for test in (test for test in vars(suite) if test.startswith("test_")):
                    yield f"{name}::{test}{told and f'[{told}]'}", getattr(subject, test)


def _check_registered(registry: Registry, module: str) -> None:
    assert not registry.problems, "; ".join(problem.error for problem in registry.problems)
    assert registry.origins, "no hook registered anything"
    told = f"import sys; sys.path[:] = {sys.path!r}; import {module}; sys.exit('torch' in sys.modules)"
    alone = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert not alone.returncode, f"import torch inside fit: scans are served where there is none {alone.stderr}"


def _fail(why: str) -> None:
    raise AssertionError(why)


def _options(plugin: Any, values: dict[str, str]) -> Any:
    known = {name: value for name, value in values.items() if name in plugin.options.model_fields}
    return parse_options(plugin, known)


def _check_options(plugin: Any) -> None:
    plugin.options()  # all have defaults
    silent = [name for name, field in plugin.options.model_fields.items() if not field.description]
    assert not silent, f"options without a description, which `gliaflow plugins` shows: {', '.join(silent)}"
    try:
        parse_options(plugin, {"no_such_option": 1})
    except PluginError:
        return
    raise AssertionError("an option that does not exist is accepted: derive from gliaflow_plugins.Options")


class _Item(pytest.Item):
    """A check as pytest's test."""

    check: Check

    def runtest(self) -> None:
        self.check()

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        if isinstance(excinfo.value, AssertionError):
            return f"{self.name}: {excinfo.value}"
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, int, str]:
        return Path(__file__), 0, self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--gliaflow`` and ``--gliaflow-option``."""
    group = parser.getgroup("gliaflow", "gliaflow plugins")
    group.addoption("--gliaflow", metavar="MODULE", help="check what the hooks in MODULE register")
    group.addoption("--gliaflow-option", metavar="NAME=VALUE", action="append", default=[], help="of its variants")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks to the tests found."""
    module = config.getoption("gliaflow")
    if not module:
        return
    options = dict(text.split("=", 1) for text in config.getoption("gliaflow_option"))
    for name, check in checks(module, options):
        item = _Item.from_parent(session, name=name)
        item.check = check
        items.append(item)
