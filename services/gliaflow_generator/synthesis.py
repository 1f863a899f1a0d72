"""Synthetic features from a bundle's generator, only those that its critic puts into the class asked for."""

from __future__ import annotations

import numpy as np
from gliaflow_runtime import metrics
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.inference import Network
from numpy.typing import NDArray

FP16_MAX = float(np.finfo(np.float16).max)
BATCH = 16
MIN_ACCEPTED = 0.02  # a generator of which the critic accepts less than this has not learnt the class


class GeneratorError(ValueError):
    """The generator cannot make what was asked for."""


class Synthesizer:
    """Draws features from the bundle's generator and lets its critic judge each one (paper section 4.2.4).

    Parameters
    ----------
    bundle: has ``generator-NAME.onnx`` (z, label → features) and ``critic-NAME.onnx`` (features → source logit, class
    logits).
    generator: the NAME; empty for the bundle's own.

    Raises
    ------
    BundleError: the bundle has no such generator, or features come from another tap.
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
        for label in self.classes:  # so that an idle one shows 0 and not nothing
            for verdict in ("accepted", "refused"):
                metrics.SYNTHETIC.labels(label, verdict)

    def draw(self, label: str, count: int, rng: np.random.Generator) -> NDArray[np.float16]:
        """``count`` features FP16 [count, C, H, W] of class ``label``.

        Raises
        ------
        GeneratorError: an unknown class, features that are not finite, or the critic refuses nearly all.
        """
        if label not in self.classes:
            raise GeneratorError(f"label: {label!r} is not one of {', '.join(self.classes)}")
        wanted = self.classes.index(label)
        kept: list[NDArray[np.float16]] = []
        accepted = tried = 0
        while accepted < count:
            z = rng.standard_normal((BATCH, self._noise), dtype=np.float32)
            (features,) = self._generator(z=z, label=np.full(BATCH, wanted, dtype=np.int64))
            if not np.isfinite(features).all():
                raise GeneratorError("the generator made features that are not finite")
            (classes,) = self._critic(features=features)
            empty = ~features.any(axis=(1, 2, 3))  # as of a slice without tumour, which has no grade
            right = (classes.argmax(axis=1) == wanted) & ~empty
            metrics.SYNTHETIC.labels(label, "accepted").inc(int(right.sum()))
            metrics.SYNTHETIC.labels(label, "refused").inc(int((~right).sum()))
            kept.append(np.clip(features[right], -FP16_MAX, FP16_MAX).astype(np.float16))
            accepted += int(right.sum())
            tried += BATCH
            if tried >= 50 * BATCH and accepted < MIN_ACCEPTED * tried:
                raise GeneratorError(f"the critic accepted {accepted} of {tried} features as {label}; train it further")
        return np.concatenate(kept)[:count]
