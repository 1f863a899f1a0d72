"""Open untrusted files of this machine.

A pipe or a device is an error, and does not block. A file that belongs to another one is in the same folder.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; links are followed. Raises OSError also for a folder, a pipe or a device."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe would block until a writer opens it
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(file, "rb")


def beside(path: Path, name: str) -> Path:
    """The real path of the file ``name`` in the folder of ``path``; if ``path`` is a link, also where that leads.

    Raises ValueError if it is a link to another folder, except into DataLad's store of the same data set.
    """
    folder, real = (Path(os.path.realpath(each)) for each in (path.parent, path.with_name(name)))
    stores = [up / ".git/annex/objects" for up in (folder, *folder.parents)]
    if not any(real.is_relative_to(place) for place in (folder, Path(os.path.realpath(path)).parent, *stores)):
        raise ValueError(f"{name}, which belongs to it, is a link to another folder")
    return real
