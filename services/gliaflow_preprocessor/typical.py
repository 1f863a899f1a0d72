"""Does a scan look like those that the bundle was trained on? A warning for noise, CT, T1 or a label map.

Six statistics of the slices, each with a limit in the bundle's manifest. All are measured in the middle slices, where
every scan of a head shows brain, relative to the median brightness of the inside of the head. A tumour, a bias field,
the thickness of slices, scalp or its absence hardly change them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gliaflow_runtime.bundle.manifest import InputSpec, Statistic
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_preprocessor.ordered import Ordered, percentiles

MEANING: dict[Statistic, str] = {
    "filled": "the head's share of the image",
    "noise": "the difference between neighbouring pixels, relative to the contrast of tissues",
    "flat": "the share of neighbouring pixels that are equal",
    "dark_cortex": "how much darker the cortex is than the tissue below it, as on T1,",
    "bright_fluid": "the brightness of the darkest 2 % of pixels inside the head",
    "bright_lines": "the contrast of bright details over that of dark details",
}
MIDDLE = (0.3, 0.8)  # of the slices, from below
SLICES = 8
AIR = 0.15  # of the head's median
INSIDE_MM, INSIDE = 37.5, 0.9  # a pixel is inside a head if so much of the square around it is head
LEAST_INSIDE = 0.01  # of the pixels; with less, nothing can be measured
LEAST_PIXELS = 50
FLUID = 0.7  # of the median inside
EQUAL = 0.002
BESIDE_MM = (1.5, 4.5)  # from fluid: beyond mixed pixels, about as far as the cortex is thick
AWAY_MM, AROUND_MM = 7.5, 19.5
DETAIL_MM, DETAIL = 19.5, 0.6


def doubt(image: NDArray[Any], spec: InputSpec, limits: Mapping[Statistic, float]) -> list[str]:
    """At most one sentence: how the scan differs from the training scans. ``image``, ``spec``: see ``statistics``."""
    if not limits:
        return []
    values = statistics(image, spec)
    if not values:
        return ["this does not look like a scan that the bundle was trained on: it shows no head; is it FLAIR?"]
    beyond = [
        f"{MEANING[name]} is {values[name]:.3g}, at most {limit:.3g} expected"
        for name, limit in limits.items()
        if values.get(name, limit) > limit
    ]
    if not beyond:
        return []
    return [f"this does not look like a scan that the bundle was trained on ({'; '.join(beyond)}); is it FLAIR?"]


def statistics(image: NDArray[Any], spec: InputSpec) -> dict[str, float]:
    """The statistics of a scan, by the names of ``MEANING``. A larger value is less typical.

    Nothing if no pixel is inside a head; ``dark_cortex`` is missing if there is no dark fluid.

    Parameters
    ----------
    image: the slices [n, rows, columns] of ``prepare`` for ``spec``.
    """
    low, high = int(len(image) * MIDDLE[0]), max(1, int(np.ceil(len(image) * MIDDLE[1])))
    some = image[np.unique(np.linspace(low, high - 1, min(high - low, SLICES)).round().astype(int))]
    half = some.astype(np.float16)  # as in messages

    def brightness(pixels: NDArray[Any]) -> NDArray[np.float32]:
        return pixels.astype(np.float32) * np.float32(spec.std) + np.float32(spec.mean)

    plane = brightness(half)
    head = plane > AIR
    inside = head & (_mean(head, INSIDE_MM, spec) > INSIDE)
    if inside.mean() < LEAST_INSIDE:
        return {}
    pixels = Ordered(half[inside])
    middle = np.median(brightness(pixels(np.array([(pixels.size - 1) // 2, pixels.size // 2]))))
    darkest, lower, upper = percentiles(lambda ranks: brightness(pixels(ranks)) / middle, pixels.size, [2, 25, 75])
    plane /= middle
    step = np.abs(np.diff(plane, axis=1))[inside[:, 1:]]
    detail = np.clip(plane - _mean(plane, DETAIL_MM, spec), -DETAIL, DETAIL)[inside]
    dark, bright = np.percentile(detail, [3, 97])
    values = {
        "filled": head.mean(),
        "noise": np.median(step) / (upper - lower + 1e-4),
        "flat": (step < EQUAL).mean(),
        "bright_fluid": darkest,
        "bright_lines": (bright + 0.01) / (0.01 - dark),
    }
    fluid = plane < FLUID
    mixed, near, far = _spreads(fluid, (*BESIDE_MM, AWAY_MM), spec)
    away = inside & ~far
    share = _mean(away, AROUND_MM, spec)
    beside = inside & near & ~mixed & (share > 0.05)
    if beside.sum() >= LEAST_PIXELS:
        around = _mean(plane * away, AROUND_MM, spec)[beside] / share[beside]
        values["dark_cortex"] = 1 - np.median(plane[beside] / around)
    return {name: float(value) for name, value in values.items()}


def _mean(planes: NDArray[Any], mm: float, spec: InputSpec) -> NDArray[np.float32]:
    """The mean in a square around each pixel."""
    sides = [2 * round(mm / spacing / 2 - 0.5) + 1 for spacing in spec.spacing]
    mean: NDArray[np.float32] = ndimage.uniform_filter(planes.astype(np.float32), (0, *sides))
    return mean


def _spreads(planes: NDArray[np.bool_], distances_mm: Sequence[float], spec: InputSpec) -> list[NDArray[np.bool_]]:
    """For each distance, of ascending ones: the pixels at most that far along rows and columns from one that is set."""
    spread, spreads, reached = planes.copy(), [], [0, 0]
    for mm in distances_mm:
        for axis, spacing in enumerate(spec.spacing):
            pixels = max(1, round(mm / spacing))
            along = np.moveaxis(spread, 1 + axis, 0)
            for _ in range(pixels - reached[axis]):
                before = along.copy(order="K")
                along[1:] |= before[:-1]
                along[:-1] |= before[1:]
            reached[axis] = pixels
        spreads.append(spread.copy())
    return spreads
