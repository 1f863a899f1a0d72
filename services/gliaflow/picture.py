"""The picture of an answer that a notebook shows, and the scan's voxels beside its mask."""

from __future__ import annotations

import io
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from gliaflow_pages.slices import Slice, slice_pictures
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_plugins.regular_files import open_regular
from gliaflow_preprocessor.intensities import fit_float32
from gliaflow_preprocessor.nifti import read_nifti
from numpy.typing import NDArray

from gliaflow.scans import Input

if TYPE_CHECKING:
    from gliaflow.answer import Answer

DPI = 160
LINE_PIXELS = 21
LINE_LETTERS = 38


@dataclass(frozen=True)
class MaskedScan:
    """A scan and its mask in canonical axes [x, y, z].

    Parameters
    ----------
    voxels: None if the scan's file is not available, or no longer the one that was sent.
    mask: bool. spacing: in mm, along x and y.
    """

    voxels: NDArray[np.float32] | None
    mask: NDArray[np.bool_]
    spacing: tuple[float, float]

    @classmethod
    def of(cls, item: Input | None, mask: Any | None) -> MaskedScan | None:
        """The scan of ``item`` with the nibabel image ``mask``, which is on the scan's own grid.

        None if neither the scan nor a mask is there.
        """
        scan = None if item is None else _read(item)
        if scan is not None and mask is not None and scan[0].shape != mask.shape:
            scan = None
        if scan is None and mask is None:
            return None
        affine = scan[1] if scan is not None else mask.affine  # type: ignore[union-attr]
        shape = scan[0].shape if scan is not None else mask.shape  # type: ignore[union-attr]
        tumour = np.zeros(shape, np.uint8) if mask is None else (np.asarray(mask.dataobj) > 0).astype(np.uint8)
        image = nib.as_closest_canonical(nib.Nifti1Image(tumour, affine))
        return cls(
            voxels=None if scan is None else _canonical(fit_float32(scan[0]).astype(np.float32), affine),
            mask=np.asarray(image.dataobj) > 0,
            spacing=(float(image.header.get_zooms()[0]), float(image.header.get_zooms()[1])),
        )

    def slice(self, z: int, truth: NDArray[Any] | None = None) -> Slice:
        """The axial slice ``z``, on black if there are no voxels."""
        mask = self.mask[:, :, z]
        image = np.zeros(mask.shape, np.float32) if self.voxels is None else self.voxels[:, :, z]
        return Slice(image, np.zeros_like(mask) if truth is None else truth[:, :, z], mask, self.spacing)

    def fullest(self, truth: NDArray[Any] | None = None) -> int:
        """The slice with most tumour in the mask or in ``truth``; the middle one if there is no tumour."""
        area = self.mask.sum(axis=(0, 1)) + (0 if truth is None else (truth > 0).sum(axis=(0, 1)))
        return int(area.argmax()) if area.any() else self.mask.shape[2] // 2


def draw(answer: Answer) -> bytes:
    """A PNG of the slice with most tumour: the scan, the mask's outline, R and L, and the answer below it.

    If the scan's file is not available, the outline is drawn on black. Without tumour, the middle slice is drawn.

    Raises
    ------
    ModuleNotFoundError: matplotlib is not installed.
    """
    scan = MaskedScan.of(answer._input, answer.mask)
    assert scan is not None, "an answer with a mask"
    z = scan.fullest()
    (picture,) = slice_pictures([scan.slice(z)])
    volume = f"{answer.tumour_ml:.1f} ml of tumour"
    graded = f"{answer.grade}, P(HGG) {answer.p_hgg:.3f}, {volume}" if answer.status == "ok" else "no tumour, no grade"
    place = f"slice {z} (0 to {scan.mask.shape[2] - 1})" + (
        "" if scan.voxels is not None else ", without the scan's image"
    )
    return _with_text(picture.data, [answer.scan, graded, place, *answer.warnings])


def _read(item: Input) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """The scan's voxels in stored order, and its affine; None if it cannot be read now."""
    try:
        if item.volume is not None:
            data = item.volume.read()
        elif item.uri:
            file: Any = fsspec.open(item.uri, "rb").open()
            with file:
                data = file.read(MAX_FILE_BYTES)
        else:
            with open_regular(item.path) as local:
                data = local.read(MAX_FILE_BYTES)
        return read_nifti(data, item.channel)
    except Exception:  # each store has its own errors; the answer has the reason if the scan itself is broken
        return None


def _canonical(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    volume: NDArray[np.float32] = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(voxels, affine)).dataobj)
    return volume


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
