"""The conformance kit: ``pytest --gliaflow MODULE`` checks whether a plugin can train, serve and compete.

MODULE has the hooks. Each thing that it registers must pass the checks of its kind. ``addopts = "--gliaflow mine"`` in
pyproject.toml makes this permanent. Variants are fitted with their defaults, or with ``--gliaflow-option steps=50``.
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

from gliaflow_plugins.contracts import FitContext, FitSamples, Fitted, Indices, PluginError, parse_options
from gliaflow_plugins.features import ArrayFeatures, parts
from gliaflow_plugins.kinds import KINDS
from gliaflow_plugins.registry import Origin, Registry

if TYPE_CHECKING:
    from torch import nn

SHAPES = {"12×15×15": (12, 15, 15), "5×24×20": (5, 24, 20)}  # a variant must fit any tap
CLASSES = ("HGG", "LGG")
AT_ONCE = 64  # samples; a plugin that reads more at a time needs more memory with every further patient
ACCEPTED = 0.1  # the least share of the features generated for a class that the critic must assign to it

Check = Callable[[], None]


class BoundedFeatures(ArrayFeatures):
    """Features of two classes that differ, four samples a patient, of which at most AT_ONCE can be read at once.

    They resemble features after a ReLU: nothing is below 0, one channel is always 0, another is loud, and LGG is rare.
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

    def batch(self, indices: Indices) -> NDArray[np.float32]:
        assert len(indices) <= AT_ONCE, f"the plugin read {len(indices)} samples at once: read at most {AT_ONCE}"
        return super().batch(indices)


class _Checks:
    """Base of the checks of one plugin, at one tap if it is a variant."""

    def __init__(self, plugin: Any, options: dict[str, str], shape: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.plugin, self.shape = plugin, shape
        if hasattr(plugin, "options"):
            known = {name: value for name, value in options.items() if name in plugin.options.model_fields}
            self.options = parse_options(plugin, known)


class GeneratorChecks(_Checks):
    """Checks of a generator variant at one tap; it is fitted once for all checks."""

    @cached_property
    def fitted(self) -> Any:
        return self.fit()

    def fit(self, seed: int = 0, checkpoint: Path | None = None) -> Any:
        return self.plugin.fit(BoundedFeatures(self.shape), self.options, FitContext(seed, checkpoint=checkpoint))

    def draw(self, fitted: Any, label: int, count: int = 64) -> Any:
        import torch

        torch.manual_seed(1)
        with torch.no_grad():
            return fitted.generator(torch.randn(count, fitted.nz), torch.full((count,), label))

    def test_fit_returns_two_networks(self) -> None:
        from torch import nn

        assert isinstance(self.fitted, Fitted), f"fit must return Fitted, not {type(self.fitted).__name__}"
        assert isinstance(self.fitted.nz, int), f"nz is {self.fitted.nz!r}, not a number"
        assert self.fitted.nz > 0, "nz is 0: there is no noise"
        for network in (self.fitted.generator, self.fitted.critic):
            assert isinstance(network, nn.Module), f"{type(network).__name__} is not a torch module"

    def test_features_have_the_shape_of_the_tap(self) -> None:
        import torch

        features = self.draw(self.fitted, 1)
        assert tuple(features.shape) == (64, *self.shape), f"{tuple(features.shape)} for 64 features of {self.shape}"
        assert features.dtype == torch.float32, f"features are {features.dtype}, not float32"
        assert features.isfinite().all(), "features that are not finite"

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
            assert shapes == [(64,), (64, 2)], f"the critic returns {shapes} for 64 features, not [(64,), (64, 2)]"
            share = float((classes.argmax(1) == label).float().mean())
            assert share >= ACCEPTED, f"the critic accepts {share:.0%} of the features generated for {kind}"

    def test_the_same_seed_gives_the_same_networks(self) -> None:
        again = self.draw(self.fit(), 0)
        assert (self.draw(self.fitted, 0) == again).all(), "the same seed gives other networks: all chance must use it"

    def test_a_fit_resumes_from_its_checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            first = self.draw(self.fit(checkpoint=path), 0)
            if not path.exists():
                return
            again = self.draw(self.fit(checkpoint=path), 0)
        assert (first == again).all(), "a fit that resumes from its checkpoint gives other networks"

    def test_onnx_gives_the_same_outputs(self) -> None:
        from gliaflow_plugins.networks.export import export_generator

        with tempfile.TemporaryDirectory() as folder:
            export_generator(self.fitted, Path(folder), self.shape, self.plugin.name)


class ClassifierChecks(_Checks):
    """Checks of a classifier variant at one tap."""

    @cached_property
    def features(self) -> BoundedFeatures:
        return BoundedFeatures(self.shape)

    def fit(self, *, choose: bool = True) -> nn.Module:
        every = np.arange(len(self.features))
        samples = FitSamples(
            every[:160], every[160:] if choose else every[:0], self.features.patients.tolist(), "balanced"
        )
        module: nn.Module = self.plugin.fit(self.features, self.options, samples, FitContext(0)).module
        return module

    def logits(self, module: nn.Module) -> NDArray[np.float32]:
        import torch

        with torch.no_grad():
            return np.concatenate(
                [module(torch.from_numpy(self.features.batch(part))).numpy() for part in parts(np.arange(200), 50)]
            )

    def test_it_learns_and_the_first_class_is_positive(self) -> None:
        logits = self.logits(self.fit())
        assert logits.shape == (200,), f"{logits.shape} for 200 features, not (200,)"
        right = ((logits > 0) == (self.features.labels == 0))[160:].mean()
        assert right > 0.8, f"it grades {right:.0%} of other patients' samples right, though the classes differ clearly"

    def test_the_same_seed_gives_the_same_network(self) -> None:
        assert np.array_equal(self.logits(self.fit()), self.logits(self.fit())), "the same seed gives another network"

    def test_without_patients_to_choose_by(self) -> None:
        assert np.isfinite(self.logits(self.fit(choose=False))).all(), "logits that are not finite"

    def test_onnx_gives_the_same_outputs(self) -> None:
        import torch

        from gliaflow_plugins.networks.export import export

        example = torch.from_numpy(self.features.batch(np.arange(5)))
        with tempfile.TemporaryDirectory() as folder:
            export(self.fit(), [example], Path(folder) / "classifier.onnx", ["features"], ["logit"])


class AugmentationChecks(_Checks):
    """Checks of an augmentation, on a slice with a tumour."""

    def apply(self, seed: int = 0) -> tuple[Any, Any]:
        image = np.random.default_rng(0).random((48, 40), dtype=np.float32)
        mask = np.zeros((48, 40), np.uint8)
        mask[12:20, 10:30] = 1
        image.setflags(write=False)
        mask.setflags(write=False)  # the plugin must return new arrays
        result: tuple[Any, Any] = self.plugin(image, mask, np.random.default_rng(seed), self.options)
        return result

    def test_image_and_mask_keep_shape_and_type(self) -> None:
        for seed in range(20):
            image, mask = self.apply(seed)
            assert image.shape == mask.shape, f"image {image.shape} and mask {mask.shape} differ in shape"
            assert image.dtype == np.float32, f"the image is {image.dtype}, not float32"
            assert np.isfinite(image).all(), "pixels that are not finite"
            assert set(np.unique(mask)) <= {0, 1}, "the mask has other values than before"

    def test_all_chance_is_from_rng(self) -> None:
        assert all(map(np.array_equal, self.apply(), self.apply())), "the same rng gives another slice"


class StepChecks(_Checks):
    """Checks of a preprocessing step, on a ball in a cube."""

    def apply(self, affine: NDArray[np.float64]) -> Any:
        offset = np.indices((32, 30, 28)) - np.array([15.5, 14.5, 13.5])[:, None, None, None]
        volume = np.maximum(0, 100 - np.square(offset).sum(axis=0)).astype(np.float32)
        volume.setflags(write=False)  # the plugin must return a new array
        return self.plugin(volume, affine, self.options)

    def test_it_keeps_the_shape_of_a_scan(self) -> None:
        volume = self.apply(np.diag([1.0, 1, 2, 1]))
        assert volume.shape == (32, 30, 28), f"{volume.shape} for a scan of (32, 30, 28)"
        assert np.isfinite(volume).all(), "voxels that are not finite"

    def test_it_does_the_same_again(self) -> None:
        first, again = (self.apply(np.eye(4)) for _ in range(2))
        assert np.array_equal(first, again), "the same scan gives another result: a step must not use chance"


class ReaderChecks(_Checks):
    """Checks of a reader, on folders of other layouts."""

    def test_it_leaves_other_layouts_alone(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert self.plugin.read(Path(folder)) is None, "it reads an empty folder as a cohort"
            (Path(folder) / "holiday.jpg").write_bytes(b"no scan")
            assert self.plugin.read(Path(folder)) is None, "it reads a folder with a photograph as a cohort"


CHECKS: dict[str, type[_Checks]] = {
    "augmentation": AugmentationChecks,
    "generator": GeneratorChecks,
    "classifier": ClassifierChecks,
    "step": StepChecks,
    "reader": ReaderChecks,
}
"""The checks of each kind in ``kinds.KINDS``."""


def checks(module: str, options: dict[str, str]) -> Iterator[tuple[str, Check]]:
    """Each check with its name. When called, it raises AssertionError if the plugin fails it."""
    registry = Registry()
    origin = Origin(module, module, "under test", module)
    try:
        plugin = import_module(module)
    except (Exception, SystemExit) as error:
        registry.fail(origin, error)
        yield f"{module}::test_it_is_imported", partial(_check_problems, registry)
        return
    registry.add(plugin, Origin(module, module, "under test", str(plugin.__file__)))
    yield f"{module}::test_it_is_registered_without_torch", partial(_check_registered, registry, module)
    for kind in KINDS.values():
        suite = CHECKS[kind.name]
        for name, thing in registry.of(kind).items():
            if kind.has_options:
                yield f"{name}::test_options_are_described_and_wrong_ones_refused", partial(_check_options, thing)
            for label, shape in (SHAPES if kind.method == "fit" else {"": (0, 0, 0)}).items():
                subject = suite(thing, options, shape)  # its checks share a fit
                for test in (test for test in vars(suite) if test.startswith("test_")):
                    yield f"{name}::{test}{label and f'[{label}]'}", getattr(subject, test)


def _check_problems(registry: Registry) -> None:
    assert not registry.problems, "; ".join(problem.error for problem in registry.problems)


def _check_registered(registry: Registry, module: str) -> None:
    _check_problems(registry)
    assert registry.origins, "no hook registered anything"
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, f"import torch inside fit: serving runs without torch {done.stderr}"


def _check_options(plugin: Any) -> None:
    plugin.options()  # each option has a default
    bare = [name for name, field in plugin.options.model_fields.items() if not field.description]
    assert not bare, f"options without a description, which `gliaflow plugins -v` shows: {', '.join(bare)}"
    try:
        parse_options(plugin, {"no_such_option": 1})
    except PluginError:
        return
    raise AssertionError("an unknown option is accepted: derive from gliaflow_plugins.Options")


class _Item(pytest.Item):
    """A check as a test of pytest."""

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
    """Add ``--gliaflow`` and ``--gliaflow-option``."""
    group = parser.getgroup("gliaflow", "gliaflow plugins")
    group.addoption("--gliaflow", metavar="MODULE", help="check the plugins that the hooks in MODULE register")
    group.addoption(
        "--gliaflow-option", metavar="NAME=VALUE", action="append", default=[], help="an option of its variants"
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks to the collected tests."""
    module = config.getoption("gliaflow")
    if not module:
        return
    options = dict(text.split("=", 1) for text in config.getoption("gliaflow_option"))
    for name, check in checks(module, options):
        item = _Item.from_parent(session, name=name)
        item.check = check
        items.append(item)
