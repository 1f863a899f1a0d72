"""The spool: received images on the disk, within limits. All names in it are hashes.

::

    incoming/<random>                            an object that is being received; emptied at the start
    studies/<study>/<series>/<image>.dcm         images that were answered with 0x0000
    studies/<study>/<series>/.clean              the last association that stored into this series ended with a release,
                                                 and no image of it was refused
    studies/<study>/<series>/.broken             the last association was aborted or lost, or an image of it was refused
    studies/<study>/.reads                       how often reading this study has begun
    studies/<study>/.complete                    a person said that no more images come (gliaflow dicom retry)
    aside/<study>/…                              studies that wait for a person (aside.py)
    answers/<answer>/…                           answers, until they are delivered and for some days (answers.py)

An image gets its name in ``studies`` only when it is on the disk (fsync of the file, then of the folder), so a process
that is killed at any moment leaves whole images. ``.clean`` and ``.broken`` are removed before an association's first
image is kept, so a series has neither if the process was killed before the association ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Literal
from uuid import uuid4

from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import fsync_path, private_folder
from gliaflow_runtime.folders import why_unwritable
from gliaflow_runtime.settings import Settings

from gliaflow_dicom.node.metrics import SPOOL_BYTES, SPOOL_LIMIT

MAX_STUDIES = 1000
MAX_SERIES = 500  # of a study
MAX_IMAGES = 5000  # of a series
CHECK_BYTES = 2**20  # the free disk is checked each time so many bytes were written; so many must always be free
COUNT_S = 3600.0  # until the bytes are counted again
FOLDERS = ("incoming", "studies", "aside", "answers")
CLEAN, BROKEN = ".clean", ".broken"
READS = ".reads"
COMPLETE = ".complete"
REASON = "reason.json"


@dataclass(frozen=True)
class SpoolLimits:
    """The most bytes in the spool, the least free bytes on its disk, and the most bytes of one object."""

    total: int
    free: int
    one: int

    @classmethod
    def of(cls, settings: Settings) -> SpoolLimits:
        return cls(
            total=int(settings.dicom_spool_gib * 2**30),
            free=int(settings.dicom_free_gib * 2**30),
            one=int(settings.dicom_object_mib * 2**20),
        )


@dataclass(frozen=True)
class ImageUids:
    """Where an image belongs."""

    study: str
    series: str
    image: str


def hashed(uid: str) -> str:
    """The name of a UID in the spool and in logs."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


class Spool:
    """The spool of one node. Threads share it.

    Raises
    ------
    UsageError: another process uses the folder.
    OSError: it cannot be created or written.
    """

    def __init__(self, folder: Path, limits: SpoolLimits) -> None:
        self.folder, self.limits = private_folder(folder), limits
        if problem := why_unwritable(folder, 0):
            raise OSError(problem)
        self._lock_file = _lock(folder)
        for name in FOLDERS:
            private_folder(folder / name)
        for left in (folder / "incoming").iterdir():
            left.unlink()
        for left in (folder / "answers").glob(".*"):
            shutil.rmtree(left)
        self.changing = threading.Lock()  # held while images get their names or are moved away
        self._counting = threading.Lock()
        self._bytes = 0
        self._aside: set[str] = set()  # the folders in ``aside``
        self.count()
        SPOOL_LIMIT.set(limits.total)

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock_file.close()

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def aside(self) -> Path:
        return self.folder / "aside"

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    def count(self) -> None:
        """Count the bytes in the spool. Images that are received meanwhile may be counted twice."""
        before, self._counted = self._bytes, time.monotonic()
        counted = sum(_size(Path(root, name)) for root, _, names in os.walk(self.folder) for name in names)
        self.add_bytes(counted - before)

    def count_again(self) -> None:
        """Count if studies have left ``aside``, since a person may have deleted them; or if an hour is over."""
        aside = {folder.name for folder in self.aside.iterdir()}
        left, self._aside = self._aside - aside, aside
        if left or time.monotonic() - self._counted > COUNT_S:
            self.count()

    def add_bytes(self, count: int) -> None:
        """Count bytes that are written (or with a negative number, removed)."""
        with self._counting:
            self._bytes += count
            SPOOL_BYTES.set(self._bytes)

    def why_full(self) -> str:
        """Why the spool takes no more images, with the remedy; empty: it does."""
        if self._bytes >= self.limits.total:
            return (
                f"the spool is full ({self._bytes / 2**30:.1f} GiB): delete studies that are set aside (gliaflow dicom "
                "list), check that the destinations of --to accept answers, or raise dicom_spool_gib"
            )
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free < CHECK_BYTES:
            return "the spool's disk is full: make room"
        if free < self.limits.free:
            return (
                f"only {free / 2**30:.1f} GiB are free on the spool's disk: make room, or lower dicom_free_gib (the "
                "space that must stay free)"
            )
        if disk.f_files and not disk.f_favail:
            return "the spool's disk has no free inodes: delete files there"
        return ""

    def receive(self, head: bytes) -> IncomingImage:
        """An image of which the data set follows. ``head``: what its file begins with."""
        return IncomingImage(self, head)

    def keep(self, image: IncomingImage, uids: ImageUids) -> Literal["kept", "full"]:
        """Give a received image its place; return when file and name are on the disk."""
        image.sync()
        series = self.studies / hashed(uids.study) / hashed(uids.series)
        with self.changing:
            if not _has_room(series, self.studies):
                return "full"
            for folder in (series.parent, series):
                if not folder.exists():
                    folder.mkdir(0o700, exist_ok=True)
                    fsync_path(folder.parent)
            place = series / f"{hashed(uids.image)}.dcm"
            replaced = _size(place)
            image.path.replace(place)
            fsync_path(series)
            image.kept = True
        self.add_bytes(-replaced)
        return "kept"

    def expect_more(self, study: str, series: str) -> None:
        """Note that an association stores into a series (names of folders). ``keep`` then brings it to the disk."""
        (self.studies / study / COMPLETE).unlink(missing_ok=True)
        for mark in (CLEAN, BROKEN):
            (self.studies / study / series / mark).unlink(missing_ok=True)

    def mark(self, study: str, series: str, *, clean: bool) -> None:
        """Note how the last association of a series ended, and return when that is on the disk."""
        folder = self.studies / study / series
        with contextlib.suppress(FileNotFoundError):
            (folder / (CLEAN if clean else BROKEN)).touch(0o600)
            fsync_path(folder)

    def ending(self, study: str, series: str) -> Literal["clean", "broken", "killed"]:
        """How the last association of a series ended; ``killed``: the process ended before it."""
        folder = self.studies / study / series
        return "clean" if (folder / CLEAN).exists() else "broken" if (folder / BROKEN).exists() else "killed"

    def declared(self, study: str) -> tuple[str, ...] | None:
        """If a person said that no more images of a study come: which series to take, if they said that too."""
        try:
            return tuple(json.loads((self.studies / study / COMPLETE).read_text()))
        except FileNotFoundError:
            return None

    def images(self, study: str) -> dict[str, int]:
        """Each image of a study, ``<series>/<image>.dcm``, with the time of its last change in ns."""
        folder = self.studies / study
        return {
            path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
            for path in sorted(folder.glob("*/*.dcm"))
            if path.is_file()
        }

    def delete_images(self, study: str, images: dict[str, int]) -> None:
        """Delete those of these images that have not been replaced since, and folders without images."""
        folder = self.studies / study
        freed = 0
        with self.changing:
            for name, changed in images.items():
                path = folder / name
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime_ns == changed:
                        freed += _size(path)
                        path.unlink()
            for series in [*folder.glob("*/")]:
                _remove_if_empty(series)
            _remove_if_empty(folder)
        self.add_bytes(-freed)

    def waiting(self) -> list[str]:
        """The studies without an answer."""
        return sorted(folder.name for folder in self.studies.iterdir() if folder.is_dir())

    def begin_reading(self, study: str) -> int:
        """How often reading this study has begun without an end: a file that crashes the process is read few times."""
        times = self.unfinished_reads(study) + 1
        with contextlib.suppress(OSError), (self.studies / study / READS).open("ab") as file:  # the disk may be full
            file.write(b".")
        return times

    def unfinished_reads(self, study: str) -> int:
        """How often the process has ended while it read this study, or others with it."""
        return _size(self.studies / study / READS)

    def end_reading(self, study: str) -> None:
        """The study was read without a crash."""
        (self.studies / study / READS).unlink(missing_ok=True)


class IncomingImage(BytesIO):
    """One object while it is received: pynetdicom writes its data set here, and it goes to the disk.

    ``refusal``: why no more of it is kept. What follows is thrown away.
    """

    def __init__(self, spool: Spool, head: bytes) -> None:
        super().__init__()
        self.path = spool.incoming / uuid4().hex
        self.refusal: Literal["", "full", "large"] = ""
        self.kept = False
        self._spool = spool
        self._size = 0
        self._next_check = 0
        self._file: IO[bytes] | None = None
        try:
            self._file = os.fdopen(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
        except OSError:
            self._refuse("full")
        self.write(head)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append to the file, as long as the limits allow."""
        if self._file is None:
            return len(data)
        if self._size + len(data) > self._spool.limits.one:
            self._refuse("large")
            return len(data)
        if self._size >= self._next_check:
            self._next_check = self._size + CHECK_BYTES
            if self._spool.why_full():
                self._refuse("full")
                return len(data)
        try:
            self._file.write(data)
        except OSError:
            self._refuse("full")
        else:
            self._size += len(data)
            self._spool.add_bytes(len(data))
        return len(data)

    def sync(self) -> None:
        """Return when all data are on the disk. Raises OSError."""
        if self._file is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def flush_to_read(self) -> None:
        """Let the file be read at ``path``. Raises OSError."""
        if self._file is not None:
            self._file.flush()

    def discard(self) -> None:
        """Remove what was received, unless it has its place in the spool."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        if not self.kept:
            self.path.unlink(missing_ok=True)
            self._spool.add_bytes(-self._size)
        self._size, self._file = 0, None

    def _refuse(self, refusal: Literal["full", "large"]) -> None:
        self.discard()
        self.refusal = refusal


def _has_room(series: Path, studies: Path) -> bool:
    """Whether one more image fits into the numbers of studies, series and images."""
    if series.exists():
        return sum(1 for _ in os.scandir(series)) < MAX_IMAGES
    if series.parent.exists():
        return sum(1 for _ in os.scandir(series.parent)) < MAX_SERIES
    return sum(1 for _ in os.scandir(studies)) < MAX_STUDIES


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder in which there are no images and no folders."""
    for name in (CLEAN, BROKEN, READS, COMPLETE, REASON):
        if not any(folder.glob("*.dcm")) and not any(folder.glob("*/")):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def _lock(folder: Path) -> IO[bytes]:
    """Lock the folder until the file is closed. Raises UsageError: another process has locked it."""
    file = os.fdopen(os.open(folder / ".lock", os.O_CREAT | os.O_WRONLY, 0o600), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"{folder}: another `gliaflow dicom` uses this spool: stop it, or name another folder with --spool"
        ) from None
    return file
