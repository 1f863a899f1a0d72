"""The scanner: partial volume and blur, coil field, contrast, noise; and how the scan is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_phantoms.shapes import Coordinates, Field, Grid

ORDERS = [("R", "A", "S"), ("L", "P", "S"), ("L", "A", "S"), ("P", "S", "R"), ("A", "I", "L")]


def scan(image: Field, grid: Grid, p: Coordinates, rng: np.random.Generator, stripped: bool) -> Field:
    """``image`` as a scanner shows it, drawn without regard to the grade. The air of a stripped scan stays 0."""
    image = ndimage.gaussian_filter(image, [rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.9), rng.uniform(0.35, 0.8)])
    bias = np.float32(rng.uniform(0.02, 0.18)) * grid.field(110, rng)
    if rng.random() < 0.5:  # surface coils: brighter near the scalp
        r2 = (p[0] / 75) ** 2 + (p[1] / 95) ** 2 + (p[2] / 75) ** 2
        bias += np.float32(rng.uniform(0, 0.25)) * (r2 - np.float32(0.5)).clip(-1, 1)
    image = np.maximum(image, 0) ** np.float32(rng.uniform(0.85, 1.2)) * np.exp(bias)
    noise = np.float32(rng.uniform(0.01, 0.09))
    real, imaginary = (noise * rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    noisy = np.hypot(image + real, imaginary)  # Rician
    return np.where(image > 0.02, noisy, np.float32(0)) if stripped else noisy


class Storage:
    """Puts the box around a head into the full matrix, a little off its middle, in a random storage order."""

    def __init__(self, grid: Grid, rng: np.random.Generator) -> None:
        low = [
            int(np.clip((m - n) // 2 + rng.integers(-6, 7), 0, m - n))
            for m, n in zip(grid.matrix, grid.shape[:2], strict=True)
        ]
        self._inner = tuple(slice(first, first + n) for first, n in zip(low, grid.shape[:2], strict=True))
        self._shape = (*grid.matrix, grid.shape[2])
        turn = ORDERS[int(rng.choice(len(ORDERS), p=[0.35, 0.35, 0.16, 0.07, 0.07]))]
        self._turn = nib.orientations.axcodes2ornt(turn)
        affine = np.diag([*grid.spacing, 1.0])
        affine[:2, 3] = [-s * m / 2 for s, m in zip(grid.spacing, grid.matrix, strict=False)]
        affine[2, 3] = grid.axes[2][0]
        self.affine = affine @ nib.orientations.inv_ornt_aff(self._turn, self._shape)

    def image(self, image: Field, rng: np.random.Generator) -> NDArray[np.int16]:
        """A scan [i, j, k] in random units."""
        full = np.zeros(self._shape, np.float32)
        full[self._inner] = image
        air = float(np.median(image[:3]))
        if air > 0:  # the air outside the box is as noisy as the air in it; the median of a Rayleigh variable is 1.18 σ
            outside = np.ones(self._shape[:2], bool)
            outside[self._inner] = False
            full[outside] = rng.rayleigh(air / 1.18, (int(outside.sum()), self._shape[2]))
        units = float(np.exp(rng.uniform(np.log(60), np.log(900))))
        return self._turned(np.clip(full * units, 0, 32767).astype(np.int16))

    def mask(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        full = np.zeros(self._shape, np.uint8)
        full[self._inner] = labels
        return self._turned(full)

    def _turned(self, voxels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(nib.orientations.apply_orientation(voxels, self._turn))
