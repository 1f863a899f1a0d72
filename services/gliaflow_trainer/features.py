"""From slices to features: the extractor that serves records them, and ``FeaturesWithSlices`` joins the two again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_plugins.contracts import SliceSource
from gliaflow_plugins.networks.image_gan import TapExtractor
from gliaflow_proto import MAX_MESSAGE_BYTES, Message
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import FeatureStore, Samples
from gliaflow_store.part_file import FeatureOrigin
from gliaflow_store.recorder import Recorder
from numpy.typing import NDArray

from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.slices import CutScan, kept_scans
from gliaflow_trainer.stream import DELIVERY, stream
from gliaflow_trainer.unet_bundle import load_served_unet

COMPLETE = "complete"


def extract(
    scans: Sequence[CutScan], bundle: Bundle, folder: Path, context: RunContext, *, cropped: bool, threads: int = 0
) -> FeatureStore:
    """Send slices through the extractor and record the features of every slice in ``folder``, unless they are there.

    Parameters
    ----------
    bundle: whose U-Net, and whose tap.
    cropped: crop features to the tumour that the U-Net finds.
    """
    complete = folder / COMPLETE
    if complete.exists():
        return FeatureStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    row = context.bar.add_task("features", total=len(scans))
    unet = UNetSession(bundle, batch=16, cropped=cropped, device=context.device, threads=threads)
    per_part = bundle.slices_per_part(MAX_MESSAGE_BYTES)
    if bundle.manifest.cropped and not cropped:
        per_part = max(1, per_part // 4)  # whole maps are four times as large
    failed: list[str] = []

    def answered(scan: str, reason: str | None) -> None:
        context.bar.advance(row)
        if reason is not None:
            failed.append(f"{scan}: {reason}")

    origin = FeatureOrigin(bundle.id, bundle.tap, bundle.features_shape(cropped))
    recorder = Recorder(folder, origin, bundle.manifest.classes)

    def record(results: list[Message]) -> None:
        for result in results:
            recorder.handle(result, DELIVERY)

    messages = (message for scan in scans for message in scan.messages(per_part))
    stream(messages, Extractor(bundle, unet), record, answered)
    context.bar.remove_task(row)
    if failed:  # the slices are valid, so this is a fault of gliaflow or of the disk
        raise RuntimeError(f"features of {len(failed)} scans could not be recorded, the first: {failed[0]}")
    complete.touch()
    return FeatureStore(folder)


def found_masks(
    scans: Sequence[CutScan], bundle: Bundle, context: RunContext
) -> Iterator[tuple[CutScan, NDArray[np.uint8]]]:
    """Each scan, and the mask [n, rows, columns] that the bundle's U-Net finds in its slices."""
    row = context.bar.add_task(f"{context.of}masks", total=len(scans))
    unet, at_once = UNetSession(bundle, device=context.device), bundle.slices_per_part(MAX_MESSAGE_BYTES)
    for scan in scans:
        parts = [unet(scan.image[start : start + at_once])[1] for start in range(0, len(scan.image), at_once)]
        yield scan, np.concatenate(parts)
        context.bar.advance(row)
    context.bar.remove_task(row)


def remove_features(folder: Path) -> None:
    """Remove what ``extract`` left in ``folder``. Half of it never counts as complete."""
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class FeaturesWithSlices:
    """A ``FeatureSource`` that also knows its samples' slices: a variant that generates slices is fitted on it.

    Parameters
    ----------
    samples: the features.
    folder: where ``cut`` left the slices.
    bundle: the bundle of the U-Net and the tap that the features come from.
    cropped: whether the features are cropped to the tumour that the U-Net finds.
    """

    def __init__(self, samples: Samples, folder: Path, bundle: Bundle, cropped: bool) -> None:
        self._samples, self._folder, self._bundle, self._cropped = samples, folder, bundle, cropped
        self.shape, self.labels, self.classes = samples.shape, samples.labels, samples.classes
        self.patients, self.batch = samples.patients, samples.batch

    def __len__(self) -> int:
        return len(self._samples)

    @cached_property
    def slices(self) -> SliceSource:
        """Read only when a variant uses it. Raises BundleError: the bundle has no torch weights."""
        extractor = TapExtractor(load_served_unet(self._bundle), self._bundle.tap, self._cropped)
        return SliceSource(_SlicesOfSamples(self._samples, self._folder), extractor)


class _SlicesOfSamples:
    """The slices of samples as a ``FeatureSource`` of [C, H, W], C sequences."""

    def __init__(self, samples: Samples, folder: Path) -> None:
        by_id = {scan.id: scan for scan in kept_scans(folder)}
        scans = [by_id[str(scan)] for scan in samples.scans]
        self._images = [scan.image for scan in scans]
        self._at = [scan.geometry.slices.index(int(z)) for scan, z in zip(scans, samples.slices, strict=True)]
        self.labels, self.classes, self.patients = samples.labels, samples.classes, samples.patients
        channels, rows, columns = self._images[0].shape[1:]
        self.shape = (int(channels), int(rows), int(columns))

    def __len__(self) -> int:
        return len(self._at)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The slices [n, C, H, W] at ``indices`` [n]."""
        return np.stack([self._images[i][self._at[i]] for i in indices]).astype(np.float32)
