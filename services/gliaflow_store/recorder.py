"""The recorder: writes labelled features to the feature store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gliaflow_proto import CLASSES, FeaturesMessage, Message, expect
from gliaflow_proto.routing import RECORDER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage, TemporarilyUnavailable

from gliaflow_store.feature_store import FeatureOrigin, StoredPart, origin_of, write_part


class Recorder(Stage):
    """``features.labelled`` → a file of the store. It publishes nothing; acknowledged parts are in the store.

    A part that comes again replaces its file, so several recorders may share a folder. A part that it refuses becomes
    a dead letter; the scan is graded nevertheless.

    Parameters
    ----------
    folder: the store, created if it is missing. Features must have the same origin as those that it already has.
    classes: the accepted labels.
    """

    name = "recorder"
    queue = RECORDER
    announces_failures = False

    def __init__(self, folder: Path, classes: tuple[str, ...] = CLASSES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._classes = folder, classes
        self._origin = origin_of(folder)

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        part = expect(message, FeaturesMessage)
        slices = len(part.geometry.slices)
        if part.scan.label not in self._classes:
            raise InvalidInput(f"scan.label: {part.scan.label!r} is not one of {', '.join(self._classes)}")
        if part.features.ndim != 4 or part.features.shape[0] != slices or not part.features.size:
            raise InvalidInput(f"tensors.features: shape {part.features.shape}, expected [{slices}, C, H, W]")
        if part.mask.shape != (slices, *part.geometry.size) or part.mask.dtype != np.uint8:
            raise InvalidInput(f"tensors.mask: {part.mask.dtype} {part.mask.shape} for {slices} slices")
        if part.features.dtype != np.float16 or not np.isfinite(part.features).all():
            raise InvalidInput(f"tensors.features: {part.features.dtype}, expected finite FP16 numbers")
        _, channels, height, width = part.features.shape
        origin = FeatureOrigin(part.bundle, part.tap, (channels, height, width))
        if origin != (self._origin or origin):
            raise InvalidInput(f"features: {origin}, but {self._folder} has {self._origin}; use another folder")
        try:
            write_part(
                self._folder,
                StoredPart(part.scan, part.part, origin, part.features, part.mask, part.geometry.slices),
            )
        except OSError as error:
            raise TemporarilyUnavailable(
                f"the store cannot be written: {error.strerror or type(error).__name__}"
            ) from None
        self._origin = origin
        metrics.SLICES.labels(self.name).inc(slices)
        return Outcome()
