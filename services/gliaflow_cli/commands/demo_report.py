"""The page of ``gliaflow demo``: each scan with its mask, feature maps real and synthetic, the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_pages.pages import render_page
from gliaflow_pages.slices import Slice, feature_maps, slice_pictures
from gliaflow_runtime.files import write_whole
from numpy.typing import NDArray

from gliaflow_cli.client.table import ScanRow


@dataclass(frozen=True)
class Shown:
    """A scan with its answer and its true mask. The arrays [x, y, z] are in canonical RAS+ axes, ``spacing`` in mm."""

    row: ScanRow
    grade: str
    dice: float
    flair: NDArray[Any]
    mask: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    spacing: tuple[float, float]

    def fullest(self) -> Slice:
        """The slice with most tumour, true or found."""
        z = int((self.truth + self.mask).sum(axis=(0, 1)).argmax())
        return Slice(self.flair[:, :, z], self.truth[:, :, z], self.mask[:, :, z], self.spacing)


def write_report(
    path: Path,
    scans: Sequence[Shown],
    real: Mapping[str, NDArray[Any]],
    synthetic: Mapping[str, NDArray[Any]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the page.

    Parameters
    ----------
    scans: at least one.
    real: by class, the features [C, H, W] of one slice.
    synthetic: by class, synthetic features [n, C, H, W].
    metrics: those of the bundle's manifest.
    """
    slices = [scan.fullest() for scan in scans]
    answered = [scan for scan in scans if scan.row.status == "ok"]
    text = render_page(
        "gliaflow_cli.commands",
        "demo.html",
        scans=scans,
        answered=answered,
        right=sum(scan.row.grade == scan.grade for scan in answered),
        dice=np.mean([scan.dice for scan in answered]) if answered else None,
        metrics=metrics,
        tiles=list(zip(scans, slices, slice_pictures(slices), strict=True)),
        maps={label: feature_maps(real[label][None], synthetic[label][:2]) for label in synthetic if label in real},
        channels={label: len(features) for label, features in real.items()},
    )
    write_whole(path, text)
