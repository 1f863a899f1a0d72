"""The answer as a picture (secondary capture, SC), for viewers that draw no segmentations."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

import numpy as np
from gliaflow_pages.drawing import FOUND, drawing, require_matplotlib
from gliaflow_preprocessor.intensities import fit_float32
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_proto import NO_TUMOUR
from gliaflow_runtime.version import VERSION
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from gliaflow_dicom.objects.graded_series import NAME, NOTICE, GradedSeries, SourceImage
from gliaflow_dicom.objects.report import TRAINED
from gliaflow_dicom.objects.segmentation import LABEL

COLUMNS, ROWS = 3, 2
SIDE, DPI = 12.0, 100  # inches: 1200 pixels
HEADING, LINE, MARGIN = 0.75, 0.26, 0.15  # inches: above the slices; of a line of text below them, and around it
BAR_MM = 50
LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))  # where DICOM's x, y and z rise to, and where they fall to
LINE_LETTERS = 110


def make_capture(graded: GradedSeries) -> Dataset:
    """A picture of slices through the tumour with its outline, and the answer. It does not name the patient.

    Raises
    ------
    UsageError: matplotlib is not installed.
    """
    require_matplotlib()
    right, down = _directions(graded)
    (header,) = graded.headers_of([SourceImage(SecondaryCaptureImageStorage, graded.uid("SC"), multi_frame=False)])
    dataset = SCImage.from_ref_dataset(
        ref_dataset=header,
        pixel_array=_draw(graded),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=(right, down),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **graded.describe("SC", "picture"),
    )
    graded.stamped(dataset)
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = dataset.ContentDate, dataset.ContentTime
    dataset.BurnedInAnnotation = "NO"  # the text in the picture does not identify the patient
    dataset.BodyPartExamined = "BRAIN"
    dataset.SourceImageSequence = graded.references()
    if "LossyImageCompression" in graded.header:
        dataset.LossyImageCompression = graded.header.LossyImageCompression
    return dataset


def chosen_slices(mask: NDArray[np.bool_]) -> list[int]:
    """The numbers of six slices (or of all, if there are fewer): spread over the tumour, with the fullest of them.

    A small tumour is shown with the slices next to it; without tumour, slices of the middle are shown.
    """
    area, count = mask.sum(axis=(0, 1)), mask.shape[2]
    wanted = min(COLUMNS * ROWS, count)
    tumour = np.flatnonzero(area)
    if not tumour.size:
        return [int(each) for each in np.linspace(0.3 * (count - 1), 0.7 * (count - 1), wanted).round()]
    if np.ptp(tumour) < wanted:
        start = (tumour[0] + tumour[-1] + 1 - wanted) // 2
        start = min(max(start, 0), count - wanted)
        return list(range(start, start + wanted))
    chosen = {int(each) for each in tumour[np.linspace(0, tumour.size - 1, wanted + 2)[1:-1].round().astype(int)]}
    fullest = int(area.argmax())
    return sorted(chosen - {min(chosen, key=lambda each: abs(each - fullest))} | {fullest})


def _directions(graded: GradedSeries) -> tuple[str, str]:
    """Where a slice's right edge and its lower edge are in the patient, as letters."""
    lps = np.diag([-1.0, -1, 1, 1]) @ graded.series.affine
    letters = []
    for axis in (0, 1):
        direction = lps[:3, axis]
        main = int(np.abs(direction).argmax())
        letters.append(LETTERS[main][int(direction[main] < 0)])
    return letters[0], letters[1]


def _opposite(letter: str) -> str:
    return {a: b for pair in LETTERS for a, b in (pair, pair[::-1])}[letter]


def _draw(graded: GradedSeries) -> NDArray[np.uint8]:
    """RGB pixels [rows, columns, 3]. Slices are drawn as a viewer shows them, with the series' own rows and columns."""
    voxels = fit_float32(read_nifti(graded.series.read(), None)[0]).astype(np.float32)
    steps = np.linalg.norm(graded.series.affine[:3, :3], axis=0)
    chosen = chosen_slices(graded.mask)
    width, height = voxels.shape[0] * steps[0], voxels.shape[1] * steps[1]
    cell = SIDE / COLUMNS
    rows = -(-len(chosen) // COLUMNS)
    cell_height = min(max(cell * height / width, 0.6 * cell), 1.4 * cell)
    lines = _lines(graded)
    foot = LINE * len(lines) + 2 * MARGIN
    total = HEADING + rows * cell_height + foot
    low, high = np.percentile(voxels[:, :, chosen], [1, 99.8])
    with drawing():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(SIDE, total), dpi=DPI, facecolor="black")
        canvas = FigureCanvasAgg(figure)
        for place, number in enumerate(chosen):
            row, column = divmod(place, COLUMNS)
            bottom = foot + (rows - 1 - row) * cell_height
            axes = figure.add_axes(
                (column / COLUMNS + 0.002, bottom / total + 0.002, 1 / COLUMNS - 0.004, cell_height / total - 0.004)
            )
            axes.imshow(
                voxels[:, :, number].T,
                extent=(0, width, height, 0),
                cmap="gray",
                vmin=low,
                vmax=max(high, low + 1e-6),
                interpolation="bilinear",
            )
            _outline(axes, graded.mask[:, :, number].T, (width, height))
            _mark(axes, graded, number, bar=place == 0)
            axes.set_axis_off()
        top = 1 - MARGIN / total
        figure.text(0.01, top, _heading(graded), color=FOUND, fontsize=22, va="top", weight="bold")
        figure.text(0.99, top, NOTICE.upper(), color="white", fontsize=15, va="top", ha="right", weight="bold")
        below: dict[str, Any] = {"color": "white", "fontsize": 13, "va": "top", "linespacing": 1.4}
        figure.text(0.01, (foot - MARGIN) / total, "\n".join(lines), **below)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _outline(axes: Any, mask: NDArray[np.bool_], size: tuple[float, float]) -> None:
    """The outline of the mask [rows, columns] of a slice of this size in mm."""
    if not mask.any():
        return
    padded = np.pad(mask, 1)  # so that an outline at the edge is closed
    x, y = ((np.arange(-1, n + 1) + 0.5) * mm / n for n, mm in zip(mask.shape[::-1], size, strict=True))
    axes.contour(x, y, padded, levels=[0.5], colors=[FOUND], linewidths=1.6)


def _mark(axes: Any, graded: GradedSeries, number: int, *, bar: bool) -> None:
    """The image's number, the letters of the directions and, in one slice, a scale bar."""
    from matplotlib.patheffects import withStroke

    each = graded.series.slices[number]
    image = graded.image_of(each)
    name = f"slice {number} (0 to {graded.series.shape[2] - 1})" if each.instance is None else f"image {each.instance}"
    name = f"frame {each.frame + 1}" if image.multi_frame else name
    right, down = _directions(graded)
    rim = [withStroke(linewidth=4, foreground="black")]  # so that white letters can be read on a white image
    style: dict[str, Any] = {"transform": axes.transAxes, "color": "white", "fontsize": 12, "path_effects": rim}
    axes.text(0.02, 0.98, name, ha="left", va="top", **style)
    axes.text(0.015, 0.5, _opposite(right), ha="left", va="center", **style)
    axes.text(0.985, 0.5, right, ha="right", va="center", **style)
    axes.text(0.5, 0.98, _opposite(down), ha="center", va="top", **style)
    if bar:
        left, lower = axes.get_xlim()[0], axes.get_ylim()[0]
        start, y = left + 0.04 * (axes.get_xlim()[1] - left), lower * 0.96
        axes.plot(
            [start, start + BAR_MM],
            [y, y],
            color="white",
            linewidth=3,
            path_effects=[withStroke(linewidth=5, foreground="black")],
        )
        axes.text(start, y * 0.98, f"{BAR_MM} mm", color="white", fontsize=10, va="bottom", path_effects=rim)


def _heading(graded: GradedSeries) -> str:
    """The answer, in one line."""
    answer = graded.answer
    volume = f"volume {answer.tumour_ml:.1f} ml"
    if answer.status == NO_TUMOUR:
        return f"no tumour found, no grade      {volume}"
    return f"{answer.grade}      P(HGG) {answer.p_hgg:.3f}      {volume}"


def _lines(graded: GradedSeries) -> list[str]:
    """What a reader must know about the answer."""
    trained_on, count = graded.answer.trained_on, len(graded.warnings)
    sentences = [
        f"Made by {NAME} {VERSION} with the model {graded.bundle}. Outline: {LABEL}.",
        f"Trained on: {TRAINED.get(trained_on, trained_on)}.",
        f"Warnings: {count}, in the structured report." if count else "No warnings.",
    ]
    return [line for sentence in sentences for line in wrap(sentence, LINE_LETTERS)]
