"""Features whose slices are known too: what a variant that makes images is fitted on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from gliaflow_plugins.contracts import SliceSource
from gliaflow_plugins.networks.image_gan import Extractor
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import Samples
from numpy.typing import NDArray
from torch import nn

from gliaflow_trainer.slices import kept_scans
from gliaflow_trainer.steps import load_served


class Imaged:
    """A ``FeatureSource`` over samples, with their slices (``SliceSource``), which are looked up only when asked for.

    Parameters
    ----------
    folder: where ``cut`` left the slices.
    bundle: whose U-Net the features come from, with its tap.
    cropped: whether they are cropped to the tumour that the U-Net finds.
    """

    def __init__(self, samples: Samples, folder: Path, bundle: Bundle, cropped: bool) -> None:
        self._samples, self._folder, self._bundle, self._cropped = samples, folder, bundle, cropped
        self.shape, self.labels, self.classes = samples.shape, samples.labels, samples.classes
        self.patients, self.batch = samples.patients, samples.batch

    def __len__(self) -> int:
        return len(self._samples)

    @cached_property
    def slices(self) -> SliceSource:
        """Raises BundleError: the bundle has no torch weights."""
        return SliceSource(_Slices(self._samples, self._folder), self._extractor())

    def _extractor(self) -> nn.Module:
        return Extractor(load_served(self._bundle), self._bundle.tap, self._cropped)


class _Slices:
    """The slices of samples as a ``FeatureSource`` of [1, H, W]."""

    def __init__(self, samples: Samples, folder: Path) -> None:
        scans = {scan.id: scan for scan in kept_scans(folder)}
        whose = [scans[str(scan)] for scan in samples.scans]
        self._images = [scan.image for scan in whose]
        self._at = [scan.geometry.slices.index(int(z)) for scan, z in zip(whose, samples.slices, strict=True)]
        self.labels, self.classes, self.patients = samples.labels, samples.classes, samples.patients
        rows, columns = self._images[0].shape[1:]
        self.shape = (1, int(rows), int(columns))

    def __len__(self) -> int:
        return len(self._at)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The slices [n, 1, H, W] at ``indices`` [n]."""
        return np.stack([self._images[i][self._at[i]] for i in indices]).astype(np.float32)[:, None]
