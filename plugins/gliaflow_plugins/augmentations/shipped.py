"""The augmentations of the paper's Table 1. All move pixels; ``geometry`` says how their maps compose.

Rows of a slice run to the patient's right, columns to the front (``gliaflow_preprocessor.slices``). The centre of the
image is the fixed point of rotation, shear, zoom and mirrors.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import ndimage

from gliaflow_plugins.augmentations.geometry import Affine, Displacement, Geometric, Shape
from gliaflow_plugins.contracts import Options


class MirrorOptions(Options):
    probability: float = Field(default=0.5, ge=0, le=1, description="probability that the two sides change places")


class _Mirror(Geometric):
    """Turns one axis of the slice round: 0 rows, 1 columns."""

    options = MirrorOptions
    axis: int

    def draw(self, shape: Shape, rng: np.random.Generator, options: MirrorOptions) -> Affine:
        signs = np.ones(2)
        if rng.random() < options.probability:
            signs[self.axis] = -1
        return Affine.about_centre(shape, np.diag(signs).tolist())


class MirrorFrontBack(_Mirror):
    """Front and back change places, with some probability: on a page, the head is upside down."""

    name = "mirror-front-back"
    axis = 1


class MirrorLeftRight(_Mirror):
    """The patient's left and right change places, with some probability."""

    name = "mirror-left-right"
    axis = 0


class ElasticOptions(Options):
    alpha: float = Field(default=720, ge=0, description="gain of the blurred noise (Simard's α)")
    sigma: float = Field(default=24, gt=0, description="standard deviation of the Gaussian blur, pixels")


class Elastic(Geometric):
    """Elastic distortion by Simard et al. (2003): uniform noise in [−1, 1] for each pixel, blurred, times α.

    With α 720 and σ 24 pixels move by about 4.6 px RMS along each axis, less at the borders. Rows and columns have
    separate noise (the reference code uses one field for both, so that its motion is diagonal only).
    """

    name = "elastic"
    options = ElasticOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ElasticOptions) -> Displacement:
        # A blur of σ removes everything finer than σ/4, so noise and blur are computed on a grid that coarse, at a
        # hundredth of the cost. A node is the mean of spacing² uniform values: nearly normal, std 1/√3 ÷ spacing.
        spacing = max(1, round(options.sigma / 4))
        nodes = (2, *(-(-side // spacing) for side in shape))
        noise = rng.standard_normal(nodes) / (np.sqrt(3) * spacing)
        sigma = options.sigma / spacing
        blurred = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="constant")
        return Displacement(options.alpha * blurred, spacing)


class RotationOptions(Options):
    degrees: float = Field(default=20, ge=0, le=180, description="largest angle, in either direction")


class Rotation(Geometric):
    """Rotation about the centre by a uniform angle."""

    name = "rotation"
    options = RotationOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: RotationOptions) -> Affine:
        angle = np.deg2rad(rng.uniform(-options.degrees, options.degrees))
        return Affine.about_centre(shape, [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


class ShiftOptions(Options):
    rows: float = Field(
        default=0.1, ge=0, le=1, description="largest shift to the left or right, as a share of the slice's width"
    )
    columns: float = Field(
        default=0.1, ge=0, le=1, description="largest shift to the front or back, as a share of the slice's height"
    )


class Shift(Geometric):
    """Translation, uniform along each axis."""

    name = "shift"
    options = ShiftOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ShiftOptions) -> Affine:
        most = np.array([options.rows, options.columns]) * shape
        return Affine.about_centre(shape, [[1, 0], [0, 1]], rng.uniform(-most, most).tolist())


class ShearOptions(Options):
    columns: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="largest slide to the front or back, in pixels for each pixel to the right",
    )


class Shear(Geometric):
    """Shear: each row slides to the front or back by a share of its distance from the middle row.

    The left half slides one way, the right half the other.

    The paper's 5 % is the slope (the tangent of the angle). The reference code takes it as radians: at 0.05 the two
    differ by less than 0.1 %, a hundredth of a pixel.
    """

    name = "shear"
    options = ShearOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ShearOptions) -> Affine:
        return Affine.about_centre(shape, [[1, 0], [rng.uniform(-options.columns, options.columns), 1]])


class ZoomOptions(Options):
    fraction: float = Field(default=0.1, ge=0, lt=1, description="largest change of size, in or out")


class Zoom(Geometric):
    """Magnification about the centre by a uniform factor in 1 ± ``fraction``, the same along both axes."""

    name = "zoom"
    options = ZoomOptions

    def draw(self, shape: Shape, rng: np.random.Generator, options: ZoomOptions) -> Affine:
        inverse = 1 / rng.uniform(1 - options.fraction, 1 + options.fraction)
        return Affine.about_centre(shape, [[inverse, 0], [0, inverse]])
