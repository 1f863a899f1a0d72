"""Where a NIfTI header places its scan: the affine in mm, the header's own forms for the mask, and doubts.

A header states the place in the sform, in the qform, and the voxels' sides in ``pixdim``, which belongs to the qform. A
program that writes only one of them leaves the others wrong. The sform is used, else the qform, as viewers do. If sform
and pixdim state different sides, the sides are used with which the image is as large as a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import quat2mat, voxel_sizes
from gliaflow_proto.geometry import MAX_PLACE, MIN_VOLUME, Forms
from numpy.typing import NDArray

MIN_VOXEL_MM, MAX_VOXEL_MM = 0.1, 100  # smaller voxels would be blurred over hundreds of others
THICK_MM = 12.0
HEAD_MM = (50.0, 600.0)  # the sides of an image that shows a head
TEMPLATES = {3: "Talairach", 4: "MNI"}  # sform_code
UNITS_MM = {1: 1000.0, 3: 0.001}  # xyzt_units: metre, micron; any other is taken as mm
SAME_SIDES = 0.01  # forms that differ by less agree
SAME_MM = 1.0
SAME_DEGREES = 1.0
SHEAR_DEGREES = 0.5
OBLIQUE_DEGREES = 35.0
MAX_SQUARES = 1.01  # of a quaternion's b, c and d: 1, but for rounding

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """``affine`` [4, 4], stored voxel to mm; the header's ``forms``; and ``warnings``, one sentence each."""

    affine: Array
    forms: Forms
    warnings: list[str]


def place(header: Any, shape: tuple[int, ...]) -> Placement:
    """The place of a scan with this NIfTI header, as it is in the file, and this spatial shape.

    Raises
    ------
    ValueError: the header states no usable place.
    """
    pixdim = np.array(header["pixdim"][:4], dtype=float)
    sides = np.abs(pixdim[1:])
    sides_known = bool(np.isfinite(sides).all() and (sides > 0).all())
    unit, warnings = _unit(header, sides if sides_known else None)
    sform, qform = _sform(header, unit), _qform(header, np.where(sides > 0, sides, 1.0), unit)
    stated = {"sform": _code(header, "sform") > 0, "qform": _code(header, "qform") > 0}
    usable = {"sform": stated["sform"] and _usable(sform), "qform": stated["qform"] and _usable(qform)}
    for name, field in (("sform", "srow_x, srow_y, srow_z"), ("qform", "quatern, qoffset, pixdim")):
        if stated[name] and not usable[name]:
            warnings.append(f"{name} ({field}): not finite, or without volume; it was ignored, and the mask has none")
    if any(stated.values()) and not any(usable.values()):
        raise ValueError("sform, qform: the affine is not finite or has no volume; repair the header's orientation")
    if not sides_known and not usable["sform"]:
        raise ValueError(
            f"pixdim: sides of {_mm(pixdim[1:])} mm, and no sform that states them; "
            "set pixdim[1] to pixdim[3] to the voxel's sides"
        )
    if not sides_known or (pixdim[1:] < 0).any():
        used = "the sform was used" if usable["sform"] else "their absolute values were used"
        warnings.append(f"pixdim: sides of {_mm(pixdim[1:])} mm are not positive numbers; {used}")
    if stated["qform"] and pixdim[0] not in (-1, 0, 1):
        warnings.append(f"pixdim[0] (qfac): {pixdim[0]:g} is not 1 or -1; taken as {-1 if pixdim[0] < 0 else 1}")
    if not any(stated.values()):
        affine = _unoriented(sides * unit, shape)
        warnings.append(
            "sform_code, qform_code: both 0, so the file does not state its orientation; its axes were taken to run to "
            "the left, the front and the head, but left and right may be exchanged"
        )
    elif not usable["sform"]:
        affine = qform
    else:
        affine = sform
        if (code := _code(header, "sform")) in TEMPLATES:
            warnings.append(
                f"sform_code: {code} ({TEMPLATES[code]}); if the scan was scaled to that template, so are its volumes"
            )
        if sides_known:
            affine = _choose(sform, qform if usable["qform"] else None, sides * unit, shape, warnings)
            if usable["qform"]:
                _compare(sform, qform, shape, warnings, chosen="sform" if affine is sform else "qform")
    _check(affine, shape, warnings)
    return Placement(affine, _forms(header, usable, voxel_sizes(affine) / unit), warnings)


def _unit(header: Any, sides: Array | None) -> tuple[float, list[str]]:
    """How many mm one unit of the header has."""
    unit = UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    if _code(header, "sform") and _usable(matrix := _sform(header, 1.0)):
        sides = voxel_sizes(matrix)
    if unit == 1.0 or sides is None or _plausible(sides * unit) or not _plausible(sides):
        return unit, []
    name = "metre" if unit > 1 else "micron"
    return 1.0, [f"xyzt_units: {name}, but voxels of {_mm(sides)} {name} are not those of a scan; taken as mm"]


def _plausible(sides: Array) -> bool:
    return bool(sides.min() >= MIN_VOXEL_MM and sides.max() <= MAX_VOXEL_MM)


def _code(header: Any, form: str) -> int:
    """The form's code; 0, not stated, for a number that is no code in NIfTI-1."""
    code = int(header[f"{form}_code"])
    return code if 0 < code < 2**15 else 0


def _sform(header: Any, unit: float) -> Array:
    rows = [np.asarray(header[f"srow_{axis}"], dtype=float) * unit for axis in "xyz"]
    return np.array([*rows, [0, 0, 0, 1]])


def _qform(header: Any, sides: Array, unit: float) -> Array:
    """The rotation of the header's quaternion times the sides (NIfTI-1, method 2)."""
    b, c, d = (float(header[f"quatern_{part}"]) for part in "bcd")
    affine = np.eye(4)
    squares = b * b + c * c + d * d
    mirror = -1.0 if header["pixdim"][0] < 0 else 1.0
    rotation = quat2mat([np.sqrt(max(0.0, 1 - squares)), b, c, d]) if squares < MAX_SQUARES else np.full((3, 3), np.nan)
    affine[:3, :3] = rotation * sides * (1, 1, mirror) * unit
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) * unit for axis in "xyz"]
    return affine


def _usable(affine: Array) -> bool:
    return bool((np.abs(affine) <= MAX_PLACE).all() and abs(np.linalg.det(affine[:3, :3])) >= MIN_VOLUME)


def _unoriented(sides: Array, shape: tuple[int, ...]) -> Array:
    """Axes to the left, the front and the head, about the image's middle: nibabel's reading of such a file."""
    affine = np.diag([*(sides * (-1, 1, 1)), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _choose(sform: Array, qform: Array | None, sides: Array, shape: tuple[int, ...], warnings: list[str]) -> Array:
    """The affine to use: the sform, unless pixdim states other sides that are more likely right."""
    own = voxel_sizes(sform)
    if (np.abs(sides / own - 1) < SAME_SIDES).all():
        return sform

    def likely(candidate: Array) -> tuple[bool, bool]:
        image = candidate * shape
        lost = np.abs(candidate - 1).max() < 1e-3  # 1 mm is what programs write that do not know the sides
        return bool(image.min() >= HEAD_MM[0] and image.max() <= HEAD_MM[1]), not lost

    by_pixdim = likely(sides) > likely(own)
    factor = float(np.prod(sides / own))
    used, other = ("pixdim", "the sform") if by_pixdim else ("the sform", "pixdim")
    warnings.append(
        f"sform, pixdim: voxels of {_mm(own)} mm by the sform, but of {_mm(sides)} mm by pixdim; {used} was used, and "
        f"volumes are {1 / factor if by_pixdim else factor:.3g} times as large if {other} is right"
    )
    if not by_pixdim:
        return sform
    if qform is not None:
        return qform
    scaled = sform.copy()
    scaled[:3, :3] *= sides / own
    return scaled


def _compare(sform: Array, qform: Array, shape: tuple[int, ...], warnings: list[str], chosen: str) -> None:
    """Add a warning if the forms put the scan in different places."""
    differences = []
    one, two = sform[:3, :3] / voxel_sizes(sform), qform[:3, :3] / voxel_sizes(qform)
    turn = float(np.degrees(np.arccos(np.clip((one * two).sum(axis=0), -1, 1)).max()))
    mirrored = np.linalg.det(one) * np.linalg.det(two) < 0
    middle = np.array([*((np.array(shape) - 1) / 2), 1.0])
    shift = float(np.linalg.norm((sform - qform) @ middle))
    if shift > SAME_MM and (np.abs(voxel_sizes(qform) / voxel_sizes(sform) - 1) < SAME_SIDES).all():
        differences.append(f"a shift of {shift:.3g} mm")
    if mirrored:
        differences.append("a mirror image")
    elif turn > SAME_DEGREES:
        differences.append(f"a turn of {turn:.3g}°")
    if differences:
        shown = "mirrored, perhaps left for right" if mirrored else "elsewhere"
        warnings.append(
            f"sform, qform: they contradict each other by {' and '.join(differences)}; the {chosen} was used, and "
            f"viewers that use the other one show the scan {shown}"
        )


def _check(affine: Array, shape: tuple[int, ...], warnings: list[str]) -> None:
    """Add warnings about the affine that is used. Raises ValueError if its voxels are not those of a scan."""
    if not _usable(affine):
        raise ValueError("sform, qform: the affine is not finite or has no volume; repair the header's orientation")
    sides = voxel_sizes(affine)
    if not _plausible(sides):
        raise ValueError(f"pixdim: voxels of {_mm(sides)} mm are not those of an MRI scan; is the unit not mm?")
    axes = affine[:3, :3] / sides
    image = sides * shape
    if (affine == np.eye(4)).all():
        warnings.append(
            "sform, qform: the identity matrix, which programs write that do not know the orientation; left and right "
            "may be exchanged, and 1 mm may not be the voxel's side"
        )
    if image.min() < HEAD_MM[0] or image.max() > HEAD_MM[1]:
        warnings.append(f"pixdim: the image measures {_mm(image)} mm, which does not fit a head; volumes may be wrong")
    if sides.max() > THICK_MM:
        warnings.append(f"pixdim: voxels of {_mm(sides)} mm are coarse; small tumours are missed")
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    if (shear := float(np.degrees(np.arcsin(min(1.0, cosines))))) > SHEAR_DEGREES:
        warnings.append(
            f"sform: its axes are not at right angles (shear of {shear:.2g}°); resample the scan onto a straight grid"
        )
    oblique = float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), 0, 1)).max()))
    if oblique > OBLIQUE_DEGREES:
        warnings.append(
            f"sform, qform: the image is turned by {oblique:.2g}° from the scanner's axes, so its slices are not "
            "axial, coronal or sagittal; resample it onto straight axes"
        )


def _forms(header: Any, usable: dict[str, bool], sides: Array) -> Forms:
    """The header's fields as they are, except values that NIfTI does not allow; ``sides`` replace such a pixdim."""
    pixdim = [float(side) for side in header["pixdim"][:4]]
    pixdim[0] = -1.0 if pixdim[0] < 0 else 1.0  # qfac: readers take any other number as one of these
    numbers: dict[str, list[float]] = {
        "pixdim": pixdim,
        "quatern": [float(header[name]) for name in ("quatern_b", "quatern_c", "quatern_d")]
        + [float(header[f"qoffset_{axis}"]) for axis in "xyz"],
        "srow": [float(number) for axis in "xyz" for number in header[f"srow_{axis}"]],
    }
    fits = {key: all(abs(number) <= MAX_PLACE for number in values) for key, values in numbers.items()}
    codes = {name: _code(header, name) for name in ("sform", "qform")}
    if not fits["pixdim"] or min(pixdim[1:]) <= 0:
        numbers["pixdim"] = [pixdim[0], *map(float, sides)]
    for key, name in (("quatern", "qform"), ("srow", "sform")):
        if not fits[key] or (codes[name] and not usable[name]):
            numbers[key] = [0.0] * len(numbers[key])
            codes[name] = 0
    return Forms(
        pixdim=numbers["pixdim"],
        units=int(header["xyzt_units"]) & 255,
        qform_code=codes["qform"],
        sform_code=codes["sform"],
        quatern=numbers["quatern"],
        srow=numbers["srow"],
    )


def _mm(sides: Array) -> str:
    return " × ".join(f"{side:.4g}" for side in sides)
