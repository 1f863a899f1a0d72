"""Files: read untrusted ones within limits, and write ours whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import resource
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

OPEN_FILES = 65_536
LEFT_S = 3600.0  # a temporary file as old as this has no writer any more
READ_NO_WAIT = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # opening a pipe otherwise blocks until a writer opens it


class UnsafeFile(ValueError):
    """A file that is not read: it leads out of its folder, is not a regular file, or is too large."""


def write_whole(path: Path, content: str | bytes, *, sync: bool = False, new: bool = False) -> None:
    """Write a file (text as UTF-8) so that ``path`` never holds half of it. See ``whole_file``."""
    with whole_file(path, sync=sync, new=new) as part, part.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(
    path: Path, *, ending: str = ".part", sync: bool = False, sweep: bool = False, new: bool = False
) -> Iterator[Path]:
    """Give a temporary path beside ``path``, and rename it to ``path`` when the block ends without an error.

    After an error, the temporary file is removed. A process that is killed leaves at most ``.<name>.<random><ending>``.

    Parameters
    ----------
    ending: for a library that chooses the format by the name: ``.part.nii.gz``.
    sync: return only when the content and the new name are on the disk (fsync of the file and of its folder).
    sweep: remove what processes that were killed over an hour ago left of this file.
    new: never replace a file: raise FileExistsError if ``path`` exists, also if another process has just written it.
    """
    if sweep:
        _sweep(path.parent.glob(f".{glob.escape(path.name)}.*{ending}"))
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}{ending}")
    try:
        yield part
        if sync:
            fsync_path(part)
        if new:
            _rename_to_new(part, path)
        else:
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync:
        fsync_path(path.parent)


def _sweep(parts: Iterable[Path]) -> None:
    """Remove the files that have no writer any more."""
    for part in parts:
        with suppress(FileNotFoundError):  # another process removed or renamed it
            if time.time() - part.stat().st_mtime > LEFT_S:
                part.unlink()


def allow_open_files() -> None:
    """Raise this process's limit of open files to what the system allows, at most OPEN_FILES; 1,024 is usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS has another limit, which is not shown here
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def lock(file: IO[Any]) -> None:
    """Lock an open file until it is closed. On a network file system without locks, nothing happens.

    Raises
    ------
    BlockingIOError: another open file has the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # CIFS answers EACCES
        raise BlockingIOError(*error.args) from None
    except OSError:
        pass


def _rename_to_new(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path``. Raises FileExistsError: ``path`` exists."""
    try:
        os.link(part, path)  # unlike a rename, it fails if the path exists
        part.unlink()
    except FileExistsError:
        raise
    except OSError:  # a volume without hard links (SMB, FUSE): one process at a time checks and renames
        with path.with_name(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            part.rename(path)


def fsync_path(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def private_folder(path: Path) -> Path:
    """``path``, a folder that only gliaflow uses: it is for this user alone, created so or closed.

    Missing parents are created so too. Parents that exist stay as they are: their user may share them.

    Raises
    ------
    OSError: the folder cannot be created, or ``path`` or the link there belongs to another user.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(0o700, exist_ok=True)
    for status in (path.lstat(), path.stat()):
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "belongs to another user", str(path))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o700)
    return path


def read_within(folder: Path, path: Path, limit: int) -> bytes:
    """The bytes of ``path``, which must be inside ``folder`` after all links are followed.

    The file that is checked is the file that is read, even if links or the file change meanwhile: each folder is
    opened from its parent without following links, and the limit is checked again while reading. Pipes and devices
    do not block.

    Raises
    ------
    UnsafeFile: the path leads out of the folder, is not a regular file, or is over the limit.
    OSError: the file does not exist or cannot be read.
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
            below = os.open(part, READ_NO_WAIT | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        at = below
    with os.fdopen(at, "rb", buffering=0) as file:
        status = os.fstat(at)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFile("is not a regular file")
        if status.st_size > limit:
            raise UnsafeFile(f"{status.st_size} bytes is over the limit of {limit}")
        chunks, size = [], 0
        while size <= limit and (chunk := file.read(max(2**16, status.st_size - size))):
            chunks.append(chunk)
            size += len(chunk)
    if size > limit:
        raise UnsafeFile(f"grew over the limit of {limit} bytes while it was read")
    return b"".join(chunks)
