"""Feature sources that plugins and gliaflow share, and how to read any source: in parts, by class, by patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.contracts import FeatureSource, Indices, SliceSource

SCALE_SAMPLES = 1024


class ArrayFeatures:
    """A ``FeatureSource`` over one array or memmap [N, C, H, W] of float16 or float32 and labels [N].

    Raises
    ------
    ValueError: the shapes do not agree, or a label is not an index into ``classes``.
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

    def batch(self, indices: Indices) -> NDArray[np.float32]:
        return self._features[indices].astype(np.float32)


class Joined:
    """Several sources as one ``FeatureSource``: the samples of the first, then those of the next. Nothing is copied.

    Raises
    ------
    ValueError: there is no source, or the sources differ in shape or classes.
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

    def batch(self, indices: Indices) -> NDArray[np.float32]:
        samples = np.empty((len(indices), *self.shape), dtype=np.float32)
        numbers = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(numbers):
            source, own = self.sources[number], numbers == number
            samples[own] = source.batch(indices[own] - (self._ends[number] - len(source)))
        return samples


def patients_of(features: FeatureSource) -> NDArray[np.str_]:
    """The patient of each sample [N]. If the source does not know them, each sample has a patient of its own."""
    patients = getattr(features, "patients", None)
    return np.arange(len(features)).astype(np.str_) if patients is None else np.asarray(patients, dtype=np.str_)


def slices_of(features: FeatureSource) -> SliceSource:
    """The slices that the features come from, and the extractor.

    Raises
    ------
    ValueError: the source does not know them: the trainer service records features alone.
    """
    slices = getattr(features, "slices", None)
    if not isinstance(slices, SliceSource):
        raise ValueError("these features come without their slices; `gliaflow train` and `gliaflow evaluate` have them")
    return slices


def class_members(features: FeatureSource) -> list[Indices]:
    """The indices of each class's samples. Raises ValueError if a class has no sample."""
    members = [np.flatnonzero(features.labels == label) for label in range(len(features.classes))]
    if not all(map(len, members)):
        counts = dict(zip(features.classes, map(len, members), strict=True))
        raise ValueError(f"a class has no sample: {counts}")
    return members


def evenly_spaced(count: int, most: int) -> Indices:
    """At most ``most`` indices below ``count``, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def parts(indices: Indices, size: int) -> list[Indices]:
    """``indices`` in consecutive parts of at most ``size``, so that a few samples at a time are in memory."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def channel_scale(features: FeatureSource, indices: Indices | None = None) -> NDArray[np.float32]:
    """The root mean square of each channel [C] over the samples at ``indices`` (default: all); 0 for a channel of 0s.

    The channels of a tap differ in scale by orders of magnitude; networks are fitted on features over this scale. Of
    more than 1,024 samples, 1,024 evenly spaced ones are read, so that a large store is not read once more.
    """
    chosen = np.arange(len(features)) if indices is None else indices
    chosen = chosen[evenly_spaced(len(chosen), SCALE_SAMPLES)]
    total = np.zeros(features.shape[0], dtype=np.float64)
    for part in parts(chosen, 16):
        total += np.square(features.batch(part)).sum(axis=(0, 2, 3), dtype=np.float64)
    _, height, width = features.shape
    return np.sqrt(total / max(1, len(chosen) * height * width)).astype(np.float32)
