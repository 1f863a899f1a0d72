"""The conformance checks of each kind of plugin. ``gliaflow_plugins.testing`` runs them in pytest.

Each check raises AssertionError if the plugin fails it. The text says what is expected and what the plugin gave.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins import contracts
from gliaflow_plugins.contracts import FitContext, FitSamples, Fitted, FittedClassifier, PluginError, parse_options
from gliaflow_plugins.features import ArrayFeatures, parts
from gliaflow_plugins.kinds import KINDS
from gliaflow_plugins.registry import Origin, Registry

if TYPE_CHECKING:
    from torch import nn

SHAPES = {"12×15×15": (12, 15, 15), "5×24×20": (5, 24, 20)}  # a variant must fit any tap
CLASSES = ("HGG", "LGG")
AT_ONCE = 64  # samples; a plugin that reads more at a time needs more memory with every further patient
ACCEPTED = 0.1  # the least share of the features generated for a class that the critic must assign to it


class NotRun(Exception):
    """A check is not run, because an earlier check of the same plugin failed."""


class BoundedFeatures(ArrayFeatures):
    """Features of two classes, four samples a patient, of which at most AT_ONCE can be read at once.

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

    def batch(self, indices: contracts.Indices) -> NDArray[np.float32]:
        assert len(indices) <= AT_ONCE, f"the plugin read {len(indices)} samples at once: read at most {AT_ONCE}"
        return super().batch(indices)


class Checks:
    """Base of the checks of one plugin, at one tap if it is a variant.

    ``stops``, which the plugin's taps share, says why the remaining checks of a tap (or of all, "") are not run.
    """

    base: ClassVar[int] = 1  # the others need the first ``base`` checks: if one of these fails, the others are not run

    def __init__(self, plugin: Any, options: dict[str, str], tap: str, stops: dict[str, str]) -> None:
        self.plugin, self.tap, self.stops = plugin, tap, stops
        self.shape = SHAPES.get(tap, (0, 0, 0))
        if hasattr(plugin, "options"):
            known = {name: value for name, value in options.items() if name in plugin.options.model_fields}
            self.options = parse_options(plugin, known)

    @classmethod
    def tests(cls) -> list[str]:
        """The names of the checks, in order."""
        return [name for name in vars(cls) if name.startswith("test_")]

    def run(self, test: str) -> None:
        """Run one check. Raises NotRun: a check that it needs has failed."""
        if stop := self.stops.get("") or self.stops.get(self.tap):
            raise NotRun(f"not run: {stop}")
        try:
            getattr(self, test)()
        except BaseException as error:
            if not isinstance(error, Exception | SystemExit):  # the deadline: the next fit would take as long
                self.stops[""] = f"{test} did not end"
            elif test in self.tests()[: self.base]:
                self.stops[self.tap] = f"{test} failed"
            raise

    def unchanged(self, call: Callable[..., Any], **arguments: Any) -> Any:
        """Call the plugin with read-only arrays, which it must not change."""
        before = {name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)}
        for name in before:
            arguments[name].setflags(write=False)
        try:
            result = call(*arguments.values())
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise AssertionError("it writes into an array that it was passed: return a new array") from error
        for name, value in before.items():
            assert np.array_equal(value, arguments[name]), f"it changed its argument {name}: return a new array"
        return result


class GeneratorChecks(Checks):
    """Checks of a generator variant at one tap."""

    base = 2

    @cached_property
    def fitted(self) -> Any:
        return self.fit()

    def fit(self, seed: int = 0, checkpoint: Path | None = None) -> Any:
        features = BoundedFeatures(self.shape)
        labels = features.labels.copy()
        context = FitContext(seed, checkpoint=checkpoint, source=BoundedFeatures(self.shape))
        fitted = self.plugin.fit(features, self.options, context)
        assert np.array_equal(labels, features.labels), "fit changed features.labels: copy them first"
        return fitted

    def draw(self, fitted: Any, label: int, count: int = 64) -> Any:
        """Features of one class. They have the right shape and type, and are finite."""
        import torch

        noise = torch.randn(count, fitted.nz, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            features = fitted.generator(noise, torch.full((count,), label))
        require_tensor(features, (count, *self.shape), f"the generator, for {count} features of {self.shape},")
        return features

    def test_fit_returns_two_networks(self) -> None:
        from torch import nn

        assert isinstance(self.fitted, Fitted), f"fit must return Fitted, not {type(self.fitted).__name__}"
        assert isinstance(self.fitted.nz, int), f"nz is {self.fitted.nz!r}, not a number"
        assert self.fitted.nz > 0, "nz is 0: there is no noise"
        for network in (self.fitted.generator, self.fitted.critic):
            assert isinstance(network, nn.Module), f"{type(network).__name__} is not a torch module"

    def test_features_have_the_shape_of_the_tap(self) -> None:
        for label in (0, 1):
            self.draw(self.fitted, label)

    def test_noise_and_class_both_matter(self) -> None:
        one, other = (self.draw(self.fitted, label) for label in (0, 1))
        again = self.draw(self.fitted, 0)
        assert (one == again).all(), "the generator returns other features for the same z: z must be its only chance"
        assert (one != other).any(), "both classes give the same features: is the label used?"
        assert (one[0] != one[1]).any(), "all noise gives the same features: is z used?"

    def test_the_critic_accepts_some_of_each_class(self) -> None:
        import torch

        for label, kind in enumerate(CLASSES):
            with torch.no_grad():
                result = self.fitted.critic(self.draw(self.fitted, label))
            source, classes = pair(result, "the critic must return (source logit, class logits)")
            require_tensor(source, (64,), "the critic, as source logit of 64 features,")
            require_tensor(classes, (64, 2), "the critic, as class logits of 64 features,")
            share = float((classes.argmax(1) == label).float().mean())
            assert share >= ACCEPTED, f"the critic accepts {share:.0%} of the features generated for {kind}"

    def test_the_same_seed_gives_the_same_networks(self) -> None:
        same = (self.draw(self.fitted, 0) == self.draw(self.fit(), 0)).all()
        assert same, "two fits with the same seed give other networks: all chance must come from context.seed"

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

        with exporting() as folder:
            export_generator(self.fitted, folder, self.shape, self.plugin.name)


class ClassifierChecks(Checks):
    """Checks of a classifier variant at one tap."""

    @cached_property
    def features(self) -> BoundedFeatures:
        return BoundedFeatures(self.shape)

    @cached_property
    def fitted(self) -> nn.Module:
        return self.fit()

    def fit(self, *, choose: bool = True) -> nn.Module:
        every = np.arange(len(self.features))
        samples = FitSamples(
            every[:160], every[160:] if choose else every[:0], self.features.patients.tolist(), "balanced"
        )
        fitted = self.plugin.fit(self.features, self.options, samples, FitContext(0))
        assert isinstance(fitted, FittedClassifier), f"fit must return FittedClassifier, not {type(fitted).__name__}"
        return fitted.module

    def logits(self, module: nn.Module) -> NDArray[np.float32]:
        """Of all samples. They have the right shape and type, and are finite."""
        import torch

        logits = []
        for part in parts(np.arange(200), 50):
            with torch.no_grad():
                result = module(torch.from_numpy(self.features.batch(part)))
            require_tensor(result, (len(part),), f"the network, for {len(part)} features,")
            logits.append(result.numpy())
        return np.concatenate(logits)

    def test_it_returns_a_logit_for_each_feature(self) -> None:
        self.logits(self.fitted)

    def test_it_learns_and_the_first_class_is_positive(self) -> None:
        right = ((self.logits(self.fitted) > 0) == (self.features.labels == 0))[160:].mean()
        assert right > 0.8, f"it grades {right:.0%} of other patients' samples right, though the classes differ clearly"

    def test_the_same_seed_gives_the_same_network(self) -> None:
        assert np.array_equal(self.logits(self.fitted), self.logits(self.fit())), (
            "two fits with the same seed give other networks: all chance must come from context.seed"
        )

    def test_without_patients_to_choose_by(self) -> None:
        self.logits(self.fit(choose=False))

    def test_onnx_gives_the_same_outputs(self) -> None:
        import torch

        from gliaflow_plugins.networks.export import export

        example = torch.from_numpy(self.features.batch(np.arange(5)))
        with exporting() as folder:
            export(self.fitted, [example], folder / "classifier.onnx", ["features"], ["logit"])


class AugmentationChecks(Checks):
    """Checks of an augmentation, on a slice with a tumour."""

    def apply(self, seed: int = 0) -> tuple[Any, Any]:
        image = np.random.default_rng(0).random((48, 40), dtype=np.float32)
        mask = np.zeros((48, 40), np.uint8)
        mask[12:20, 10:30] = 1
        rng = np.random.default_rng(seed)
        result = self.unchanged(self.plugin, image=image, mask=mask, rng=rng, options=self.options)
        image, mask = pair(result, "it must return (image, mask)")
        for part, name in ((image, "image"), (mask, "mask")):
            assert isinstance(part, np.ndarray), f"the {name} is {type(part).__name__}, not a numpy array"
        return image, mask

    def test_image_and_mask_keep_shape_and_type(self) -> None:
        for seed in range(20):
            image, mask = self.apply(seed)
            for part, name, kind in ((image, "image", np.float32), (mask, "mask", np.uint8)):
                require_finite(part, f"the {name}")
                assert part.shape == (48, 40), f"the {name} is {part.shape}, for a slice of (48, 40)"
                assert part.dtype == kind, f"the {name} is {part.dtype}, not {np.dtype(kind)}"
            assert set(np.unique(mask)) <= {0, 1}, "the mask has other values than before"

    def test_all_chance_is_from_rng(self) -> None:
        assert all(map(np.array_equal, self.apply(), self.apply())), (
            "two calls with the same rng give other slices: all chance must come from rng"
        )


class StepChecks(Checks):
    """Checks of a preprocessing step, on a ball in a cube."""

    def apply(self, affine: NDArray[np.float64]) -> Any:
        offset = np.indices((32, 30, 28)) - np.array([15.5, 14.5, 13.5])[:, None, None, None]
        volume = np.maximum(0, 100 - np.square(offset).sum(axis=0)).astype(np.float32)
        result = self.unchanged(self.plugin, volume=volume, affine=affine, options=self.options)
        assert isinstance(result, np.ndarray), f"it must return a numpy array, not {type(result).__name__}"
        return result

    def test_it_keeps_the_shape_of_a_scan(self) -> None:
        volume = self.apply(np.diag([1.0, 1, 2, 1]))
        require_finite(volume, "the scan")
        assert volume.shape == (32, 30, 28), f"{volume.shape} for a scan of (32, 30, 28)"

    def test_it_does_the_same_again(self) -> None:
        first, again = (self.apply(np.eye(4)) for _ in range(2))
        assert np.array_equal(first, again), "two calls with the same scan give other results: a step has no chance"


class ReaderChecks(Checks):
    """Checks of a reader, on folders of other layouts."""

    def test_it_leaves_other_layouts_alone(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert self.plugin.read(Path(folder)) is None, "it reads an empty folder as a cohort"
            (Path(folder) / "holiday.jpg").write_bytes(b"no scan")
            assert self.plugin.read(Path(folder)) is None, "it reads a folder with a photograph as a cohort"


CHECKS: dict[str, type[Checks]] = {
    "augmentation": AugmentationChecks,
    "generator": GeneratorChecks,
    "classifier": ClassifierChecks,
    "step": StepChecks,
    "reader": ReaderChecks,
}
"""The checks of each kind in ``kinds.KINDS``."""


def checks(module: str, options: dict[str, str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each check with its name. When called, it raises AssertionError if the plugin fails it, or NotRun."""
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
            stops: dict[str, str] = {}
            for tap in SHAPES if kind.method == "fit" else ("",):
                subject = suite(thing, options, tap, stops)  # its checks share a fit
                for test in suite.tests():
                    yield f"{name}::{test}{tap and f'[{tap}]'}", partial(subject.run, test)


def _check_problems(registry: Registry) -> None:
    assert not registry.problems, "; ".join(problem.error for problem in registry.problems)


def _check_registered(registry: Registry, module: str) -> None:
    _check_problems(registry)
    assert registry.origins, "no hook registered anything"
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1:]
    assert not done.returncode, f"import torch inside fit: serving runs without torch {' '.join(last)}".rstrip()


def _check_options(plugin: Any) -> None:
    plugin.options()  # each option has a default
    bare = [name for name, field in plugin.options.model_fields.items() if not field.description]
    assert not bare, f"options without a description, which `gliaflow plugins -v` shows: {', '.join(bare)}"
    try:
        parse_options(plugin, {"no_such_option": 1})
    except PluginError:
        return
    raise AssertionError("an unknown option is accepted: derive from gliaflow_plugins.Options")


def pair(result: Any, expected: str) -> tuple[Any, Any]:
    """The two values of a result. Raises AssertionError if it is something else."""
    assert isinstance(result, tuple | list), f"{expected}, not {type(result).__name__}"
    assert len(result) == 2, f"{expected}, not {len(result)} values"
    return result[0], result[1]


def require_finite(values: NDArray[Any], subject: str) -> None:
    """Raise AssertionError if an array has NaN or infinity."""
    if values.dtype.kind == "f":
        for name, count in (("NaN", np.isnan(values).sum()), ("infinity", np.isinf(values).sum())):
            assert not count, f"{subject} has {name}: {count} of {values.size} values"


def require_tensor(value: Any, shape: tuple[int, ...], subject: str) -> None:
    """Raise AssertionError if this is not a finite float32 tensor of this shape."""
    import torch

    assert isinstance(value, torch.Tensor), f"{subject} returned {type(value).__name__}, not a tensor"
    assert tuple(value.shape) == shape, f"{subject} returned {tuple(value.shape)}, not {shape}"
    require_finite(value.detach().double().numpy(), f"{subject} returned a tensor that")
    assert value.dtype == torch.float32, f"{subject} returned {value.dtype}, not torch.float32"


@contextlib.contextmanager
def exporting() -> Iterator[Path]:
    """A folder to export to. The exporter prints its progress, and its errors are pages long: the cause is enough."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        try:
            yield Path(folder)
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise AssertionError(f"no export to ONNX: {type(cause).__name__}: {cause}") from error
