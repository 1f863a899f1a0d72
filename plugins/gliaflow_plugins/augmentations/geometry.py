"""Coordinate maps. The maps of several augmentations compose into one, so that an image is resampled once.

A map gives, for each pixel of the result, its position in the input: (row, column) in pixels, [2, …] float64.
"""

from __future__ import annotations

import math
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
        moved: Points = self.matrix @ points.reshape(2, -1)
        moved += self.offset[:, None]
        return moved.reshape(points.shape)

    def of_pixels(self, shape: Shape) -> NDArray[np.float32]:
        """The map of each pixel of an image of ``shape`` [2, H, W]; exact where it leads to whole pixels."""
        rows, columns = (np.arange(side) for side in shape)
        down = (self.matrix[:, :1] * rows + self.offset[:, None]).astype(np.float32)
        across = (self.matrix[:, 1:] * columns).astype(np.float32)
        return down[:, :, None] + across[:, None, :]

    def after(self, first: Affine) -> Affine:
        """The one map that does ``first`` and then this."""
        return Affine(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)


@dataclass(frozen=True)
class Displacement:
    """The map p ↦ p + d(p), with d bilinear between ``nodes`` [2, h, w] (in pixels), ``spacing`` pixels apart.

    d should be smooth, so that neighbouring nodes differ by less than ``spacing``: ``resample`` follows d at points as
    far apart as the nodes, not at each pixel. For a rough field, return a map of your own.
    """

    nodes: NDArray[np.float64]
    spacing: int

    def __call__(self, points: Points) -> Points:
        # Node j is in the middle of its pixels, j·spacing … (j+1)·spacing − 1.
        at = (points + 0.5) / self.spacing - 0.5
        moved: Points = np.stack([ndimage.map_coordinates(axis, at, order=1, mode="nearest") for axis in self.nodes])
        moved += points
        return moved


def resample(image: Image, mask: Mask, maps: Sequence[CoordinateMap]) -> tuple[Image, Mask]:
    """Image (bilinear) and mask (nearest) through ``maps``, in one resampling.

    ``maps`` are in the order in which the augmentations act. Pixels from outside take the background's value: the
    image's minimum (after normalisation it is not 0), and 0 in the mask.

    Raises
    ------
    ValueError: a map leads to a position that is not finite, or an affine map after a displacement is 0.
    """
    # The result's grid is the last augmentation's, so its map is applied first.
    with np.errstate(over="ignore", invalid="ignore"):  # the check below says it in one sentence
        at = _positions(shape_of(image), list(reversed(maps)))
    if not np.isfinite(at).all():
        raise ValueError("a map leads to positions that are not finite")
    return _sampled(image, mask, at)


def _sampled(image: Image, mask: Mask, at: NDArray[np.float32]) -> tuple[Image, Mask]:
    """Image and mask at the positions ``at`` [2, H, W], which it overwrites."""
    # Both get a border of background, to which positions from outside are moved: no pixel needs a check.
    height, width = image.shape
    stride = width + 3
    padded = np.full((height + 3, stride), image.min(), image.dtype)
    padded[1:-2, 1:-2] = image
    padded_mask = np.zeros(padded.shape, mask.dtype)
    padded_mask[1:-2, 1:-2] = mask
    at += 1
    for along, side in zip(at, (height, width), strict=True):
        np.clip(along, 0, side + 1, out=along)

    def place(pixels: NDArray[np.float32]) -> NDArray[np.intp]:
        rows, columns = pixels.astype(np.int32)  # the conversion to int32 is six times faster than that to intp
        places: NDArray[np.intp] = (rows * stride + columns).astype(np.intp)
        return places

    nearest = padded_mask.ravel().take(place(at + np.float32(0.5)), mode="wrap")
    corner = np.floor(at)
    at -= corner
    rows, columns = at
    here = place(corner)
    # "wrap" spares a second pass over the indices, which are all within the border
    row, right, below, below_right = (
        padded.ravel()[step:].take(here, mode="wrap") for step in (0, 1, stride, stride + 1)
    )
    row += (right - row) * columns
    below += (below_right - below) * columns
    row += (below - row) * rows
    return row, nearest


def _positions(shape: Shape, path: Sequence[CoordinateMap]) -> NDArray[np.float32]:
    """Where each pixel of the result [2, H, W] lies in the input, through ``path``.

    Affine maps, and one displacement among them, are the common case. Such a path bends little between the nodes of the
    displacement: it is followed on a grid as coarse as theirs, and interpolated. Any other path is followed for each
    pixel.
    """
    straight, displacement, spacing = Affine(np.eye(2), np.zeros(2)), None, 0.0
    for step in path:
        if isinstance(step, Displacement) and displacement is None:
            displacement = step
            # Where the maps so far make the image smaller, its pixels are further apart in the displacement's frame.
            scale = math.sqrt(np.square(straight.matrix).sum() / 2)
            if scale == 0:
                raise ValueError("the matrix of an affine map is 0: it leads all pixels to one position")
            spacing = step.spacing / scale
        elif isinstance(step, Affine):
            straight = step.after(straight)
        else:
            return _follow(path, np.indices(shape, dtype=np.float64)).astype(np.float32)
    if displacement is None:
        return straight.of_pixels(shape)
    counts = [math.ceil((side - 1) / spacing) + 1 if spacing > 2 else side for side in shape]
    along = [np.linspace(0, side - 1, count) for side, count in zip(shape, counts, strict=True)]
    nodes = _follow(path, np.stack(np.meshgrid(*along, indexing="ij"))).astype(np.float32)
    return _stretch(_stretch(nodes, 2, shape[1]), 1, shape[0])


def _follow(path: Sequence[CoordinateMap], points: Points) -> Points:
    return reduce(lambda positions, step: step(positions), path, points)


def _stretch(values: NDArray[np.float32], axis: int, side: int) -> NDArray[np.float32]:
    """``values`` interpolated linearly to ``side`` of them along ``axis``; the first and last stay."""
    last = values.shape[axis] - 1
    at = np.linspace(0, last, side, dtype=np.float32)
    low = np.minimum(at.astype(np.intp), max(0, last - 1))
    part = (at - low).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    start = values.take(low, axis)
    rise: NDArray[np.float32] = values.take(np.minimum(low + 1, last), axis)
    rise -= start
    rise *= part
    rise += start
    return rise


def shape_of(image: Image) -> Shape:
    """[H, W], as two ints for the type checker."""
    height, width = image.shape
    return height, width
