"""Feature maps as grey pixels: of a slice of a scan at a tap, and of synthetic features beside real ones."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gliaflow_pages.slices import RESPONSE, upright
from gliaflow_runtime.errors import UsageError
from numpy.typing import NDArray

from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan

COUNT, MOST = 25, 64  # channels of a picture: 5 x 5, as in Fig. 8 of the paper
WHITE = 99.5  # the percentile of a channel's values that is drawn white


@dataclass(frozen=True)
class Scale:
    """The channels that are drawn, the strongest first, and the value that is drawn white in each of them."""

    channels: NDArray[np.intp]
    white: NDArray[np.float32]

    @classmethod
    def of(cls, features: NDArray[Any], count: int) -> Scale:
        """The channels with the highest mean over samples [n, C, H, W]. Those that hardly respond are left out."""
        values = np.nan_to_num(features.astype(np.float32))
        strongest = np.argsort(-values.mean(axis=(0, 2, 3)), kind="stable")[:count]
        white = np.percentile(values[:, strongest], WHITE, axis=(0, 2, 3)).astype(np.float32)
        responds = white > RESPONSE * white.max()
        return cls(strongest[responds], white[responds]) if responds.any() else cls(strongest, white)

    def first(self, count: int) -> Scale:
        """The first ``count`` channels."""
        return Scale(self.channels[:count], self.white[:count])

    def followed_by(self, other: Scale, count: int) -> Scale:
        """These channels, and then those that are only in ``other``; ``count`` in all, at most."""
        new = ~np.isin(other.channels, self.channels)
        channels = np.concatenate([self.channels, other.channels[new]])
        return Scale(channels, np.concatenate([self.white, other.white[new]])).first(count)

    def draw(self, sample: NDArray[Any], tap: str, slice_number: int | None = None) -> dict[str, Any]:
        """The maps of a sample [C, H, W], upright, as the API gives them. Values above white are white."""
        maps = np.nan_to_num(sample[self.channels].astype(np.float32))
        grey = np.clip(maps / np.where(self.white > 0, self.white, 1)[:, None, None], 0, 1)
        pixels = upright(np.rint(255 * grey).astype(np.uint8))
        return {
            "tap": tap,
            "slice": slice_number,
            "channels": [int(channel) for channel in self.channels],
            "height": pixels.shape[1],
            "width": pixels.shape[2],
            "white": [float(white) for white in self.white],
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
        }


@dataclass(frozen=True)
class MapsRequest:
    """Which maps of a scan: ``tap`` (empty: the classifier's), ``slice`` (None: the scan's fullest) and ``count``."""

    tap: str = ""
    slice: int | None = None
    count: int = COUNT

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise UsageError(f"count: {self.count} is not from 1 to {MOST}")


def scan_maps(networks: Networks, store: ScanStore, scan: StoredScan, request: MapsRequest) -> dict[str, Any]:
    """The feature maps of one slice of a scan, not cropped to the tumour.

    Raises
    ------
    UsageError: there are none. The text says why.
    """
    tap = request.tap or networks.tap
    if tap not in networks.taps:
        raise UsageError(f"tap: {tap[:40]!r} is not one of {', '.join(networks.taps)}")
    slices = networks.slices(store, scan)
    geometry = slices.geometry
    numbers = geometry.slices
    number = request.slice if request.slice is not None else _telling(scan, numbers)
    last = geometry.shape[geometry.orientation[::2].index(2)] - 1  # of canonical z
    if not 0 <= number <= last:
        raise UsageError(f"slice: {number} is not one of this scan's, 0 to {last}")
    if number not in numbers:
        raise UsageError(
            f"slice: {number} shows no head, so the networks do not see it; they see {numbers[0]} to {numbers[-1]}"
        )
    features = networks.features(slices, np.array([numbers.index(number)]), tap, cropped=False)
    return Scale.of(features, request.count).draw(features[0], tap, number)


def _telling(scan: StoredScan, numbers: Sequence[int]) -> int:
    """The slice that says most for the scan's grade; the middle one if it has none."""
    return strongest_slice(scan, scan.grade or "") if scan.slice_p_hgg else numbers[len(numbers) // 2]


def strongest_slice(scan: StoredScan, grade: str) -> int:
    """The slice with tumour that says most for a grade."""
    return max(scan.slice_p_hgg, key=lambda each: each[1] if grade == "HGG" else -each[1])[0]
