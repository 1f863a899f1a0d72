"""A good scan, and many kinds of broken ones with the text that their error must contain."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

GOOD_SHAPE = (40, 48, 12)


def good_scan(path: Path, seed: int = 0) -> Path:
    """Write a small scan that can be graded: an ellipsoid head with a bright lesion, 5 mm voxels."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in GOOD_SHAPE), indexing="ij")
    rng = np.random.default_rng(seed)
    head = (i**2 + j**2 + k**2 < 0.8) * rng.normal(300, 15, GOOD_SHAPE)
    head += 200.0 * ((i - 0.3) ** 2 + (j + 0.2) ** 2 + k**2 < 0.04)
    nib.save(nib.Nifti1Image(head.astype(np.int16), np.diag([5.0, 5, 6, 1])), path)
    return path


def _bytes() -> bytes:
    image = nib.Nifti1Image(np.full(GOOD_SHAPE, 7, np.int16), np.eye(4))
    image.header.set_data_dtype(np.int16)
    return image.to_bytes()


def _patched(offset: int, form: str, *values: object) -> bytes:
    """A NIfTI-1 file with some header bytes changed. The offsets are those of the standard's nifti1.h."""
    raw = bytearray(_bytes())
    struct.pack_into("<" + form, raw, offset, *values)
    return bytes(raw)


def _volume(volume: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nib.Nifti1Image(volume, np.eye(4) if affine is None else affine).to_bytes()


def _head() -> np.ndarray:
    volume = np.zeros(GOOD_SHAPE, np.float32)
    volume[10:30, 10:38, 3:9] = np.random.default_rng(1).normal(100, 5, (20, 28, 6))
    return volume


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.nii.gz": (lambda: b"", "the file is empty"),
    "text.nii": (lambda: b"this is a text file, not a scan\n" * 50, "not a NIfTI file"),
    "gz_text.nii.gz": (lambda: gzip.compress(b"no scan in here " * 100), "not a NIfTI file"),
    "not_gzip.nii.gz": (lambda: b"\x1f\x8b" + b"garbage" * 100, "not a valid gzip file"),
    "cut_gzip.nii.gz": (lambda: gzip.compress(_bytes(), 0)[:5000], "cut short"),
    "cut_nii.nii": (lambda: _bytes()[:5000], "cut short"),
    "header_only.nii": (lambda: _bytes()[:352], "cut short"),
    "half_header.nii": (lambda: _bytes()[:200], "not a NIfTI file"),
    "flipped_bit.nii.gz": (
        lambda: (lambda d: d[: len(d) // 2] + bytes([d[len(d) // 2] ^ 1]) + d[len(d) // 2 + 1 :])(
            gzip.compress(_volume(_head()))
        ),
        "not a valid gzip file|cut short",
    ),
    "bomb.nii.gz": (lambda: gzip.compress(_patched(40, "8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)), "dim"),
    "huge_dim.nii": (lambda: _patched(40, "8h", 3, 4000, 4000, 4000, 1, 1, 1, 1), "limit"),
    "negative_dim.nii": (lambda: _patched(40, "8h", 3, -40, 48, 12, 1, 1, 1, 1), "dim|header"),
    "one_plane.nii": (lambda: _volume(np.ones((40, 48, 1), np.int16)), "one plane"),
    "four_d.nii": (lambda: _volume(np.ones((*GOOD_SHAPE, 4), np.int16)), "--channel"),
    "rgb.nii": (lambda: _patched(70, "hh", 128, 24), "datatype"),
    "complex.nii": (lambda: _volume(np.ones(GOOD_SHAPE, np.complex64)), "datatype"),
    "unknown_datatype.nii": (lambda: _patched(70, "hh", 999, 16), "datatype|header"),
    "all_zero.nii.gz": (
        lambda: gzip.compress(_volume(np.zeros(GOOD_SHAPE, np.int16))),
        "constant or almost empty: open it in",
    ),
    "all_nan.nii": (lambda: _volume(np.full(GOOD_SHAPE, np.nan, np.float32)), "no finite number: open it in a viewer"),
    "flat_affine.nii": (lambda: _patched(312, "4f", 0, 0, 0, 0), "affine"),
    "metre_voxels.nii": (lambda: _volume(_head(), np.diag([0.001, 0.001, 0.005, 1])), "pixdim|affine"),
    "offset_nan.nii": (lambda: _patched(108, "f", float("nan")), "vox_offset"),
    "offset_in_header.nii": (lambda: _patched(108, "f", 100.0), "vox.offset"),
    "offset_outside.nii": (lambda: _patched(108, "f", 1e9), "vox_offset"),
    "pair.nii": (lambda: _patched(344, "4s", b"ni1\0"), "two files"),
    "freesurfer.nii.gz": (
        lambda: gzip.compress(struct.pack(">7i", 1, 40, 48, 12, 1, 0, 0) + bytes(9999)),
        "a FreeSurfer file",
    ),
    "dicom_of_p7.nii": (lambda: bytes(128) + b"DICM" + bytes(500), "a DICOM file"),
}


def write_broken(folder: Path) -> list[Path]:
    """Write all of ``BROKEN`` into the folder and return their paths."""
    paths = []
    for name, (make, _) in BROKEN.items():
        path = folder / name
        path.write_bytes(make())
        paths.append(path)
    return paths
