"""Whether this process can use a folder now (if not: the folder, its owner, and what to do), and as which user."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOM_BYTES = 64 * 2**20  # with less free space, the next file may not fit


def why_unwritable(folder: Path, room: int = ROOM_BYTES) -> str:
    """Why the folder cannot be written, or has less than ``room`` bytes free, with the remedy; empty: neither."""
    if problem := _problem(folder, os.W_OK | os.X_OK, "write into"):
        return problem
    free = shutil.disk_usage(folder).free
    return f"{folder}: only {free / 2**20:.0f} MiB are free on its disk: make room" if free < room else ""


def existing(folder: Path) -> Path:
    """The folder, or the first of its parents that exists: there it will be created."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def become_owner(folder: Path) -> None:
    """If this process was started as root (in a container), continue as the folder's owner, who then owns the files."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def why_unreadable(folder: Path) -> str:
    """Why the folder cannot be listed, with the remedy; empty: it can."""
    return _problem(folder, os.R_OK | os.X_OK, "read")


def _problem(folder: Path, access: int, verb: str) -> str:
    try:
        status = folder.stat()
    except OSError as error:
        return f"{folder}: {error.strerror}: create it, mount it, or name another folder"
    if not folder.is_dir():
        return f"{folder}: not a folder: name another one"
    if os.access(folder, access):
        return ""
    if access & os.W_OK and os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"{folder}: it is mounted read-only: mount it writable, or name another folder"
    user = os.getuid()
    return (
        f"{folder}: user {user} cannot {verb} it. It belongs to user {status.st_uid}, group {status.st_gid}, mode "
        f"{status.st_mode & 0o7777:04o}: chown or chmod it, or name another folder"
    )
