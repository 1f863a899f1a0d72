"""Synthetic features from a bundle's generator, filtered by its critic (``gliaflow_runtime.acceptance``)."""

from __future__ import annotations

import numpy as np
from gliaflow_runtime import metrics
from gliaflow_runtime.acceptance import Acceptance, accept
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.inference import Network
from numpy.typing import NDArray

BATCH = 16


class GeneratorError(ValueError):
    """The generator cannot make the requested features."""


def request_rng(label: str, seed: int) -> np.random.Generator:
    """The random numbers of a request: the same class and seed give the same features."""
    return np.random.default_rng([seed, *label.encode()])


def too_few(label: str, result: Acceptance) -> str:
    """Why there are fewer features than requested."""
    broken = f" ({result.not_finite} were not finite)" if result.not_finite else ""
    return f"{result.taken} of {result.drawn} features were accepted as {label}{broken}; train it further"


class Synthesizer:
    """Draws features from the bundle's generator and takes those that its critic accepts.

    Parameters
    ----------
    bundle: has ``generator-NAME.onnx`` (z, label → features) and ``critic-NAME.onnx`` (features → source logit, class
        logits).
    generator: the NAME; empty: the bundle's own.

    Raises
    ------
    BundleError: the bundle has no such generator, or its tap is not the one that the generator was fitted on.
    """

    def __init__(self, bundle: Bundle, generator: str = "", *, device: str = "cpu", threads: int = 0) -> None:
        bundle.require_own_tap("the generator")
        self.classes = bundle.manifest.classes
        self.generator = bundle.require_generator(generator)
        self._noise = bundle.manifest.generators[self.generator].noise
        self._generator = Network(bundle, f"generator-{self.generator}", ["features"], device=device, threads=threads)
        self._critic = Network(bundle, f"critic-{self.generator}", ["class_logits"], device=device, threads=threads)
        self._generator.warm(z=(2, self._noise), label=(2,))
        self._critic.warm(features=(2, *bundle.tap_shape))
        for label in self.classes:  # so that the metric is 0, not absent, before the first request
            for verdict in ("accepted", "refused"):
                metrics.SYNTHETIC.labels(label, verdict)

    def draw(self, label: str, count: int, rng: np.random.Generator) -> NDArray[np.float16]:
        """``count`` features FP16 [count, C, H, W] of class ``label``, counted in the metrics.

        Raises
        ------
        GeneratorError: the class is not known, or hardly any feature is accepted.
        """
        result = self.try_draw(label, count, rng)
        metrics.SYNTHETIC.labels(label, "accepted").inc(result.taken)
        metrics.SYNTHETIC.labels(label, "refused").inc(result.drawn - result.taken)
        if len(result.features) < count:
            raise GeneratorError(too_few(label, result))
        return result.features

    def try_draw(self, label: str, count: int, rng: np.random.Generator) -> Acceptance:
        """As ``draw``, but with fewer features than ``count`` where hardly any is accepted, and not in the metrics.

        Raises
        ------
        GeneratorError: the class is not known.
        """
        if label not in self.classes:
            raise GeneratorError(f"label: {label!r} is not one of {', '.join(self.classes)}")
        wanted = self.classes.index(label)

        def batch() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            z = rng.standard_normal((BATCH, self._noise), dtype=np.float32)
            (features,) = self._generator(z=z, label=np.full(BATCH, wanted, dtype=np.int64))
            (classes,) = self._critic(features=features)
            return features, classes

        return accept(batch, wanted, count, np.float16)
