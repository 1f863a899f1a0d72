"""Fuzz target: an untrusted DICOM file is found, described and read, as ``submit`` and ``gliaflow dicom`` do it.

The search may raise nothing. Reading may raise only OSError or ValueError.
The decoders of compressed pixels do not run here: they are C code in a process of its own.
"""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import gliaflow_plugins.dicom.choose as choose
import gliaflow_plugins.dicom.compressed as compressed
import gliaflow_plugins.dicom.headers as headers
import gliaflow_plugins.dicom.images as images
import nibabel as nib
import numpy as np
import pydicom
from fuzz.bounds import readable
from fuzz.tiny import scratch
from gliaflow_plugins import nifti_bytes
from gliaflow_plugins.left_out import NO_FLAIR
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, RLELossless
from sample_dicom import big_endian, enhanced, single_frames, write

MAX_BYTES = 2**14
PEAK_BYTES = 24 * 2**20
BLIND = 0.1
RULES = choose.FlairRules(pattern=".*", min_slices=1)
SYNTAXES = ("", ".1", ".1.99", ".2", ".5", ".4.50", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.201", ".4.100")
_folder = scratch()

# small like the inputs, so that a missing check of a limit is noticed
LIMITS = (
    patch.object(nifti_bytes, "MAX_VOXELS", 2**14),
    patch.object(nifti_bytes, "MAX_SIDE", 256),
    patch.object(images, "MAX_SIDE", 256),
    patch.object(headers, "MAX_HEADER_BYTES", 2**20),
    patch.object(headers, "MAX_READS", 2**13),
    patch.object(compressed.CompressedFrames, "_decode", lambda self, request, frame, size: bytes(size)),
)


def run(data: bytes) -> None:
    for limit in LIMITS:
        limit.start()
    try:
        _run(data)
    finally:
        for limit in LIMITS:
            limit.stop()


def _run(data: bytes) -> None:
    path = _folder / "IM0001"
    path.write_bytes(data)
    headers.is_dicom(path)
    found = choose.find_series([path], RULES)
    left_out = [left for left in found.left_out if left.kind != NO_FLAIR]
    assert len(found.flair) + len(left_out) == 1
    for left in found.left_out:
        readable(ValueError(left.why))
    for series in found.flair:
        assert series.paths == (path,)
        for text in (str(series), *series.warnings):
            readable(ValueError(text))
        if series.problem:
            readable(ValueError(series.problem))
            continue
        assert np.isfinite(series.affine).all()
        assert abs(np.linalg.det(series.affine)) > 1e-6
        try:
            image = nib.Nifti1Image.from_bytes(series.read())
        except (OSError, ValueError) as error:
            readable(error)
        else:
            assert image.shape == series.shape
            assert np.isfinite(np.asarray(image.dataobj)).all()
        try:
            series.headers()
        except (OSError, ValueError) as error:
            readable(error)


def seeds() -> list[bytes]:
    values = np.arange(8 * 6 * 4, dtype=np.int16).reshape(8, 6, 4) - 50
    single, multi = single_frames(values)[0], enhanced(values)
    files = [_written(image) for image in (single, multi, big_endian(enhanced(values)))]
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"):
        for image in (single_frames(values)[0], enhanced(values)):
            image.file_meta.TransferSyntaxUID = syntax
            files.append(_written(image))
    for syntax in (RLELossless, JPEGLSLossless):
        image = enhanced(values)
        image.compress(syntax, generate_instance_uid=False)
        files.append(_written(image))
    frame = b"\xff\xd8\xff\xc3\0\x0b\x10\0\x06\0\x08\1\1\x11\0\xff\xda\0\x08\1\1\0\1\0\0\0\0\xff\xd9"
    codestream = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIHBBB", 41, 0, 8, 6, 0, 0, 8, 6, 0, 0, 1, 15, 1, 1)
    for syntax, one in (("1.2.840.10008.1.2.4.70", frame), ("1.2.840.10008.1.2.4.90", codestream)):
        image = single_frames(values)[0]
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate([one])
        image["PixelData"].is_undefined_length = True
        files.append(_written(image))
    return [*files, files[0][132:], files[0][132 + 200 :]]


def _written(image: pydicom.FileDataset) -> bytes:
    with tempfile.TemporaryDirectory(dir=_folder) as folder:
        return write([image], Path(folder))[0].read_bytes()


LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")
LENGTHS = (0, 1, 2, 8, 255, 4096, 2**16 - 2, 2**20, 2**31 - 1, 2**32 - 2, 2**32 - 1)
TEXTS = (
    *(
        b"",
        b"0",
        b"-1",
        b"nan",
        b"inf",
        b"-inf",
        b"1e308",
        b"1e-308",
        b"1\\",
        b"\\\\",
        b"1\\0\\0\\0\\1\\0",
        b"99999999999",
    ),
    *(b"0\\0\\0", b"nan\\nan\\nan", b"0.0001\\1", b"1\\1\\1\\1", b"MOSAIC", b"IR", b"1.2.840.10008.5.1.4.1.1.4.1"),
    *(
        b"1.2.840.10008.5.1.4.1.1.4.4",
        b"ISO 2022 IR 87",
        b"\x1b$B\x1b(J",
        b"\xff\xfe",
        b"01",
        b"MONOCHROME1",
        b"\\" * 40,
    ),
)
WORDS = [b"DICM", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", b"\xff\xff\xff\xff", b"\xe0\x7f\x10\0"]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change lengths, values, tags and the order of elements, or nest them."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        elements = list(_elements(bytes(raw)))
        if not elements or rng.random() < 0.1:
            raw = raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.5 else raw + rng.randbytes(rng.randrange(99))
            continue
        start, value, size = rng.choice(elements)
        end = value + size
        kind = rng.randrange(8)
        if kind == 0:
            struct.pack_into("<I", raw, value - 4, rng.choice(LENGTHS))
        elif kind == 1 and size in (2, 4):
            raw[value : value + 2] = struct.pack("<H", rng.choice((0, 1, 2, 3, 7, 8, 12, 16, 32, 255, 4097, 65535)))
        elif kind <= 3:
            _put(raw, value, end, rng.choice(TEXTS))
        elif kind == 4:
            del raw[start:end]
        elif kind == 5:
            raw[start:start] = raw[start:end]
        elif kind == 6:
            _put(raw, value, end, b"1.2.840.10008.1.2" + rng.choice(SYNTAXES).encode())
        else:
            depth = rng.choice((1, 5, 300, 1000))
            raw[start:start] = (b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff") * depth
    return bytes(raw)


def _put(raw: bytearray, start: int, end: int, text: bytes) -> None:
    """A value of another length."""
    text += b" " * (len(text) % 2)
    raw[start:end] = text
    struct.pack_into("<H", raw, start - 2, len(text))


def _elements(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, start of the value and its length, of what looks like elements of Explicit VR Little Endian."""
    at = 132 if raw[128:132] == b"DICM" else 0
    while at + 12 <= len(raw):
        vr = raw[at + 4 : at + 6]
        if not (vr.isalpha() and vr.isupper()):  # an item, or another encoding
            at += 8
            continue
        long = vr in LONG
        value = at + 12 if long else at + 8
        size = struct.unpack_from("<I" if long else "<H", raw, value - 4 if long else value - 2)[0]
        inside = vr == b"SQ" or size > len(raw)
        yield at, value, 0 if inside else size
        at = value if inside else value + size
