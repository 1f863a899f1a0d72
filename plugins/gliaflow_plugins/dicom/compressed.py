"""Compressed frames, decoded in a child process: a decoder is C code, which a damaged frame may crash or stop.

The child (``decode``) has a memory limit and no secrets in its environment. Each frame has a time limit.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.dicom.compression import check_frame
from gliaflow_plugins.dicom.headers import Header
from gliaflow_plugins.dicom.images import DicomSlice
from gliaflow_plugins.regular_files import open_regular

SECONDS = 60.0  # for one frame, and the start of the child
ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
MAX_FRAGMENTS = 2**18
ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMPDIR", "VIRTUAL_ENV")


class CompressedFrames:
    """Decodes frames, one after the other, in one child process that starts with the first."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._path: Path | None = None
        self._frames: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None:
            self._child.kill()
            with self._child:  # closes its pipes and waits
                pass

    def read(self, each: DicomSlice, header: Header) -> NDArray[Any]:
        """The raw pixels of the frame. Raises ValueError if it is damaged, or if the decoder fails."""
        if self._path != each.path:
            self._frames = _frames_of(each.path, header)
            self._path = each.path
        fields = header.fields
        rows, columns = each.shape
        allocated = fields.whole("BitsAllocated") or 0
        frame = self._frames[each.frame]
        check_frame(header.syntax, frame, rows, columns, allocated)
        request = {
            "syntax": header.syntax,
            "rows": rows,
            "columns": columns,
            "bits_allocated": allocated,
            "bits_stored": fields.whole("BitsStored") or allocated,
            "pixel_representation": fields.whole("PixelRepresentation") or 0,
        }
        data = self._decode(request, frame, rows * columns * allocated // 8)
        return np.frombuffer(data, f"<u{allocated // 8}").reshape(rows, columns)

    def _decode(self, request: dict[str, object], frame: bytes, size: int) -> bytes:
        self._child = child = self._child or _start()
        assert child.stdin is not None
        assert child.stdout is not None
        too_slow = threading.Event()

        def stop() -> None:
            too_slow.set()
            child.kill()

        timer = threading.Timer(SECONDS, stop)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(request | {"bytes": len(frame)}).encode() + b"\n" + frame)
                child.stdin.flush()
            answer = child.stdout.read(1)
            data = child.stdout.read(size) if answer == b"+" else b""
            if len(data) == size:
                return data
            if answer == b"-":
                raise ValueError("its compressed pixel data are damaged, or not of its transfer syntax")
            if too_slow.is_set():
                raise ValueError(
                    f"the decoder took over {SECONDS:g} s; decompress the file (dcmdrle, dcmdjpeg or gdcmconv)"
                )
            raise ValueError("the decoder crashed on it: damaged, or too large for the decoder's memory")
        finally:
            timer.cancel()


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "gliaflow_plugins.dicom.decode"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def _frames_of(path: Path, header: Header) -> list[bytes]:
    """The compressed frames of a file, each joined from its fragments (PS3.5, A.4)."""
    assert header.pixels is not None
    with open_regular(path) as file:
        file.seek(header.pixels.start)
        table, *fragments = _items(file.read(max(0, header.size - header.pixels.start)))
    count = header.fields.whole("NumberOfFrames") or 1
    if count in (1, len(fragments)):
        return [b"".join(fragments)] if count == 1 else fragments
    frames: list[list[bytes]] = []
    if table:
        starts = set(struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4]))
        offset = 0
        for fragment in fragments:
            if offset in starts or not frames:
                frames.append([])
            frames[-1].append(fragment)
            offset += 8 + len(fragment)
    else:
        ended = True
        for fragment in fragments:
            if ended:
                frames.append([])
            frames[-1].append(fragment)
            ended = b"\xff\xd9" in fragment[-10:]  # the end of a JPEG image, perhaps padded
    if len(frames) != count:
        raise ValueError(f"NumberOfFrames: {count}, but its pixel data have {len(frames)} frames")
    return [b"".join(frame) for frame in frames]


def _items(data: bytes) -> list[bytes]:
    """The offset table, and the fragments after it. Raises ValueError if the end is missing."""
    items: list[bytes] = []
    at = 0
    while len(items) <= MAX_FRAGMENTS:
        tag, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if tag == SEQUENCE_END and items:
            return items
        if tag != ITEM or at + length > len(data):
            break
        items.append(data[at : at + length])
        at += length
    raise ValueError("cut short, or its compressed pixel data are damaged")
