"""The place of a scan: the header's own fields go to the mask, and contradictions between them are named."""

from __future__ import annotations

import re
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow_preprocessor.nifti import NiftiError, NiftiScan, read_scan
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

SHAPE = (40, 48, 12)
SIDES = np.array([5.0, 5.0, 8.0])
AFFINE = from_matvec(euler2mat(0.1, 0.2, 0.05) @ np.diag(SIDES * (-1, 1, 1)), [90, -120, -40])
SHIFTED = from_matvec(np.eye(3), [30, 0, 0]) @ AFFINE


def scan(
    sform: np.ndarray = AFFINE,
    qform: np.ndarray = AFFINE,
    codes: tuple[int, int] = (1, 1),
    kind: Any = nib.Nifti1Image,
    **fields: Any,
) -> bytes:
    """A NIfTI file with these two forms; ``fields`` are written into its header as they are."""
    image = kind(np.zeros(SHAPE, np.int16), None)
    image.set_qform(qform, 1, update_affine=False)
    image.set_sform(sform, 1)
    raw = bytearray(image.to_bytes())
    header = kind.header_class(bytes(raw[: kind.header_class.template_dtype.itemsize]), check=False)
    header["sform_code"], header["qform_code"] = codes
    for name, value in fields.items():
        header[name] = value
    raw[: len(header.binaryblock)] = header.binaryblock
    return bytes(raw)


def read(*args: Any, **fields: Any) -> NiftiScan:
    return read_scan(scan(*args, **fields))


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 0), (0, 1), (5, 2)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_forms_that_agree_are_read_without_a_warning(codes: tuple[int, int], kind: Any) -> None:
    done = read(codes=codes, kind=kind)
    np.testing.assert_allclose(done.affine, AFFINE, atol=1e-4)
    assert (done.forms.sform_code, done.forms.qform_code) == codes
    assert done.warnings == []


@pytest.mark.parametrize(
    ("sform", "named"),
    [
        (SHIFTED, r"sform, qform: .* by a shift of 30 mm; the sform was used"),
        (from_matvec(euler2mat(0, 0, 0.5)) @ AFFINE, r"sform, qform: .* a turn of 28\.\d°"),
        (AFFINE @ np.diag([-1.0, 1, 1, 1]), r"sform, qform: .* a mirror image; .* mirrored"),
        (
            AFFINE @ np.diag([1.2, 1, 1, 1]),
            r"sform, pixdim: voxels of 6 × 5 × 8 mm .*volumes are 0\.833 times as large",
        ),
    ],
    ids=["shift", "turn", "mirror", "scale"],
)
def test_forms_that_contradict_each_other_are_named(sform: np.ndarray, named: str) -> None:
    done = read(sform)
    np.testing.assert_allclose(done.affine, sform, atol=1e-4)
    assert len(done.warnings) == 1, done.warnings
    assert re.search(named, done.warnings[0])


LOST = from_matvec(AFFINE[:3, :3] / SIDES, AFFINE[:3, 3])


@pytest.mark.parametrize("codes", [(1, 1), (1, 0)])
def test_an_sform_that_lost_the_voxels_sides_does_not_change_volumes(codes: tuple[int, int]) -> None:
    done = read(LOST, codes=codes)
    np.testing.assert_allclose(done.affine, AFFINE, atol=1e-4)
    assert any("1 × 1 × 1 mm by the sform, but of 5 × 5 × 8 mm by pixdim; pixdim was used" in w for w in done.warnings)


def test_a_pixdim_that_lost_the_voxels_sides_does_not_change_volumes() -> None:
    done = read(codes=(1, 0), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(done.affine, AFFINE, atol=1e-4)
    assert any("but of 1 × 1 × 1 mm by pixdim; the sform was used" in w for w in done.warnings)


def test_without_any_form_the_orientation_is_not_known() -> None:
    done = read(codes=(0, 0))
    (warning,) = done.warnings
    assert warning.startswith("sform_code, qform_code: both 0")
    assert (done.forms.sform_code, done.forms.qform_code) == (0, 0)
    assert nib.aff2axcodes(done.affine) == ("L", "A", "S")


SHEARED = AFFINE + np.array([[0, 0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4])
TURNED = from_matvec(euler2mat(0.8, 0, 0)) @ AFFINE


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (scan(SHEARED, codes=(1, 0)), "sform: its axes are not at right angles (shear of"),
        (scan(TURNED, TURNED), "from the scanner's axes, so its slices are not axial"),
        (nib.Nifti1Image(np.zeros((90, 90, 90), np.int16), np.eye(4)).to_bytes(), "sform, qform: the identity matrix"),
        (nib.Nifti1Image(np.zeros((90, 90, 9), np.int16), np.diag([-2.0, 2, 2, 1])).to_bytes(), "does not fit a head"),
        (nib.Nifti1Image(np.zeros((90, 90, 9), np.int16), np.diag([-2.0, 2, 15, 1])).to_bytes(), "are coarse"),
        (scan(codes=(4, 1)), "sform_code: 4 (MNI)"),
        (scan(pixdim=[0.5, 5, 5, 8, 0, 0, 0, 0], codes=(0, 1)), "pixdim[0] (qfac): 0.5 is not 1 or -1"),
        (scan(pixdim=[1, 5, -5, 8, 0, 0, 0, 0]), "pixdim: sides of 5 × -5 × 8 mm are not positive numbers"),
        (scan(pixdim=[1, 5, 0, 8, 0, 0, 0, 0]), "pixdim: sides of 5 × 0 × 8 mm are not positive numbers"),
        (scan(pixdim=[1, 5, np.nan, 8, 0, 0, 0, 0]), "pixdim: sides of 5 × nan × 8 mm are not positive numbers"),
        (scan(srow_x=[0, np.nan, 0, 0]), "sform (srow_x, srow_y, srow_z): not finite, or without volume"),
        (scan(quatern_b=7), "qform (quatern, qoffset, pixdim): not finite, or without volume"),
    ],
)
def test_other_doubts_are_named_by_the_field(data: bytes, named: str) -> None:
    assert any(named in warning for warning in read_scan(data).warnings), read_scan(data).warnings


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (scan(pixdim=[1, 5, 5, 0, 0, 0, 0, 0], codes=(0, 1)), "pixdim: sides of 5 × 5 × 0 mm, and no sform"),
        (scan(srow_x=[np.inf, 0, 0, 0], codes=(1, 0)), "sform, qform: the affine is not finite"),
        (scan(quatern_c=np.nan, codes=(0, 1)), "sform, qform: the affine is not finite"),
        (scan(AFFINE / 1000, AFFINE / 1000), "pixdim: voxels of .* is the unit not mm"),
    ],
)
def test_a_header_without_a_usable_place_is_refused_by_the_field(data: bytes, field: str) -> None:
    with pytest.raises(NiftiError, match=field):
        read_scan(data)


@pytest.mark.parametrize(("unit", "code"), [(1000.0, 1), (0.001, 3)], ids=["metre", "micron"])
def test_other_units_are_read_and_kept(unit: float, code: int) -> None:
    scaled = np.diag([1 / unit, 1 / unit, 1 / unit, 1]) @ AFFINE
    done = read(scaled, scaled, xyzt_units=code + 8)
    np.testing.assert_allclose(done.affine, AFFINE, atol=1e-3)
    assert done.warnings == []
    assert done.forms.units == code + 8
    np.testing.assert_allclose(done.forms.pixdim[1:], SIDES / unit, rtol=1e-6)


def test_a_unit_that_cannot_be_right_is_named() -> None:
    done = read(xyzt_units=1)
    np.testing.assert_allclose(done.affine, AFFINE, atol=1e-4)
    assert done.warnings == [
        "xyzt_units: metre, but voxels of 5 × 5 × 8 metre are not those of a scan; taken as mm",
    ]
