"""An upload is whole or refused: a full disk cuts none short."""

from __future__ import annotations

import errno
import io

import pytest
from gliaflow_console.api.scans import _write
from gliaflow_console.bounds import StoreFull


class SmallDisk(io.RawIOBase):
    """A disk with ``room`` bytes, which takes at most 3 bytes in one write, as a nearly full disk does."""

    def __init__(self, room: int) -> None:
        self.room, self.data = room, b""

    def write(self, data: object) -> int:
        part = bytes(memoryview(data)[: min(3, self.room - len(self.data))])  # type: ignore[arg-type]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += part
        return len(part)


def test_a_short_write_is_continued() -> None:
    disk = SmallDisk(100)
    _write(disk, b"0123456789")
    assert disk.data == b"0123456789"


def test_a_full_disk_is_named_with_the_remedy() -> None:
    with pytest.raises(StoreFull, match="the disk of the console's folder is full: make room"):
        _write(SmallDisk(5), b"0123456789")
