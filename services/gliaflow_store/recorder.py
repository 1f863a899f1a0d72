"""The recorder: labelled features go into the feature store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gliaflow_proto import FeaturesMessage, Message, expect
from gliaflow_proto.routing import RECORDER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.stage import Away, InvalidInput, Outcome, Stage

from gliaflow_store.feature_store import Origin, origin_of, write_part


class Recorder(Stage):
    """``features.labelled`` → a file of the store. It publishes nothing; the store holds what is acknowledged.

    A part that comes again overwrites itself, so several recorders may share a folder. What it refuses is a dead
    letter; the scan is graded all the same.

    Parameters
    ----------
    folder: the store, made where it is missing. Features must be of the bundle, tap and shape that lie there already.
    classes: the labels that are taken.
    """

    name = "recorder"
    queue = RECORDER
    announces_failures = False

    def __init__(self, folder: Path, classes: tuple[str, ...] = ("HGG", "LGG")) -> None:
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
        origin = Origin(part.bundle, part.tap, (channels, height, width))
        if origin != (self._origin or origin):
            raise InvalidInput(f"features: {origin}, but {self._folder} holds {self._origin}; use another folder")
        try:
            write_part(self._folder, part.scan, part.part, origin, part.features, part.mask, part.geometry.slices)
        except OSError as error:
            raise Away(f"the store cannot be written: {error.strerror or type(error).__name__}") from None
        self._origin = origin
        metrics.SLICES.labels(self.name).inc(slices)
        return Outcome()
