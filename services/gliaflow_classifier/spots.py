"""Spots in a mask that are too small to be a tumour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def without_spots(masks: NDArray[np.uint8], pixels: float, share: float = 0.0) -> NDArray[np.uint8]:
    """The masks [n, rows, columns] of a scan's slices without the connected parts that are too small.

    Pixels that touch at a side, an edge or a corner are connected, also those of neighbouring slices.

    Parameters
    ----------
    pixels: a part with fewer is removed.
    share: so is one with less than this share of the pixels of the largest part.
    """
    if (pixels <= 1 and share <= 0) or not masks.any():
        return masks
    outline = np.bitwise_or.reduce(masks, axis=0)
    inside = map(np.flatnonzero, (masks.any(axis=(1, 2)), outline.any(axis=1), outline.any(axis=0)))
    box = tuple(slice(each[0], each[-1] + 1) for each in inside)  # far smaller than all slices
    label, count = ndimage.label(masks[box], structure=np.ones((3, 3, 3)))
    size = np.bincount(label.ravel(), minlength=count + 1)
    size[0] = 0
    large = size >= max(pixels, share * size.max(), 1)
    kept = np.zeros_like(masks)
    kept[box] = large[label]
    return kept
