"""A scan's numbers: their cast to float32, and doubts about them."""

from __future__ import annotations

from itertools import count
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE, LARGE_SAMPLE = 2**15, 2**21  # voxels that stand for a scan's; the large one settles a suspicion
TYPICAL = (1e-30, 1e30)  # numbers that float32 holds with all their digits
FEW_VALUES = 16
FLAT = 0.75  # in a label map, so many neighbours have the same value; in 72 scans, at most 0.45
MIN_CONTRAST = 0.05  # of the head's values, as a share of their median's distance from air
MIN_WRAPPED = 1e-5  # of the voxels; fewer are defects


def fit_float32(volume: NDArray[Any]) -> NDArray[Any]:
    """The volume, without an offset or a unit that a cast to float32 would lose.

    Float32 has 24 bits: of 3,000,000,000 and 3,000,000,100 it makes the same number. An offset over the range of the
    values is subtracted, without rounding. The unit and the zero of a scan's intensities have no meaning.
    """
    if volume.dtype.itemsize <= 2:
        return volume
    if volume.dtype.kind in "iu":
        least, most = int(volume.min()), int(volume.max())
        return volume - volume.dtype.type(least) if max(least, -most) > most - least else volume
    values = _sample(volume)
    values = values[np.isfinite(values)]
    if not values.size:
        return volume
    low, high = (float(value) for value in np.percentile(values, [0.5, 99.5]))
    with np.errstate(over="ignore", invalid="ignore"):
        if max(low, -high) > high - low > 0:
            volume = volume.astype(np.float64) - float(values.min())
            low, high = 0.0, high - low
        typical = max(abs(low), abs(high))
        return volume if typical == 0 or TYPICAL[0] < typical < TYPICAL[1] else volume / np.float64(typical)


def doubts(volume: NDArray[Any]) -> list[str]:
    """Reasons to doubt that these are the numbers of a scan, one sentence each."""
    texts = [_not_finite(volume), _wrapped(volume)]
    values = _sample(volume)
    if np.isfinite(values).any():
        suspect = np.ptp(values[np.isfinite(values)]) == 0 or _label_map(values)
        texts.append((suspect and _label_map(_sample(volume, LARGE_SAMPLE))) or _flat(values))
    return [text for text in texts if text]


def _sample(volume: NDArray[Any], size: int = SAMPLE) -> NDArray[np.float64]:
    """Whole rows of voxels [i, rows] from all parts of the volume."""
    rows = volume.reshape(len(volume), -1, order="F" if volume.flags.f_contiguous else "C")
    step = next(n for n in count(max(1, volume.size // size)) if gcd(n, rows.shape[1]) == 1)  # not always one column
    return rows[:, ::step].astype(np.float64)


def _not_finite(volume: NDArray[Any]) -> str:
    if volume.dtype.kind != "f":
        return ""
    number = volume.size - int(np.count_nonzero(np.isfinite(volume)))
    if not number:
        return ""
    share = 100 * number / volume.size
    return f"voxels: {number} ({share:.2g} %) are NaN or infinite; they were taken as the lowest value"


def _wrapped(volume: NDArray[Any]) -> str:
    """Whether signed numbers were stored as unsigned ones, or the other way round: one end of the range is far away."""
    if volume.dtype.kind not in "iu" or volume.dtype.itemsize not in (2, 4):
        return ""
    kind = "i" if volume.dtype.kind == "u" else "u"
    other = volume.view(volume.dtype.str.replace(volume.dtype.kind, kind))
    low, high = int(volume.min()), int(volume.max())
    if 20 * (int(other.max()) - int(other.min())) > 19 * (high - low):
        return ""
    beyond = volume < 0 if kind == "u" else other < 0
    if not MIN_WRAPPED < float(np.mean(beyond)) < 1 - MIN_WRAPPED:
        return ""
    meant = f"{other.dtype.name} numbers stored as {volume.dtype.name}"
    return f"datatype: values from {low} to {high} with a gap between; are they {meant}?"


def _label_map(values: NDArray[np.float64]) -> str:
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    if (distinct % 1 != 0).any() or len(distinct) < 2:
        return ""
    one, two = values[1:], values[:-1]
    inside = (one != distinct[counts.argmax()]) | (two != distinct[counts.argmax()])
    if len(distinct) > FEW_VALUES and np.mean(one[inside] == two[inside]) < FLAT:
        return ""
    shown = ", ".join(f"{value:g}" for value in distinct[:FEW_VALUES])
    more = ", …" if len(distinct) > FEW_VALUES else ""
    return f"voxels: only {len(distinct)} different values ({shown}{more}); is this a label map?"


def _flat(values: NDArray[np.float64]) -> str:
    values = values[np.isfinite(values)]
    air, bright = np.percentile(values, [1, 99.5])
    head = values[values > air + 0.2 * (bright - air)]
    if not head.size:
        return ""
    low, middle, high = np.percentile(head, [5, 50, 95])
    if high - low > MIN_CONTRAST * (middle - air):
        return ""
    return f"voxels: the head has almost no contrast: values from {low:.10g} to {high:.10g}, over {air:.10g}"
