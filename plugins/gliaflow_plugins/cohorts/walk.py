"""The files under a folder: DICOM files, and those that cannot be read as they are (links, files not fetched)."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from gliaflow_plugins.cohorts.image_names import is_image
from gliaflow_plugins.left_out import LeftOut

POINTER_BYTES = 32768  # git-annex: a larger file is no pointer
ANNEX = re.compile(r"[/\\]annex[/\\]objects[/\\]")
TEXTS = (
    ".json",
    ".txt",
    ".csv",
    ".tsv",
    ".bval",
    ".bvec",
    ".mat",
    ".md",
    ".xml",
    ".html",
    ".pdf",
    ".png",
    ".jpg",
    ".log",
)
OTHER_FORMATS = (".mnc", ".brik", ".head", ".par", ".rec", ".gipl", ".npy", ".npz", ".b2nd", ".tif", ".tiff")
DICOM_ENDINGS = (".dcm", ".ima")


def walk(root: Path, left_out: list[LeftOut]) -> dict[Path, os.stat_result | None]:
    """The visible files under ``root``, sorted, with their status, or None if it cannot be read (a broken link, say).

    Links to folders are followed, each folder once. Passed over: hidden files and folders, and what a pipeline derived
    from a BIDS dataset (``derivatives``). A folder that is passed over for another reason is added to ``left_out``.
    """
    real_root = os.path.realpath(root)
    seen = {real_root}
    files: dict[Path, os.stat_result | None] = {}
    folders, links = deque([(root, real_root)]), deque[Path]()
    while folders or links:
        folder, real = folders.popleft() if folders else ((link := links.popleft()), os.path.realpath(link))
        around = real_root.startswith(real.rstrip(os.sep) + os.sep)
        if folder is not root and (around or real in seen):
            why = "which contains it" if around else "which is searched already"
            left_out.append(LeftOut(folder, f"a link to the folder {real}, {why}", "repeated folder"))
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            left_out.append(LeftOut(folder, f"cannot be opened: {error.strerror}", "unreadable folder"))
            continue
        names = {entry.name for entry in entries}
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = folder / entry.name
            try:
                status = entry.stat()
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not entry.is_symlink():
                    continue  # it was removed meanwhile
                status = None
            if status is None or not stat.S_ISDIR(status.st_mode):
                files[path] = status
            elif is_derived(entry.name, names):
                left_out.append(derived_folder(path))
            elif entry.is_symlink():
                links.append(path)
            else:
                folders.append((path, f"{real.rstrip(os.sep)}{os.sep}{entry.name}"))
    return dict(sorted(files.items(), key=lambda item: item[0]))


def status_of(path: Path) -> os.stat_result | None:
    """The status of the file to which the path leads; None if it cannot be read."""
    try:
        return path.stat()
    except OSError:
        return None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is passed over, and not even counted."""
    return name.startswith(".") or name == "__MACOSX"


def derived_folder(path: PurePath) -> LeftOut:
    """A folder for which ``is_derived`` is true."""
    return LeftOut(path, "what a pipeline derived from the scans, or their source", "derived folder")


def is_derived(name: str, beside: set[str]) -> bool:
    """Whether a folder of that name holds no scans of a BIDS dataset; ``beside``: the names in the same folder."""
    if name == "sourcedata":
        return "dataset_description.json" in beside or any(each.startswith("sub-") for each in beside)
    return name == "derivatives"


def unusable(path: Path, status: os.stat_result | None = None) -> LeftOut | None:
    """Why a file on this machine cannot be submitted; None: it can. ``status``: its status, if it is known."""
    try:
        status = status or path.stat()
    except FileNotFoundError as error:
        return _broken(path, error) if _names_image(path) or ANNEX.search(_target(path)) else None
    except OSError as error:  # it may be a folder
        return _broken(path, error)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block for ever
        return LeftOut(path, "not a regular file", "unreadable file") if _names_image(path) else None
    if reason := by_ending(path):
        return reason
    return _pointer(path) if status.st_size < POINTER_BYTES and _names_image(path) else None


def by_ending(path: PurePath) -> LeftOut | None:
    """Why a file of this ending cannot be submitted; None: the ending does not show it."""
    suffix = path.suffix.casefold()
    if suffix in OTHER_FORMATS:
        why = f"{suffix} is a format that gliaflow does not read: convert it to NIfTI (.nii.gz)"
        return LeftOut(path, why, "unsupported file", suffix)
    return None


def is_dicom(path: Path, status: os.stat_result | None) -> bool:
    """Whether a file on this machine is a DICOM file: by its ending, or else by its first bytes (PS3.10, section 7.1).

    An index of DICOM files (``DICOMDIR``) is none.
    """
    if status is None or not stat.S_ISREG(status.st_mode) or path.name.casefold().startswith("dicomdir"):
        return False
    if named_dicom(path):
        return status.st_size >= POINTER_BYTES or _pointer(path) is None
    others = (*TEXTS, *OTHER_FORMATS)
    return not is_image(path.name) and path.suffix.casefold() not in others and _head(path, 132)[128:] == b"DICM"


def named_dicom(path: PurePath) -> bool:
    """Whether the file has an ending of DICOM."""
    return path.suffix.casefold() in DICOM_ENDINGS


def _names_image(path: PurePath) -> bool:
    return is_image(path.name) or named_dicom(path)


def not_fetched(path: PurePath, command: str) -> LeftOut:
    """A file whose content is elsewhere, and the command that fetches it."""
    return LeftOut(path, f"its content is not on this machine; to fetch it: {command}", "unfetched file")


def _broken(path: Path, error: OSError) -> LeftOut:
    target = _target(path)
    if ANNEX.search(target):
        return not_fetched(path, f"datalad get {path} (or: git annex get {path})")
    if target:
        missing = isinstance(error, FileNotFoundError)
        why = f"a broken link: {target} does not exist" if missing else f"a link that leads nowhere: {error.strerror}"
        return LeftOut(path, why, "broken link")
    return LeftOut(path, f"cannot be opened: {error.strerror}", "unreadable file")


def _pointer(path: Path) -> LeftOut | None:
    """A text that git-annex or Git LFS leaves in the place of a file which is not fetched."""
    head = _head(path, 256)
    if head.startswith(b"version https://git-lfs."):
        return not_fetched(path, f"git lfs pull --include {path.name}")
    if head.startswith((b"/annex/objects/", b".git/annex/objects/", b"../.git/annex")):
        return not_fetched(path, f"datalad get {path} (or: git annex get {path})")
    return None


def _target(path: Path) -> str:
    """The file to which a link leads, whether it exists or not; nothing: it is no link."""
    return os.path.realpath(path) if _is_link(path) else ""


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114 - where nothing can be read, Path.is_symlink raises


def _head(path: Path, count: int) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would block for ever
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def once(files: Mapping[Path, os.stat_result], left_out: list[LeftOut]) -> Iterator[Path]:
    """The files without those that are the same file as another one, by a link."""
    same: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path, status in files.items():
        same[status.st_dev, status.st_ino or id(path)].append(path)
    for paths in same.values():
        first, *others = sorted(paths, key=lambda path: (_is_link(path), path)) if paths[1:] else paths
        yield first
        left_out += [
            LeftOut(path, f"the same file as {first}", "repeated file")
            for path in others
            if first.absolute() != path.absolute()
        ]
