"""What serving needs to know of the training scans: how a typical scan looks, and which spots are not a tumour."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from gliaflow_classifier.spots import without_spots
from gliaflow_preprocessor.typical import statistics
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray
from scipy import stats

from gliaflow_trainer.unet_fit import dice_by_patient

BEYOND = 0.00135  # of the scans like the training scans, so many exceed a limit: 3 standard deviations
SPOTS_ML = (1.0, 0.5, 0.2, 0.1)
SHARES = (0.1, 0.05)  # not more: a second tumour is often much smaller than the first
SHARE_OF_TUMOUR = 0.1  # a spot that is not a tumour has at most this share of the smallest tumour's volume


@dataclass(frozen=True)
class Masks:
    """The ``true`` mask and the ``found`` mask [n, rows, columns] of a patient's scan, and a pixel's volume in ml."""

    patient: str
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


def spot_limits(scans: Iterable[Masks]) -> dict[str, float]:
    """The limits under which a spot in a mask is not a tumour, from scans that the U-Net did not learn from.

    ``min_tumour_ml``: the largest of SPOTS_ML for which three things hold: it is at most a tenth of the smallest
    tumour; to remove smaller spots does not lower the mean Dice; something is left of every mask that met the tumour.
    If there is none, 0. ``min_tumour_share``: the largest of SHARES of the largest part for which, of what is left
    then, to remove smaller parts does not lower the mean Dice. If there is none, 0.

    Parameters
    ----------
    scans: taken one by one, so that a cohort need not fit into memory.
    """
    tumours: list[float] = []
    dice: dict[tuple[float, float], list[float]] = {
        (volume, share): [] for volume in (0.0, *SPOTS_ML) for share in (0.0, *SHARES)
    }
    emptied: set[float] = set()
    for scan in scans:
        if scan.true.any():
            tumours.append(scan.true.sum() * scan.pixel_ml)
        met = (scan.true & (scan.found > 0)).any()
        for (volume, share), each in dice.items():
            cleaned = without_spots(scan.found, volume / scan.pixel_ml, share)
            each += dice_by_patient([("", scan.true, cleaned > 0)]).values()
            if met and not cleaned.any():
                emptied.add(volume)
    if not tumours:
        return {"min_tumour_ml": 0.0, "min_tumour_share": 0.0}
    mean = {limits: np.mean(each) for limits, each in dice.items()}
    fit = [v for v in SPOTS_ML if v <= SHARE_OF_TUMOUR * min(tumours) and v not in emptied]
    volume = next((v for v in fit if mean[v, 0.0] >= mean[0.0, 0.0]), 0.0)
    share = next((s for s in SHARES if mean[volume, s] >= mean[volume, 0.0]), 0.0)
    return {"min_tumour_ml": volume, "min_tumour_share": share}
