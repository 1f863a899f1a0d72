"""A temporary folder with scans of patients, which must not stay on the disk, also if the console was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "gliaflow-console-"
LOCK = "lock"
NEW_S = 60.0  # a folder that is younger may not be locked yet


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a private folder and delete it at the end. Those that killed consoles of this user left are deleted too."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _delete_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / LOCK).open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_if_left(folder: Path) -> None:
    try:
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid != os.geteuid() or time.time() - status.st_mtime < NEW_S:
            return
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # it is in use, or is no folder of a console
        return
