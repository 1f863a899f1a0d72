"""Whether only one user can change the code in a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS = stat.S_IWGRP | stat.S_IWOTH


def who_else_may_write(folder: Path) -> str:
    """The first path in ``folder`` that a user other than its owner and root may change, and the remedy; or empty.

    All paths count, not only the plugins: a plugin imports the modules beside it, and Python prefers ``.pyc`` files.
    The owner may be another user than this process, as in a container. The operator, who names the folder, trusts its
    owner.
    """
    owners = {0, folder.stat().st_uid}
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid not in owners | {os.geteuid()}:
            return f"uid {status.st_uid}, who owns {parent}, may replace {folder}: move it below a folder of its owner"
        if status.st_mode & OTHERS and not status.st_mode & stat.S_ISVTX:
            return f"other users may replace {folder}, because they may write {parent}: chmod go-w {parent}"
    for path in (folder, *_below(folder)):
        status = path.lstat()
        if status.st_uid not in owners:
            return f"{path} belongs to another user than {folder} (uid {status.st_uid}): chown it, or remove it"
        if stat.S_ISLNK(status.st_mode):
            if not Path(os.path.realpath(path)).is_relative_to(folder):
                return f"{path} is a link out of the folder: copy the file instead"
        elif status.st_mode & OTHERS:
            return f"other users may write {path}: chmod -R go-w {folder}"
    return ""


def _below(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        yield from (Path(name, below) for below in sorted(folders + files))
