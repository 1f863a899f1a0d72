"""The average brain that phantoms are made of: maps of grey and white matter, and distances to their surfaces.

The maps are those of the ICBM 152 (symmetric, 2009a; Fonov et al. 2011), an average of 152 people, at 1.5 mm in 16
steps. ``make_atlas`` wrote ``icbm152.npz`` from them; ``icbm152.txt`` has their copyright notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_phantoms.shapes import Coordinates, Field

Name = Literal["grey", "white", "csf", "brain", "skull", "ventricle"]
SHIFT = (0.0, -17.0, 5.0)  # from the head's own coordinates to those of the ICBM 152, mm
MARGIN = 14  # voxels around the brain
TOGETHER = 2**14  # points at a time: larger arrays leave the processor's cache
BRIDGED_MM = 12  # the inner table of the skull bridges clefts of up to twice this width


@dataclass(frozen=True)
class Atlas:
    """``maps`` [x, y, z] at ``mm`` spacing; the first voxel is at ``origin`` mm.

    ``grey``, ``white`` and ``csf`` are shares of a voxel. ``brain``, ``skull`` (its inside) and ``ventricle`` are
    signed distances in mm, negative inside.
    """

    maps: dict[Name, Field]
    origin: NDArray[np.float64]
    mm: float

    def at(self, p: Coordinates, *names: Name) -> list[Field]:
        """These maps at points in the head's own coordinates (mm): trilinear, and the value at the edge beyond it."""
        _, rows, planes = shape = self.maps["grey"].shape
        maps = np.stack([self.maps[name].ravel() for name in names], axis=-1)
        points = [axis.ravel() for axis in np.broadcast_arrays(*p)]
        out = np.empty((len(names), points[0].size), np.float32)
        for start in range(0, out.shape[1], TOGETHER):
            some = slice(start, start + TOGETHER)
            first, share = [], []
            for axis, point in enumerate(points):
                index = (point[some] + np.float32(SHIFT[axis] - self.origin[axis])) * np.float32(1 / self.mm)
                np.clip(index, 0, shape[axis] - 1.001, out=index)
                first.append(index.astype(np.int32))
                share.append((index - first[axis])[:, None])
            corner = (first[0] * rows + first[1]) * planes + first[2]
            values = [maps[corner + (x * rows + y) * planes + z] for z in (0, 1) for y in (0, 1) for x in (0, 1)]
            for each in share[::-1]:  # along z, then y, then x
                half = len(values) // 2
                values = [_between(low, high, each) for low, high in zip(values[:half], values[half:], strict=True)]
            out[:, some] = values[0].T
        return [each.reshape(p[0].shape) for each in out]


@cache
def atlas() -> Atlas:
    """The atlas, read once in a process."""
    with np.load(Path(__file__).with_name("icbm152.npz"), allow_pickle=False) as file:
        mm, levels = float(file["mm"]), float(file["levels"])
        filled = np.unpackbits(file["brain"], count=file["grey"].size).reshape(file["grey"].shape)
        halves = [file["grey"] / np.float32(levels), file["white"] / np.float32(levels), filled > 0]
        origin = file["origin"] - MARGIN * mm
    # The two sides are the same, so that the file has the left one.
    grey, white, inside = (np.pad(np.concatenate([half, half[::-1]]), MARGIN) for half in halves)
    csf = np.where(inside, 1 - grey - white, 0).clip(0, 1).astype(np.float32)
    brain = _distance(inside, mm)
    bridged = _distance(brain < BRIDGED_MM, mm) < -BRIDGED_MM
    parts, _ = ndimage.label((csf > 0.55) & (brain < -14))
    ventricles = parts == np.bincount(parts.ravel())[1:].argmax() + 1  # the largest part
    maps: dict[Name, Field] = {
        "grey": grey,
        "white": white,
        "csf": csf,
        "brain": brain,
        "skull": _distance(bridged, mm),
        "ventricle": _distance(ventricles, mm),
    }
    return Atlas(maps, origin, mm)


def _distance(mask: NDArray[np.bool_], mm: float) -> Field:
    """The signed distance of each voxel to the surface of ``mask``, mm, negative inside."""
    signed = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    return np.asarray(mm * signed, np.float32)


def _between(low: Field, high: Field, share: Field) -> Field:
    """``low`` + ``share`` × (``high`` − ``low``), in the memory of ``high``."""
    high -= low
    high *= share
    high += low
    return high
