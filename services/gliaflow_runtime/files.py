"""Open a file that a stranger may have made: an ordinary one, within a folder, and read no more of it than a limit."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

AT_ONCE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # to open a pipe would otherwise wait for whoever writes to it


class UnsafeFile(ValueError):
    """A file that is not read: it leads out of the folder, is no ordinary file, or is too large."""


def read_within(folder: Path, path: Path, limit: int) -> bytes:
    """The bytes of ``path``, which lies in ``folder`` or beneath it once all links in it were followed.

    What was looked at is what is read, also where somebody changes links or the file meanwhile: the folders are
    entered one by one, by no link, and the limit holds for the reading itself. A pipe or a device is not waited for.

    Raises
    ------
    UnsafeFile: see there.
    OSError: it is not there, or may not be read.
    """
    root, real = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([root, real]) != root:
        raise UnsafeFile("leads out of the folder")
    parts = Path(real).relative_to(root).parts
    if not parts:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        try:
            below = os.open(part, AT_ONCE | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        at = below
    with os.fdopen(at, "rb", buffering=0) as file:
        status = os.fstat(at)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFile("is no ordinary file")
        if status.st_size > limit:
            raise UnsafeFile(f"{status.st_size} bytes is over the limit of {limit}")
        chunks, size = [], 0
        while size <= limit and (chunk := file.read(max(2**16, status.st_size - size))):
            chunks.append(chunk)
            size += len(chunk)
    if size > limit:
        raise UnsafeFile(f"grew over the limit of {limit} bytes while it was read")
    return b"".join(chunks)


def open_ordinary(path: Path) -> BinaryIO:
    """A file wherever it lies, to be read; links are followed. Raises OSError: also where it is a pipe or a device."""
    file = os.fdopen(os.open(path, AT_ONCE), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no ordinary file")
    return file
