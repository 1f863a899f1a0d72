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
    inside = [np.unique(voxels) for voxels in np.nonzero(t1)]
    box = tuple(slice(where[0], where[-1] + 1) for where in inside)

    def coarse(volume: NDArray[Any]) -> Field:
        smooth = ndimage.gaussian_filter(volume[box], 0.35 * MM)
        half = ndimage.zoom(smooth, 1 / MM, order=1, grid_mode=True, mode="nearest")
        return np.asarray(half[: len(half) // 2 + 1], np.float32)

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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
