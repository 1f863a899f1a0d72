"""Fuzz target: an untrusted scan is read, cut into slices and published, as the preprocessor does it.

Some come as another sequence beside a good FLAIR scan. Only InvalidInput may be raised. Slices must be finite, and the
next stage must accept their geometry.
"""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from dataclasses import replace
from unittest.mock import patch

import gliaflow_preprocessor.nifti as nifti
import nibabel as nib
import numpy as np
from fuzz.bounds import readable
from fuzz.tiny import scratch, write_bundle
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_proto import Scan, ScanMessage, SequenceSource, SlicesMessage, Source, decode, encode, restore
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.stage import InvalidInput

MAX_BYTES = 2**14
PEAK_BYTES = 24 * 2**20
BLIND = 0.1
CHANNELS = (None, None, "0", "1", "7", "-1", "FLAIR", "")

MAX_VOXELS = 2**14  # small like the inputs, so that a missing check of the limit is noticed
_folder = scratch()
_preprocessor = Preprocessor(write_bundle(_folder), connect("memory://fuzz"), [str(_folder)])
_of_two = Preprocessor(write_bundle(scratch(), ("flair", "t1ce")), connect("memory://fuzz"), [str(_folder)])
_delivery = Delivery("gliaflow.preprocessor", "scan", b"")


def run(data: bytes) -> None:
    with patch.object(nifti, "MAX_VOXELS", MAX_VOXELS):
        _run(data)


def _run(data: bytes) -> None:
    kind = zlib.crc32(data)
    if kind % 64 == 0:  # sent as a URI
        (_folder / "scan").write_bytes(data)
        source = Source(uri=(_folder / "scan").as_uri())
    else:
        source = Source(data=data)
    channel = CHANNELS[kind // 8 % len(CHANNELS)]
    message = ScanMessage(id="m", scan=Scan(id="s"), source=source, channel=channel)
    preprocessor = _preprocessor
    if kind % 32 == 8:
        beside = {"t1ce": SequenceSource(source=source, channel=channel)}
        message, preprocessor = replace(message, source=_FLAIR, channel=None, sequences=beside), _of_two
    if kind % 8:  # cutting slices takes five times as long as reading
        try:
            volume, affine = nifti.read_nifti(data, message.channel)
        except nifti.NiftiError as error:
            readable(error)
        else:
            assert volume.ndim == 3
            assert np.isfinite(affine).all()
        return
    try:
        parts = list(preprocessor.handle(message, _delivery).publish)
    except InvalidInput as error:
        readable(error)
        return
    assert parts
    for part in (parts[0], parts[-1]):
        assert isinstance(part, SlicesMessage)
        assert np.isfinite(part.image).all()
        again = decode(encode(part, "lz4"))
        assert again.geometry == part.geometry
        mask = np.ones((len(part.image), *part.geometry.size), np.uint8)
        assert restore(mask, part.geometry).shape == tuple(part.geometry.shape)


def _head() -> np.ndarray:
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (10, 12, 5)), indexing="ij")
    return (i**2 + j**2 + k**2 < 0.8) * (300.0 + 40 * i) + 200.0 * ((i - 0.3) ** 2 + j**2 + k**2 < 0.1)


_FLAIR = Source(data=nib.Nifti1Image(_head().astype("i2"), np.diag([15.0, 15, 20, 1])).to_bytes())


def seeds() -> list[bytes]:
    files = []
    head = _head()
    turned = np.array([[0, -16.0, 0, 5], [15, 0, 0, 6], [0, 0, 20, 7], [0, 0, 0, 1]])
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for dtype in ("i1", "u1", "i2", ">i2", "u2", "i4", "i8", "u8", "f4", ">f4", "f8"):
            image = kind(
                head.astype(dtype), turned if "2" in dtype else np.diag([15.0, 15, 20, 1]), dtype=np.dtype(dtype)
            )
            if dtype == "i2":
                image.header.set_slope_inter(0.5, -3)
            if dtype == "f4":
                image.set_qform(turned, 1)
                image.set_sform(None, 0)
            files.append(image.to_bytes())
    four = np.stack([head, head + 5], axis=3).astype(np.int16)
    files.append(nib.Nifti1Image(four, np.diag([15.0, 15, 20, 1])).to_bytes())
    files.append(nib.Nifti1Image(head[..., None].astype(np.int16), np.diag([15.0, 15, 20, 1])).to_bytes())
    files += [
        gzip.compress(files[2]),
        gzip.compress(files[2][:400]) + gzip.compress(files[2][400:]),
        files[2] + b"tail",
    ]
    files += [gzip.compress(files[-6], 1), gzip.compress(b"") * 9 + gzip.compress(files[5])]
    return files


# offset and struct format of the fields that nifti.py reads (nifti1.h, nifti2.h of the NIfTI standard)
FIELDS_1 = [
    (0, "i"),
    *((40 + 2 * n, "h") for n in range(8)),
    (70, "h"),
    (72, "h"),
    *((76 + 4 * n, "f") for n in range(8)),
    (108, "f"),
    (112, "f"),
    (116, "f"),
    (123, "B"),
    (252, "h"),
    (254, "h"),
    *((256 + 4 * n, "f") for n in range(18)),
    (344, "4s"),
    (348, "4s"),
]
FIELDS_2 = [
    (0, "i"),
    (4, "8s"),
    (12, "h"),
    (14, "h"),
    *((16 + 8 * n, "q") for n in range(8)),
    *((104 + 8 * n, "d") for n in range(8)),
    (168, "q"),
    (176, "d"),
    (184, "d"),
    (344, "i"),
    (348, "i"),
    *((352 + 8 * n, "d") for n in range(18)),
    (500, "i"),
]
WHOLE = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    24,
    32,
    64,
    128,
    256,
    348,
    352,
    512,
    540,
    544,
    768,
    1024,
    1280,
    1536,
    2304,
    -1,
    -2,
    127,
    4096,
    4097,
    32767,
    -32768,
    2**31 - 1,
    2**40,
    2**63 - 1,
]
REAL = [
    0.0,
    1.0,
    -1.0,
    0.5,
    0.01,
    0.1,
    100.0,
    101.0,
    1e-9,
    1e9,
    1e30,
    3e38,
    -3e38,
    1e-40,
    352.0,
    351.5,
    544.0,
    float("nan"),
    float("inf"),
    float("-inf"),
]
VOXELS = [float("nan"), float("inf"), 3e38, -3e38, 1e300, 0.0, -1000.0, 1e-40]
WORDS = [b"n+1\0", b"n+2\0\r\n\x1a\n", b"ni1\0", b"\x1f\x8b\x08\x00", struct.pack("<i", 348), struct.pack("<i", 540)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change fields of the header and voxels inside the gzip stream, and sometimes add or omit the compression."""
    raw = bytearray(data)
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.9:
        try:
            raw = bytearray(gzip.decompress(data)[: 2**16])
        except Exception:
            return data[: rng.randrange(len(data) + 1)] + gzip.compress(b"x" * rng.randrange(99))
    two = raw[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
    end = ">" if raw[:2] == b"\0\0" else "<"
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.7:
            offset, form = rng.choice(FIELDS_2 if two else FIELDS_1)
            size = struct.calcsize(form)
            if form[-1] == "s":
                value: object = rng.choice([b"n+1\0", b"ni1\0", rng.randbytes(size)])
            elif form in "fd":
                value = rng.choice(REAL)
            else:
                low, high = (0, 255) if form == "B" else (-(2 ** (8 * size - 1)), 2 ** (8 * size - 1) - 1)
                value = min(high, max(low, rng.choice(WHOLE)))
            if len(raw) >= offset + size:
                struct.pack_into(end + form, raw, offset, value)
        elif rng.random() < 0.5 and len(raw) > 600:  # voxels
            at = rng.randrange(544, len(raw) - 8)
            raw[at : at + 8] = rng.choice(
                [
                    struct.pack(end + "d", rng.choice(VOXELS)),
                    struct.pack(end + "f", rng.choice(VOXELS[:4])) * 2,
                    rng.randbytes(8),
                ]
            )
        elif rng.random() < 0.5:
            raw = raw[: rng.randrange(len(raw) + 1)]
        else:
            raw += bytes(rng.randrange(4096))
    mutated = bytes(raw)
    if rng.random() < 0.4:
        at = rng.randrange(len(mutated) + 1)
        members = gzip.compress(mutated[:at], 1) + gzip.compress(mutated[at:], 0)
        mutated = rng.choice([gzip.compress(mutated, 1), members])
    return mutated
