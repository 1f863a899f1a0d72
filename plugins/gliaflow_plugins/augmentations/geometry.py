"""Coordinate maps. The maps of several augmentations compose into one, so that an image is resampled once.

A map gives, for each pixel of the result, its position in the input: (row, column) in pixels, [2, …] float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy import ndimage

from gliaflow_plugins.contracts import Image, Mask

Points = NDArray[np.float64]
CoordinateMap = Callable[[Points], Points]
Shape = tuple[int, int]


class Geometric(ABC):
    """An augmentation that moves pixels: it draws a coordinate map; the pipeline composes the maps and resamples."""

    name: str
    options: type[BaseModel]

    @abstractmethod
    def draw(self, shape: Shape, rng: np.random.Generator, options: Any) -> CoordinateMap:
        """Draw a map from the result's coordinates to the input's, for images of ``shape`` [H, W]."""

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator, options: Any, /) -> tuple[Image, Mask]:
        """Apply this augmentation alone."""
        return resample(image, mask, [self.draw(shape_of(image), rng, options)])


@dataclass(frozen=True)
class Affine:
    """The map p ↦ matrix·p + offset; ``matrix`` [2, 2] and ``offset`` [2] float64."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    @classmethod
    def about_centre(cls, shape: Shape, matrix: Sequence[Sequence[float]], shift: Sequence[float] = (0, 0)) -> Affine:
        """``matrix`` about the centre of an image of ``shape``, then ``shift`` pixels."""
        linear = np.asarray(matrix, dtype=np.float64)
        centre = (np.asarray(shape) - 1) / 2
        return cls(linear, centre - linear @ centre + np.asarray(shift))

    def __call__(self, points: Points) -> Points:
        moved: Points = np.tensordot(self.matrix, points, axes=1)
        moved += self.offset.reshape(2, *[1] * (points.ndim - 1))
        return moved

    def after(self, first: Affine) -> Affine:
        """The one map that does ``first`` and then this."""
        return Affine(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)


@dataclass(frozen=True)
class Displacement:
    """The map p ↦ p + d(p), with d bilinear between ``nodes`` [2, h, w] (in pixels), ``spacing`` pixels apart."""

    nodes: NDArray[np.float64]
    spacing: int

    def __call__(self, points: Points) -> Points:
        # Node j is in the middle of its pixels, j·spacing … (j+1)·spacing − 1.
        at = (points + 0.5) / self.spacing - 0.5
        moved: Points = np.stack([ndimage.map_coordinates(axis, at, order=1, mode="nearest") for axis in self.nodes])
        return points + moved


def resample(image: Image, mask: Mask, maps: Sequence[CoordinateMap]) -> tuple[Image, Mask]:
    """Image (bilinear) and mask (nearest) through ``maps``, in one resampling.

    ``maps`` are in the order in which the augmentations act. Pixels from outside take the background's value: the
    image's minimum (after normalisation it is not 0), and 0 in the mask.
    """
    # The result's grid is the last augmentation's, so its map is applied first.
    path = _merge_affines(list(reversed(maps)))
    fill = float(image.min())
    if len(path) == 1 and isinstance(path[0], Affine):
        moved = {"matrix": path[0].matrix, "offset": path[0].offset, "mode": "grid-constant"}
        return (
            ndimage.affine_transform(image, order=1, cval=fill, **moved),
            ndimage.affine_transform(mask, order=0, cval=0, **moved),
        )
    grid = np.indices(image.shape, dtype=np.float64)
    points = reduce(lambda positions, step: step(positions), path, grid)
    return (
        ndimage.map_coordinates(image, points, order=1, mode="grid-constant", cval=fill),
        ndimage.map_coordinates(mask, points, order=0, mode="grid-constant", cval=0),
    )


def _merge_affines(path: list[CoordinateMap]) -> list[CoordinateMap]:
    merged: list[CoordinateMap] = []
    for step in path:
        if merged and isinstance(step, Affine) and isinstance(merged[-1], Affine):
            merged[-1] = step.after(merged[-1])
        else:
            merged.append(step)
    return merged


def shape_of(image: Image) -> Shape:
    """[H, W], as two ints for the type checker."""
    height, width = image.shape
    return height, width
