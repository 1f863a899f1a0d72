"""Augmentation of a slice and its mask: the paper's Table 1, each by itself (``pipeline`` composes them).

A geometric augmentation draws a *coordinate map*: for each pixel of the result, where in the input it comes from.
A run of them composes into one map and the image is resampled once, so that seven augmentations blur it no more
than one. Coordinates are (row, column) in pixels, [2, …] float64; the centre of the image is the fixed point of
rotation, shear, zoom and flips.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy import ndimage

from gliaflow_plugins.base import Options

Image = NDArray[np.float32]
Mask = NDArray[Any]
Points = NDArray[np.float64]
CoordinateMap = Callable[[Points], Points]
Shape = tuple[int, int]


@runtime_checkable
class Augmentation(Protocol):
    """An augmentation: chosen by ``name``, set by ``options`` (a pydantic model class).

    Called with image [H, W] float32, mask [H, W], an ``rng`` that is its only source of chance, and an instance
    of ``options``; returns a new image and mask of the same shapes and dtypes and leaves its arguments alone.
    One that moves pixels derives from ``Geometric`` instead of being called.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator, options: Any, /) -> tuple[Image, Mask]: ...


class Geometric(ABC):
    """An augmentation that moves pixels: it draws a coordinate map, and the pipeline composes and resamples."""

    name: str
    options: type[BaseModel]

    @abstractmethod
    def draw(self, shape: Shape, rng: np.random.Generator, options: Any) -> CoordinateMap:
        """A map from the result's coordinates to the input's, for images of ``shape`` [H, W]."""

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator, options: Any, /) -> tuple[Image, Mask]:
        """This one alone, resampled by itself."""
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
    """The map p ↦ p + d(p), with d bilinear between ``nodes`` [2, h, w] (pixels) that lie ``spacing`` pixels apart."""

    nodes: NDArray[np.float64]
    spacing: int

    def __call__(self, points: Points) -> Points:
        # Node j is the middle of the pixels it stands for: j·spacing … (j+1)·spacing − 1.
        at = (points + 0.5) / self.spacing - 0.5
        moved: Points = np.stack([ndimage.map_coordinates(axis, at, order=1, mode="nearest") for axis in self.nodes])
        return points + moved


def resample(image: Image, mask: Mask, maps: Sequence[CoordinateMap]) -> tuple[Image, Mask]:
    """Image (bilinear) and mask (nearest) through ``maps``, in one resampling.

    ``maps`` are in the order in which the augmentations act. What comes from outside takes the background's value:
    the image's minimum (after normalisation it is not 0), and 0 in the mask.
    """
    # The last augmentation's result is the grid, so its map is the first to be asked where a pixel came from.
    path = _merge_affines(list(reversed(maps)))
    fill = float(image.min())
    if len(path) == 1 and isinstance(path[0], Affine):
        moved = {"matrix": path[0].matrix, "offset": path[0].offset, "mode": "grid-constant"}
        return (
            ndimage.affine_transform(image, order=1, cval=fill, **moved),
            ndimage.affine_transform(mask, order=0, cval=0, **moved),
        )
    grid = np.indices(image.shape, dtype=np.float64)
    points = reduce(lambda at, step: step(at), path, grid)
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


class FlipOptions(Options):
    probability: float = Field(default=0.5, ge=0, le=1, description="of a slice to be mirrored")


class HorizontalFlip(Geometric):
    """Left and right change places, with some probability."""

    name = "hflip"
    options = FlipOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: FlipOptions) -> Affine:
        return Affine.about_centre(shape, [[1, 0], [0, -1 if rng.random() < options.probability else 1]])


class VerticalFlip(Geometric):
    """Top and bottom change places, with some probability."""

    name = "vflip"
    options = FlipOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: FlipOptions) -> Affine:
        return Affine.about_centre(shape, [[-1 if rng.random() < options.probability else 1, 0], [0, 1]])


class ElasticOptions(Options):
    alpha: float = Field(default=720, ge=0, description="gain of the blurred noise (Simard's α)")
    sigma: float = Field(default=24, gt=0, description="standard deviation of the Gaussian blur, pixels")


class Elastic(Geometric):
    """Elastic distortion as Simard et al. (2003) have it: uniform noise in [−1, 1] a pixel, blurred, times α.

    With α 720 and σ 24 pixels move by about 4.6 px RMS along each axis, less at the borders. Rows and columns have
    noise of their own (the reference code uses one field for both, so that its motion is diagonal only).
    """

    name = "elastic"
    options = ElasticOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ElasticOptions) -> Displacement:
        # A blur of σ leaves nothing finer than σ/4, so noise and blur live on a grid that coarse, at a hundredth
        # of the price. A node is the mean of spacing² uniform values: nearly normal, std 1/√3 ÷ spacing.
        spacing = max(1, round(options.sigma / 4))
        nodes = (2, *(-(-side // spacing) for side in shape))
        noise = rng.standard_normal(nodes) / (np.sqrt(3) * spacing)
        sigma = options.sigma / spacing
        blurred = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="constant")
        return Displacement(options.alpha * blurred, spacing)


class RotationOptions(Options):
    degrees: float = Field(default=20, ge=0, le=180, description="at most, either way")


class Rotation(Geometric):
    """Rotation about the centre by a uniform angle."""

    name = "rotation"
    options = RotationOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: RotationOptions) -> Affine:
        angle = np.deg2rad(rng.uniform(-options.degrees, options.degrees))
        return Affine.about_centre(shape, [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


class ShiftOptions(Options):
    rows: float = Field(default=0.1, ge=0, le=1, description="at most, either way, as a share of the height")
    columns: float = Field(default=0.1, ge=0, le=1, description="at most, either way, as a share of the width")


class Shift(Geometric):
    """Translation, uniform along each axis."""

    name = "shift"
    options = ShiftOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ShiftOptions) -> Affine:
        most = np.array([options.rows, options.columns]) * shape
        return Affine.about_centre(shape, [[1, 0], [0, 1]], rng.uniform(-most, most).tolist())


class ShearOptions(Options):
    columns: float = Field(default=0.05, ge=0, le=1, description="columns moved per row, at most, either way")


class Shear(Geometric):
    """Horizontal shear: each row slides by a share of its distance from the middle row.

    The paper's 5 % is the slope (the tangent of the angle). The reference code means radians: at 0.05 the two
    differ by less than 0.1 %, a hundredth of a pixel.
    """

    name = "shear"
    options = ShearOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ShearOptions) -> Affine:
        return Affine.about_centre(shape, [[1, 0], [rng.uniform(-options.columns, options.columns), 1]])


class ZoomOptions(Options):
    fraction: float = Field(default=0.1, ge=0, lt=1, description="at most, in or out")


class Zoom(Geometric):
    """Magnification about the centre by a uniform factor in 1 ± ``fraction``, the same along both axes."""

    name = "zoom"
    options = ZoomOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ZoomOptions) -> Affine:
        inverse = 1 / rng.uniform(1 - options.fraction, 1 + options.fraction)
        return Affine.about_centre(shape, [[inverse, 0], [0, inverse]])


def shape_of(image: Image) -> Shape:
    """[H, W], as two ints for the type checker."""
    height, width = image.shape
    return height, width
