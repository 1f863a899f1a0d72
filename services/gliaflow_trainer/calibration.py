"""What serving needs to know of the training scans: how a typical scan looks, and which spots are not a tumour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from gliaflow_classifier.spots import without_spots
from gliaflow_preprocessor.typical import statistics
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray
from scipy import stats

from gliaflow_trainer.unet_fit import dice_by_patient

BEYOND = 0.00135  # of the scans like the training scans, so many exceed a limit: 3 standard deviations
SPOTS_ML = (1.0, 0.5, 0.2, 0.1)
SHARE_OF_TUMOUR = 0.1  # a spot that is not a tumour has at most this share of the smallest tumour's volume


@dataclass(frozen=True)
class Masks:
    """The ``true`` mask and the ``found`` mask [n, rows, columns] of a scan, and the volume of a pixel in ml."""

    true: NDArray[np.bool_]
    found: NDArray[np.uint8]
    pixel_ml: float


def typical_limits(images: Iterable[NDArray[np.float16]], spec: InputSpec) -> dict[str, float]:
    """The largest value of each of ``gliaflow_preprocessor.typical``'s statistics that a scan like these has.

    It is the upper limit of a one-sided prediction interval for a normal distribution: with many scans, the mean and 3
    standard deviations; with few, more.

    Parameters
    ----------
    images: the slices [n, rows, columns] of each scan. With fewer than 4 scans, no limit is set.
    """
    scans = [statistics(image, spec) for image in images]
    limits = {}
    for name in dict.fromkeys(name for scan in scans for name in scan):
        values = np.array([scan[name] for scan in scans if name in scan])
        if (n := len(values)) >= 4:
            limit = values.mean() + stats.t.isf(BEYOND, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n)
            limits[name] = round(float(limit), 4)
    return limits


def min_tumour_ml(scans: Sequence[Masks]) -> float:
    """The volume under which a spot in a mask is not a tumour, from scans that the U-Net did not learn from.

    The largest of SPOTS_ML for which three things hold: it is at most a tenth of the smallest tumour; to remove smaller
    spots does not lower the mean Dice; something is left of every mask that met the tumour. If there is none, 0.
    """
    tumours = [scan.true.sum() * scan.pixel_ml for scan in scans if scan.true.any()]
    for volume in SPOTS_ML if tumours else ():
        cleaned = [replace(scan, found=without_spots(scan.found, volume / scan.pixel_ml)) for scan in scans]
        lost = any(
            (scan.true & (scan.found > 0)).any() and not clean.found.any()
            for scan, clean in zip(scans, cleaned, strict=True)
        )
        small = volume <= SHARE_OF_TUMOUR * min(tumours)
        if small and not lost and _mean_dice(cleaned) >= _mean_dice(scans):
            return volume
    return 0.0


def _mean_dice(scans: Sequence[Masks]) -> float:
    masks = ((str(number), scan.true, scan.found > 0) for number, scan in enumerate(scans))
    return float(np.mean([*dice_by_patient(masks).values()]))
