"""Files that clients upload: where they are stored, and under which names.

The names are untrusted. A file keeps its name, inside a private folder of its upload, so that scans, patients and
warnings have the names that ``gliaflow submit`` gives them.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from uuid import uuid4

MAX_NAME_BYTES = 255  # of one file or folder, as file systems allow
MAX_PATH_BYTES = 1024
MAX_DEPTH = 16
MAX_FILES = 50_000  # of one folder


class BadName(ValueError):
    """A name under which no file can be stored. The text gives the reason and the remedy, without the name."""


@dataclass(eq=False)
class Upload:
    """The files of one upload: one file, or a folder of files.

    Parameters
    ----------
    id: 32 hexadecimal digits.
    folder: private to this upload. Its files are in ``folder / "files"``.
    created: seconds since 1970.
    size: the bytes of its files, of those that are being received, and of its answers. ``count`` changes it.
    """

    id: str
    folder: Path
    created: float = field(default_factory=time.time)
    size: int = 0
    _names: set[str] = field(default_factory=set)
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def files(self) -> Path:
        """The folder of the files."""
        return self.folder / "files"

    def place(self, name: str) -> Path:
        """The path for a file with this untrusted, relative name, in a folder that exists.

        Raises
        ------
        BadName: no file can be stored under this name.
        FileNotFoundError: the upload is closed.
        """
        relative = clean_name(name)
        with self._lock:
            self._check_open()
            if len(self._names) >= MAX_FILES and str(relative) not in self._names:
                raise BadName(f"a folder of more than {MAX_FILES} files: upload fewer files")
            self._names.add(str(relative))
        path = self.files / relative
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadName(
                "name: a file of this upload is named as the folder of this one: rename one of them"
            ) from None
        if path.is_dir():
            raise BadName("name: a folder of this upload has this name: rename one of them")
        return path

    def part(self) -> Path:
        """A path for a file that is being received, outside ``files``. Raises FileNotFoundError: it was discarded."""
        with self._lock:
            self._check_open()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder / f"part-{uuid4().hex}"

    def add(self, part: Path, name: str) -> None:
        """Move a received file to its place. Raises as ``place`` does."""
        path = self.place(name)
        with self._lock:
            self._check_open()
            replaced = path.stat().st_size if path.exists() else 0
            try:
                part.replace(path)
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                    raise
                raise BadName("name: the disk of the console's folder does not take it: rename the file") from None
            self.size -= replaced

    def count(self, size: int) -> None:
        """Add so many bytes to ``size``."""
        with self._lock:
            self.size += size

    def measure(self) -> None:
        """Set ``size`` to the bytes on the disk. Reads files."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        with self._lock:
            self.size = size

    def _check_open(self) -> None:
        """Raise FileNotFoundError if no further files are added: a late one must not create folders again."""
        if self._closed:
            raise FileNotFoundError(errno.ENOENT, "the upload is complete or was discarded")

    def close(self) -> None:
        """Add no further files."""
        with self._lock:
            self._closed = True

    def reopen(self) -> None:
        """Files may be added again."""
        with self._lock:
            self._closed = False

    def named_root(self) -> Path:
        """The folder that its sender uploaded: the only folder in ``files``, if there is nothing else, or ``files``."""
        entries = list(self.files.iterdir()) if self.files.is_dir() else []
        return entries[0] if len(entries) == 1 and entries[0].is_dir() else self.files

    def discard(self) -> None:
        """Delete its files."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def clean_name(name: str) -> PurePosixPath:
    r"""The relative path of a file from its untrusted name. ``\`` separates as ``/`` does.

    Raises
    ------
    BadName: the name is empty, leads out of its folder, is too long, or has characters that no name of a file has.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        raise BadName("name: missing: name the file, as in ?name=scan.nii.gz")
    if ".." in parts:
        raise BadName("name: leads out of its folder (..): give the path inside the folder that you upload")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise BadName("name: has a control character, or is not UTF-8: rename the file")
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES or len("/".join(parts).encode()) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise BadName(
            f"name: too long: at most {MAX_NAME_BYTES} bytes a file or folder, {MAX_PATH_BYTES} in all, and "
            f"{MAX_DEPTH} folders deep: rename the file or upload a folder further down"
        )
    return PurePosixPath(*parts)
