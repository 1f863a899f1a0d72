"""Writes ``icbm152.npz`` from the maps that nilearn 0.14.1 contains.

pip download --no-deps nilearn==0.14.1; unzip nilearn-*.whl
python -m gliaflow_phantoms.make_atlas nilearn/datasets/data
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_phantoms.shapes import Field

MM = 1.5  # as fine as the shipped bundle's pixels; the average is not sharper
LEVELS = 15


def main(folder: Path) -> None:
    images = {
        kind: nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz") for kind in ("t1", "gm", "wm")
    }
    t1, grey, white = (image.get_fdata(dtype=np.float32) for image in images.values())
    box = tuple(_whole_steps(np.unique(voxels), size) for voxels, size in zip(np.nonzero(t1), t1.shape, strict=True))

    def coarse(volume: NDArray[Any]) -> Field:
        smooth = ndimage.gaussian_filter(volume[box], 0.35 * MM)
        half = ndimage.zoom(smooth, 1 / MM, order=1, grid_mode=True, mode="nearest")
        return np.asarray(half[: len(half) // 2], np.float32)

    corner = images["t1"].affine[:3, 3] + [each.start for each in box]
    np.savez_compressed(
        Path(__file__).with_name("icbm152.npz"),
        grey=np.round(coarse(grey / 255) * LEVELS).astype(np.uint8),
        white=np.round(coarse(white / 255) * LEVELS).astype(np.uint8),
        brain=np.packbits(coarse((t1 > 0).astype(np.float32)) > 0.5),
        origin=corner + (MM - 1) / 2,  # the middle of the first voxel
        mm=MM,
        levels=LEVELS,
    )


def _whole_steps(inside: NDArray[np.int64], size: int) -> slice:
    """The voxels of 1 mm along an axis, around ``inside``: a multiple of 3, which is a whole number of MM."""
    first, beyond = int(inside[0]), int(inside[-1]) + 1
    missing = -(beyond - first) % 3  # symmetric along the first axis, where an odd number of voxels is missing 0 or 2
    first -= missing // 2
    if first < 0 or (end := first + beyond - int(inside[0]) + missing) > size:
        raise ValueError("the map ends too close to the brain")
    return slice(first, end)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
