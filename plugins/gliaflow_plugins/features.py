"""Generators of synthetic features: what a variant is given, and what it leaves behind.

A variant is fitted with torch, which is imported then and not before. What it leaves is exported to ONNX and
served without torch and without the variant's code:

    generator-NAME.onnx   z [n, nz] float32, label [n] int64  →  features [n, C, H, W] float32
    critic-NAME.onnx      features [n, C, H, W] float32       →  source_logit [n], class_logits [n, K] float32
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.contracts import FeatureSource, SliceSource

if TYPE_CHECKING:
    pass


SCALE_SAMPLES = 1024


class ArrayFeatures:
    """A ``FeatureSource`` over one array or memmap [N, C, H, W] of float16 or float32 and labels [N].

    Raises
    ------
    ValueError: shapes do not agree, or a label is no index into ``classes``.
    """

    def __init__(self, features: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]) -> None:
        if features.ndim != 4 or labels.shape != features.shape[:1]:
            raise ValueError(f"features {features.shape} must be [N, C, H, W] and labels {labels.shape} [N]")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}, the classes are {classes}")
        self._features = features
        self.labels: NDArray[np.int64] = labels.astype(np.int64)
        self.classes = classes

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self._features.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._features[indices].astype(np.float32)


class Joined:
    """Several sources as one ``FeatureSource``: the samples of the first, then those of the next. Nothing is copied.

    Raises
    ------
    ValueError: there is none, or they differ in shape or classes.
    """

    def __init__(self, *sources: FeatureSource) -> None:
        kinds = [(source.shape, source.classes) for source in sources]
        if not kinds or any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"sources to join must have one shape and one list of classes, these have {kinds}")
        self.sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.shape, self.classes = kinds[0]
        self.labels: NDArray[np.int64] = np.concatenate([source.labels for source in sources])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.empty((len(indices), *self.shape), dtype=np.float32)
        which = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(which):
            source, here = self.sources[number], which == number
            found[here] = source.batch(indices[here] - (self._ends[number] - len(source)))
        return found


def patients_of(features: FeatureSource) -> NDArray[np.str_]:
    """Whose each sample is [N]; where the source does not know, each is of a patient of its own."""
    patients = getattr(features, "patients", None)
    return np.arange(len(features)).astype(np.str_) if patients is None else np.asarray(patients, dtype=np.str_)


def slices_of(features: FeatureSource) -> SliceSource:
    """The slices of these features, and the extractor.

    Raises
    ------
    ValueError: the source does not know them: the trainer service records features alone.
    """
    slices = getattr(features, "slices", None)
    if not isinstance(slices, SliceSource):
        raise ValueError("these features come without their slices; `gliaflow train` and `gliaflow evaluate` have them")
    return slices


def channel_scale(features: FeatureSource, indices: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """The root mean square of each channel [C] over the samples at ``indices`` (all by default).

    Taps differ in scale by orders of magnitude between channels; networks are fitted on features over this scale.
    A channel that is always 0 gets 0. Of more than 1,024 samples as many are read, evenly spaced, so that a large
    store is not read once more for it.
    """
    chosen = np.arange(len(features)) if indices is None else indices
    if len(chosen) > SCALE_SAMPLES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, SCALE_SAMPLES).astype(np.int64)]
    total = np.zeros(features.shape[0], dtype=np.float64)
    for start in range(0, len(chosen), 16):
        total += np.square(features.batch(chosen[start : start + 16])).sum(axis=(0, 2, 3), dtype=np.float64)
    _, height, width = features.shape
    return np.sqrt(total / max(1, len(chosen) * height * width)).astype(np.float32)
