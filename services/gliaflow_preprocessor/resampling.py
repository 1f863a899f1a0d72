"""Resampling along one axis, as a sparse matrix: each pixel is a weighted sum of a few voxels.

The weights are those of ``scipy.ndimage``: ``gaussian_filter`` (mode ``reflect``) against aliasing, then
``affine_transform`` (order 1, 0 outside the volume). Both are linear, and work on one axis after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse


def resampling(voxels: int, pixels: int, step: float, origin: float) -> tuple[Any, slice]:
    """The matrix, float32 [pixels, voxels that count] in CSR form, and which of an axis's voxels count.

    Parameters
    ----------
    step: voxels from one pixel to the next. origin: the voxel under pixel 0, which may be outside the volume.
    """
    kernel = _gaussian(max(0.0, (step - 1) / 2))
    mirrored = np.pad(np.arange(voxels), (len(kernel) // 2, len(kernel) // 2 + 1), "symmetric")
    place = (np.arange(pixels) + origin / step) * step
    inside = (place >= 0) & (place <= voxels - 1)
    lower = np.floor(place[inside]).astype(int)
    share = (place[inside] - lower)[:, None]
    weights = (1 - share) * np.append(kernel, 0) + share * np.insert(kernel, 0, 0)
    columns = mirrored[lower[:, None] + np.arange(len(kernel) + 1)]
    taken = slice(int(columns.min()), int(columns.max()) + 1) if columns.size else slice(0, 1)
    ends = np.append(0, (inside * columns.shape[1]).cumsum())
    shape = (pixels, taken.stop - taken.start)
    return sparse.csr_array((weights.astype(np.float32).ravel(), columns.ravel() - taken.start, ends), shape), taken


def _gaussian(sigma: float) -> NDArray[np.float64]:
    """The weights of ``gaussian_filter``; their number is odd."""
    impulse = np.zeros(2 * int(4 * sigma + 0.5) + 1)
    impulse[len(impulse) // 2] = 1
    weights: NDArray[np.float64] = ndimage.gaussian_filter1d(impulse, sigma, mode="constant") if sigma else impulse
    return weights
