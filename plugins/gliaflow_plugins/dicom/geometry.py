"""Whether the slices of a series form one regular grid, and the grid's affine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.dicom.images import SPACING_MM, DicomSlice

SAME = 0.001  # direction cosines, and the ratio of two spacings
SAME_PLACE_MM = 0.01
OFF_GRID = 0.05  # of the step between slices: how far a slice may be from its place along the normal
OFF_GRID_MM = 0.1  # and in any direction
MAX_NAMES = 5
Name = Callable[[DicomSlice], str]


def names_of(slices: Sequence[DicomSlice]) -> Name:
    """How messages name a slice: by its file, with the folder if two files have one name, and by its frame."""
    paths = {each.path for each in slices}
    names = Counter(path.name for path in paths)
    frames = {each.path for each in slices if each.frame}

    def name(each: DicomSlice) -> str:
        path = Path(each.path.parent.name, each.path.name) if names[each.path.name] > 1 else Path(each.path.name)
        return f"{path} frame {each.frame + 1}" if each.path in frames else str(path)

    return name


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def normal_of(each: DicomSlice) -> NDArray[np.float64]:
    return np.cross(each.row, each.column)


def arrange(slices: Sequence[DicomSlice]) -> tuple[tuple[DicomSlice, ...], str]:
    """The slices in order along their normal, and why they are no regular grid (empty: they are one)."""
    normal = normal_of(slices[0])
    heights = np.array([each.position for each in slices]) @ normal
    ordered = [slices[index] for index in np.argsort(heights, kind="stable")]
    name = names_of(slices)
    return tuple(ordered), _mixed(ordered, name) or _irregular(ordered, normal, name)


def affine_of(slices: Sequence[DicomSlice]) -> NDArray[np.float64]:
    """Voxel (column, row, slice) to mm, RAS. The slices must form a grid."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.row, first.spacing[1])
    affine[:3, 1] = np.multiply(first.column, first.spacing[0])
    affine[:3, 2] = normal_of(first) * _mean_step(slices)
    affine[:3, 3] = first.position
    # DICOM's x and y run to the left and back, NIfTI's to the right and front
    return np.diag([-1.0, -1, 1, 1]) @ affine


def _mean_step(slices: Sequence[DicomSlice]) -> float:
    first, last = slices[0], slices[-1]
    if len(slices) == 1:
        return first.step or 1.0
    return float(np.linalg.norm(np.subtract(last.position, first.position))) / (len(slices) - 1)


def _mixed(slices: Sequence[DicomSlice], name: Name) -> str:
    """Which slices differ from most of the others in their size, orientation or spacing."""
    orientations = np.array([(*each.row, *each.column) for each in slices])
    spacings = np.log([each.spacing for each in slices])
    for field, values, tolerance in (
        ("Rows, Columns", np.array([each.shape for each in slices], dtype=float), 0.0),
        ("ImageOrientationPatient", orientations, SAME),
        ("PixelSpacing", spacings, SAME),
    ):
        usual = np.median(values, axis=0)
        if not (np.abs(values - usual) <= tolerance).all(axis=1).any():  # two halves: no value is the usual one
            usual = values[0]
        differ = np.abs(values - usual).max(axis=1) > tolerance
        if differ.any():
            others = listed(name(each) for each, other in zip(slices, differ, strict=True) if other)
            rest = name(slices[int(np.argmin(differ))])
            return f"{field}: different in {others} and in {rest}; keep the images of one stack"
    return ""


def _irregular(slices: Sequence[DicomSlice], normal: NDArray[np.float64], name: Name) -> str:
    if len(slices) == 1:
        return "" if slices[0].step else f"{name(slices[0])} is a single slice, and states no SliceThickness"
    places = np.array([each.position for each in slices])
    heights = places @ normal
    steps = np.diff(heights)
    if (same := np.flatnonzero(steps < SAME_PLACE_MM)).size:
        return _repeated(slices, same, name)
    step = float(np.median(steps))
    if (gaps := np.flatnonzero(steps > 1.5 * step)).size:
        at = gaps[0]
        missing = round(float(steps[at]) / step) - 1
        what = f"{missing} slice{'s are' if missing > 1 else ' is'} missing" if missing else "a gap is"
        more = f", and in {len(gaps) - 1} more places" if len(gaps) > 1 else ""
        return (
            f"{what} between {name(slices[at])} and {name(slices[at + 1])} ({steps[at]:.4g} mm apart, the others "
            f"{step:.4g} mm){more}; export the whole series again"
        )
    step = float(heights[-1] - heights[0]) / (len(slices) - 1)
    if not SPACING_MM[0] <= step <= SPACING_MM[1]:
        return f"slices are {step:.4g} mm apart; gliaflow reads {SPACING_MM[0]}–{SPACING_MM[1]:g} mm"
    off = places - places[0] - np.outer(np.arange(len(slices)), normal * step)
    along = np.abs(off @ normal)
    if along.max() > min(OFF_GRID * step, OFF_GRID_MM):
        worst = int(np.argmax(along))
        return (
            f"slices are not evenly spaced: {name(slices[worst])} is {along[worst]:.2g} mm from its place in steps of "
            f"{step:.4g} mm; export the series as the scanner made it"
        )
    aside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if aside.max() > OFF_GRID_MM:
        worst = int(np.argmax(aside))
        return (
            f"slices are tilted: {name(slices[worst])} is {aside[worst]:.4g} mm beside {name(slices[0])} along the "
            f"slice; resample the series to slices that are one above the other"
        )
    return ""


def _repeated(slices: Sequence[DicomSlice], same: NDArray[np.intp], name: Name) -> str:
    first, second = slices[same[0]], slices[same[0] + 1]
    differ = ""
    if first.time != second.time:
        differ = f" (temporal positions {first.time} and {second.time})"
    elif first.echo_ms != second.echo_ms:
        differ = f" (echoes of {first.echo_ms} and {second.echo_ms} ms)"
    more = f", and so on at {len(same) - 1} more positions" if len(same) > 1 else ""
    return (
        f"two images at one position: {name(first)} and {name(second)}{differ}{more}; keep one image at each position"
    )
