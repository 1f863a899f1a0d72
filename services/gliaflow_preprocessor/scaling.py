"""A scan's intensities on one scale, since scanner units are arbitrary: air is 0, and the median of the head 1.

All decisions depend on the order of the voxels alone, so they cost one count of the volume (``Ordered``). The scale is
applied later, to the voxels that the slices need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_preprocessor.ordered import At, Ordered, percentiles, with_copies

CLIP = 4.0  # in units of the head's median: far above any FLAIR lesion, far below a metal artefact
HEAD = 0.2  # a voxel above this share of the 99.5th percentile is head, not air
FILLED = 0.1  # if this share of voxels has the corners' value, the background was filled in
FILLED_TOLERANCE = 1e-3  # as a share of the range: interpolation changes the value a little


class UnusableScan(ValueError):
    """The volume shows no head: it is constant, empty or not finite."""


@dataclass(frozen=True)
class Background:
    """Voxels from the value ``low`` to ``high``, which become ``value``: they have the ranks ``start`` to ``stop``."""

    start: int
    stop: int
    low: np.float32
    high: np.float32
    value: np.float32

    # Of 1,000 voxels, 300 are lower than the background, which has 500: start is 300, stop 800. Of the 900 lowest
    # voxels, 400 are outside: rank 400 of the voxels without the background is rank 900 of all.
    def outside(self, count: int) -> int:
        """How many of the ``count`` lowest voxels are not in the background."""
        return count - min(max(0, count - self.start), self.stop - self.start)


@dataclass(frozen=True)
class IntensityScale:
    """``air`` becomes 0, and ``air + median`` 1. ``head`` is the lowest value of the head."""

    air: np.float64
    median: np.float32
    head: np.float32
    background: Background | None

    @classmethod
    def of(cls, volume: NDArray[Any]) -> IntensityScale:
        """The scale of a volume [i, j, k] that ``Ordered`` takes.

        Raises
        ------
        UnusableScan: it shows no head.
        """
        voxels = Ordered(volume)
        background = _find_background(volume, voxels)
        size = voxels.size
        every: At = voxels
        kept: At = voxels
        if background:
            size -= background.stop - background.start
            kept = voxels.without(background.start, background.stop)
            rank = background.outside(voxels.count(lambda value: value < background.value))
            every = with_copies(kept, background.value, rank, voxels.size - size)
        air, bright = percentiles(every, voxels.size, [1, 99.5])
        not_head = voxels.count(lambda value: (value - air).astype(np.float32) <= HEAD * (bright - air))
        not_head = background.outside(not_head) if background else not_head  # what became black is not head
        if bright <= air or not_head == size:
            raise UnusableScan("it is constant or almost empty: open it in a viewer, and export or download it again")
        head, *middle = kept(np.array([not_head, (not_head + size - 1) // 2, (not_head + size) // 2]))
        return cls(air, np.median((np.array(middle) - air).astype(np.float32)), head, background)

    def find_head(self, volume: NDArray[Any]) -> NDArray[np.bool_]:
        """Where the head is in the volume, which is not scaled yet."""
        kind = volume.dtype.type
        head: NDArray[np.bool_] = volume >= kind(self.head)
        if self.background and self.background.high >= self.head:
            head &= (volume < kind(self.background.low)) | (volume > kind(self.background.high))
        return head

    def apply(self, voxels: NDArray[np.float32]) -> None:
        """Scale voxels in place, and clip them to 0 and CLIP."""
        if self.background:
            inside = (voxels >= self.background.low) & (voxels <= self.background.high)
            np.copyto(voxels, self.background.value, where=inside)
        single = np.float32(self.air)
        with np.errstate(over="ignore"):  # what is infinite then is clipped
            voxels -= single if single == self.air else self.air
            voxels /= self.median
        np.clip(voxels, 0, CLIP, out=voxels)


def fill_not_finite(volume: NDArray[np.float32]) -> None:
    """Replace NaN and infinities in place by the lowest finite value. Raises UnusableScan if there is none."""
    finite = np.isfinite(volume)
    if not finite.any():
        raise UnusableScan("it has no finite number: open it in a viewer, and export or download it again")
    if not finite.all():
        volume[~finite] = volume[finite].min()


def _find_background(volume: NDArray[Any], voxels: Ordered) -> Background | None:
    """The background, if it was filled with another value than air.

    Such scans were normalised before (0 is in the middle of the range), converted from CT conventions (−1000), or
    padded with white. A background between 0 and the darkest part of the head is not changed.
    """
    corners = volume[:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1]
    corner = np.median(corners.astype(np.float32))
    low, high = percentiles(voxels, voxels.size, [0.5, 99.5])
    tolerance = FILLED_TOLERANCE * (high - low)
    start = voxels.count(lambda value: value - corner < -tolerance)
    stop = voxels.count(lambda value: value - corner <= tolerance)
    if (stop - start) / voxels.size < FILLED or stop - start == voxels.size:
        return None
    darkest, dark = percentiles(voxels.without(start, stop), voxels.size - (stop - start), [0.5, 5])
    if corner <= dark and not corner < 0 <= darkest:
        return None
    first, last = voxels(np.array([start, stop - 1]))
    return Background(start, stop, first, last, np.float32(min(0.0, float(darkest))))
