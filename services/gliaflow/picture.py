"""The picture of an answer that a notebook shows."""

from __future__ import annotations

import io
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from gliaflow_pages.slices import Slice, slice_pictures
from gliaflow_preprocessor.nifti import read_nifti
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gliaflow.answer import Answer

DPI = 160
LINE_PIXELS = 21
LINE_LETTERS = 38


def draw(answer: Answer) -> bytes:
    """A PNG of the slice with most tumour: the scan, the mask's outline, R and L, and the answer below it.

    If the scan's file is not at hand, the outline is drawn on black. If there is no tumour, the middle slice is drawn.

    Raises
    ------
    ModuleNotFoundError: matplotlib is not installed.
    """
    mask = nib.as_closest_canonical(answer.mask)
    found = np.asarray(mask.dataobj) > 0
    scan = _scan(answer, mask.shape)
    area = found.sum(axis=(0, 1))
    z = int(area.argmax()) if area.any() else found.shape[2] // 2
    image = np.zeros(found.shape[:2], np.float32) if scan is None else scan[:, :, z]
    spacing = mask.header.get_zooms()
    nothing = np.zeros_like(found[:, :, z])
    (picture,) = slice_pictures([Slice(image, nothing, found[:, :, z], (float(spacing[0]), float(spacing[1])))])
    volume = f"{answer.tumour_ml:.1f} ml of tumour" if area.any() else "no tumour found"
    grade = f"{answer.grade}, P(HGG) {answer.p_hgg:.3f}" if answer.grade else "no grade"
    lines = [answer.scan, f"{grade}, {volume}"]
    lines.append(f"slice {z + 1} of {found.shape[2]}" + ("" if scan is not None else ", without the scan's image"))
    return _with_text(picture.data, [*lines, *answer.warnings])


def _scan(answer: Answer, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """The scan's voxels in canonical axes; None if its file is not at hand, or no longer the one that was sent."""
    item = answer._input
    if item is None or item.uri:
        return None
    try:
        data = item.volume.read() if item.volume is not None else item.path.read_bytes()
        voxels, affine = read_nifti(data, item.channel)
    except (OSError, ValueError):
        return None
    volume: NDArray[np.float32] = np.asarray(
        nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float32), affine)).dataobj
    )
    return volume if volume.shape == shape else None


def _with_text(png: bytes, lines: list[str]) -> bytes:
    """The picture with lines of text below it."""
    from gliaflow_pages.drawing import drawing, to_png
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    pixels: Any = imread(io.BytesIO(png))
    height, width = pixels.shape[:2]
    lines = [part for line in lines for part in wrap(line, LINE_LETTERS)]
    room = LINE_PIXELS * len(lines) + 16
    with drawing():
        figure = Figure(figsize=(width / DPI, (height + room) / DPI), dpi=DPI, facecolor="black")
        figure.figimage(pixels, 0, room)
        figure.text(0.5, 8 / (height + room), "\n".join(lines), color="white", ha="center", va="bottom", fontsize=7)
        return to_png(figure, dpi=DPI).data
