"""The recorder: writes labelled features to the feature store. What is stored never changes."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
from gliaflow_proto import CLASSES, FeaturesMessage, Message, expect
from gliaflow_proto.routing import RECORDER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.stage import InvalidInput, OtherBundle, Outcome, Stage, TemporarilyUnavailable
from numpy.typing import NDArray

from gliaflow_store.part_file import (
    FeatureOrigin,
    PartFile,
    StoredPart,
    StoreError,
    features_digest,
    origin_of,
    part_path,
    read_part,
    remove_leftovers,
    write_part,
)

MAX_NAME = 512  # characters of a scan's id, patient and cohort, which are kept in memory for each sample
TOLERANCE = 0.05  # of features of the same slice: processors differ by about 0.001, other scans by over 0.3
FULL = (errno.ENOSPC, errno.EDQUOT)


class Recorder(Stage):
    """``features.labelled`` → a file of the store. It publishes nothing; acknowledged parts are in the store.

    - A part that is stored already and comes again is acknowledged. Its file stays as it is.
    - A part that contradicts the stored parts of its scan is refused: it becomes a dead letter, and the stored parts
      stay. The scan is graded nevertheless.
    - A part of another bundle is not stored, and leaves no dead letter (``OtherBundle``): the bundle is being replaced.

    Several recorders may share a folder.

    Parameters
    ----------
    folder: the store, created if it is missing.
    origin: bundle, tap and shape of the features to record.
    classes: the accepted labels.
    keep_free: the free space in bytes that recording must leave on the disk.
    """

    name = "recorder"
    queue = RECORDER
    announces_failures = False

    def __init__(
        self, folder: Path, origin: FeatureOrigin, classes: tuple[str, ...] = CLASSES, keep_free: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        self._folder, self._origin, self._classes, self._keep_free = folder, origin, classes, keep_free
        self._stored_origin = origin_of(folder)

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        features = expect(message, FeaturesMessage)
        if features.bundle != self._origin.bundle:
            raise OtherBundle("features", features.bundle, self.name, self._origin.bundle)
        part = self._checked(features)
        try:
            self._record(part)
        except StoreError as error:
            raise InvalidInput(f"the stored part of this scan cannot be read: {error}; delete that file") from None
        except OSError as error:
            if error.errno in FULL:
                raise self._full() from None
            reason = error.strerror or type(error).__name__
            raise TemporarilyUnavailable(f"the store cannot be written: {reason}") from None
        metrics.SLICES.labels(self.name).inc(len(part.slices))
        return Outcome()

    def _checked(self, part: FeaturesMessage) -> StoredPart:
        scan, slices = part.scan, len(part.geometry.slices)
        if scan.label not in self._classes:
            raise InvalidInput(f"scan.label: {scan.label!r} is not one of {', '.join(self._classes)}")
        for name in ("id", "patient", "cohort"):
            if (length := len(getattr(scan, name))) > MAX_NAME:
                raise InvalidInput(f"scan.{name}: {length} characters, over the limit of {MAX_NAME}")
        if part.features.ndim != 4 or part.features.shape[0] != slices or not part.features.size:
            raise InvalidInput(f"tensors.features: shape {part.features.shape}, expected [{slices}, C, H, W]")
        if part.mask.shape != (slices, *part.geometry.size) or part.mask.dtype != np.uint8:
            raise InvalidInput(f"tensors.mask: {part.mask.dtype} {part.mask.shape} for {slices} slices")
        if part.features.dtype != np.float16 or not np.isfinite(part.features).all():
            raise InvalidInput(f"tensors.features: {part.features.dtype}, expected finite FP16 numbers")
        _, channels, height, width = part.features.shape
        origin = FeatureOrigin(part.bundle, part.tap, (channels, height, width))
        if origin != self._origin:
            raise InvalidInput(
                f"features: {origin}, but this recorder stores {self._origin}; give extractor and trainer the same "
                "bundle and tap"
            )
        return StoredPart(scan, part.part, origin, part.features, part.mask, part.geometry.slices)

    def _record(self, part: StoredPart) -> None:
        """Write the part, unless it is stored. Raises InvalidInput: it contradicts the stored parts of its scan."""
        if self._stored_origin is None:  # another recorder may have filled the folder meanwhile
            self._stored_origin = origin_of(self._folder)
        if self._stored_origin not in (None, self._origin):
            raise InvalidInput(
                f"features: {self._origin}, but {self._folder} has {self._stored_origin}; use another folder"
            )
        for _ in range(2):
            if (stored := self._stored_part(part)) is not None:
                self._compare(stored, part)
            if stored is not None and stored.about.part == part.part[0]:
                return
            if shutil.disk_usage(self._folder).free - part.features.nbytes - part.mask.nbytes < self._keep_free:
                raise self._full()
            try:
                write_part(self._folder, part)
            except FileExistsError:  # another recorder has just written it: compare with that one
                continue
            self._stored_origin = self._origin
            return
        raise FileExistsError(errno.EEXIST, "a stored part was deleted and written again meanwhile")

    def _stored_part(self, part: StoredPart) -> PartFile | None:
        """The same part of the scan, if it is stored; else any other part of the scan."""
        index, count = part.part
        for each in (index, *range(count)):
            if (path := part_path(self._folder, part.scan.id, each)).exists():
                return read_part(path)
        return None

    def _compare(self, stored: PartFile, part: StoredPart) -> None:
        """Raise InvalidInput if ``part`` contradicts the stored part. The text has no value of either."""
        about, scan = stored.about, part.scan
        values = {
            "label": (about.label, scan.label),
            "patient": (about.patient, scan.patient),
            "cohort": (about.cohort, scan.cohort),
            "number of parts": (about.parts, part.part[1]),
        }
        different = [name for name, (before, now) in values.items() if before != now]
        if about.part == part.part[0]:
            if stored.slices.tolist() != list(part.slices):
                different.append("slices")
            elif about.digest != features_digest(part.features) and not nearly_equal(
                stored.read_features(), part.features
            ):
                different.append("features")
        if different:
            raise InvalidInput(
                f"a scan with this id is stored already, and stays; this part differs in {', '.join(different)}. "
                f"To replace it: gliaflow store {self._folder} --remove SCAN (its id: gliaflow dead show), then submit "
                "the scan again"
            )

    def _full(self) -> InvalidInput:
        free = shutil.disk_usage(self._folder).free / 2**30
        return InvalidInput(
            f"the store is full: {self._folder} has {free:.1f} GiB free, and {self._keep_free / 2**30:g} GiB stay free "
            "(GLIAFLOW_STORE_FREE_GIB). Make room, then gliaflow dead replay"
        )


def nearly_equal(before: NDArray[np.float16], now: NDArray[np.float16]) -> bool:
    """Whether two processors may have computed these features [n, C, H, W] from the same slices.

    Slices whose features are all 0 (cropped, and without tumour) do not count. Most of the others decide: on another
    processor, a slice's mask may gain a pixel, which can move its cropped window.
    """
    first, second = (features.reshape(len(features), -1).astype(np.float32) for features in (before, now))
    size = np.maximum(np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1))
    distance = np.linalg.norm(first - second, axis=1)[size > 0] / size[size > 0]
    return not len(distance) or bool(np.median(distance) <= TOLERANCE)
