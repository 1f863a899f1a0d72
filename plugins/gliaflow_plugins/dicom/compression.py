"""The transfer syntaxes that gliaflow reads, and the size that a compressed frame itself states.

A decoder allocates what the codestream states, so that must equal the header's Rows and Columns before a decoder runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

NATIVE = frozenset(
    (
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    )
)
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSY = frozenset(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"))  # Baseline, Extended
JPEG = JPEG_LOSSY | {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}  # Lossless, Lossless SV1
JPEG_LS = frozenset(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"))
JPEG_2000 = frozenset(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"))
HTJ2K = frozenset(("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"))
ENCAPSULATED = frozenset((RLE, *JPEG, *JPEG_LS, *JPEG_2000, *HTJ2K))
MAYBE_LOSSY = frozenset(("1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"))

JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
FRAME_MARKERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15, and SOF55 of JPEG-LS
ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment
MAX_MARKERS = 10_000


def is_lossy(syntax: str, flag: str) -> bool:
    """Whether the pixels differ from those of the scanner. ``flag``: LossyImageCompression."""
    return flag == "01" or syntax in JPEG_LOSSY or (syntax in MAYBE_LOSSY and flag != "00")


def check_frame(syntax: str, frame: bytes, rows: int, columns: int, bits: int) -> None:
    """Raise ValueError if the compressed frame does not state this size, one grey channel and at most ``bits``."""
    read: Callable[[bytes], tuple[int, int, int, int]]
    if syntax == RLE:
        _check_rle(frame, bits)
        return
    read = _jpeg if syntax in JPEG | JPEG_LS else _jpeg_2000
    try:
        height, width, channels, depth = read(frame)
    except (struct.error, IndexError):
        raise ValueError("its compressed pixel data are damaged") from None
    if (height, width) != (rows, columns):
        raise ValueError(f"its compressed pixel data are {height} × {width}; Rows and Columns say {rows} × {columns}")
    if channels != 1:
        raise ValueError(f"its compressed pixel data have {channels} colour channels")
    if not 1 <= depth <= bits:
        raise ValueError(f"its compressed pixel data have {depth} bits; BitsAllocated says {bits}")


def _check_rle(frame: bytes, bits: int) -> None:
    """PS3.5, annex G: a header of 64 bytes, then one segment for each byte of a pixel."""
    if len(frame) < 64 or struct.unpack("<I", frame[:4])[0] != bits // 8:
        raise ValueError(f"its RLE pixel data are damaged, or have other than {bits // 8} segments")


def _jpeg(frame: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, channels and bits of the frame header (ISO 10918-1, B.2.2)."""
    if frame[:2] != b"\xff\xd8":
        raise IndexError
    at = 2
    for _ in range(MAX_MARKERS):
        while frame[at] == 0xFF and frame[at + 1] == 0xFF:
            at += 1
        if frame[at] != 0xFF:
            raise IndexError
        marker = frame[at + 1]
        if marker in FRAME_MARKERS:
            depth, height, width, channels = struct.unpack(">BHHB", frame[at + 4 : at + 10])
            return height, width, channels, depth
        if marker == 0xDA:  # the scan: no frame header before it
            raise IndexError
        at += 2 if marker in ALONE else 2 + int(struct.unpack(">H", frame[at + 2 : at + 4])[0])
    raise IndexError


def _jpeg_2000(frame: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, channels and bits of the SIZ segment (ISO 15444-1, A.5.1), which is the first one."""
    at = 0
    if frame.startswith(JP2_SIGNATURE):
        at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if frame[at : at + 4] != b"\xff\x4f\xff\x51":
        raise IndexError
    width, height, x, y, tile_width, tile_height = struct.unpack(">6I", frame[at + 8 : at + 32])
    channels = struct.unpack(">H", frame[at + 40 : at + 42])[0]
    depth = (frame[at + 42] & 0x7F) + 1
    tiles = (width // max(tile_width, 1) + 1) * (height // max(tile_height, 1) + 1)
    if tiles > 2**16:
        raise IndexError
    return height - y, width - x, channels, depth
