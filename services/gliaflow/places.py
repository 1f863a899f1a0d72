"""What a user names: files, folders, globs and URLs, and the files behind them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

import fsspec
from gliaflow_plugins.cohorts.image_names import is_image
from gliaflow_plugins.cohorts.scan_files import Chooser, ScanFile
from gliaflow_plugins.cohorts.walk import LeftOut, by_ending, is_derived, unusable, walk
from gliaflow_runtime.errors import UsageError, describe_error


@dataclass(frozen=True)
class Places:
    """The scans behind the paths and URLs that a user gave, and what was left out.

    Local paths are absolute. ``bases``: the folder, or a glob's fixed part, of each path that the user gave. ``uris``:
    of the scans in a store.
    """

    scans: list[ScanFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    bases: list[PurePath] = field(default_factory=list)
    uris: dict[PurePath, str] = field(default_factory=dict)

    def relative(self, path: PurePath) -> str:
        """The path relative to what the user gave: to the folder, or to the folder that all given paths share."""
        base = _common(self.bases)
        text = os.path.relpath(path, base) if base is not None else path.name
        return text.replace(os.sep, "/").encode("utf-8", "replace").decode("utf-8")


class StoreFiles:
    """The files of a store, for ``dataset.json``."""

    def __init__(self, store: fsspec.AbstractFileSystem) -> None:
        self._store = store

    def names(self, folder: PurePath) -> list[str]:
        """See ``Files.names``."""
        try:
            return [PurePosixPath(place).name for place in self._store.ls(str(folder), detail=False)]
        except Exception:  # each protocol has its own errors
            return []

    def read(self, path: PurePath) -> bytes | None:
        """See ``Files.read``."""
        try:
            return bytes(self._store.cat_file(str(path)))
        except Exception:  # each protocol has its own errors
            return None


def search(texts: Sequence[str], channel: str | None = None) -> Places:
    """The scans at these paths. One file that is named alone is always a scan.

    Raises
    ------
    UsageError: a path does not exist, a glob matches nothing, a store cannot be read, or a file is not fetched.
    """
    found = Places()
    local = [Path(os.path.normpath(Path(text).absolute())) for text in texts if "://" not in text]  # links stay
    for text in texts:
        if "://" in text:
            _search_store(text, found, channel, alone=len(texts) == 1)
    if len(texts) == 1 and local and not local[0].is_dir() and _exists(local[0]):
        _take(local[0], found, channel)
    elif local:
        _search_local(local, found, channel, alone=len(texts) == 1)
    return found


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _take(path: Path, found: Places, channel: str | None) -> None:
    reason = unusable(path)
    if reason is not None and reason.kind in ("unfetched file", "broken link"):
        raise UsageError(f"{path}: {reason.why}")
    found.bases.append(path.parent)
    found.scans.append(Chooser(wanted=channel).one(path))


def _search_local(paths: Sequence[Path], found: Places, channel: str | None, *, alone: bool) -> None:
    chooser = Chooser(wanted=channel)
    folders: dict[Path, list[Path]] = {}
    named: list[Path] = []
    for path in paths:
        if path.is_dir():
            folders[path] = []
            found.bases.append(path if alone else path.parent)
        elif _exists(path):
            named.append(path)
            found.bases.append(path.parent)
        elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - absolute
            found.bases.append(_fixed(path))
            named += [Path(match) for match in matches if not Path(match).is_dir()]
            folders |= {Path(match): [] for match in matches if "**" not in str(path) and Path(match).is_dir()}
        else:
            raise UsageError(f"{path}: no such file, folder or match")
    for folder in folders:
        if not (alone and folder == paths[0]) and is_derived(
            folder.name, {beside.name for beside in folder.parent.iterdir()}
        ):
            chooser.left_out.append(LeftOut(folder, "what a pipeline derived from the scans", "derived folder"))
            continue
        folders[folder] = walk(folder, chooser.left_out)
        if not any(is_image(path.name) for path in folders[folder]):
            chooser.left_out.append(LeftOut(folder, "no image in it", "empty folder"))
    usable = set(chooser.usable([*named, *(path for files in folders.values() for path in files)]))
    groups = [(folder, files) for folder, files in folders.items()]
    if named and (base := _common([path.parent for path in named])) is not None:
        groups.append((Path(base), named))
    for root, files in groups:
        mine = [path for path in dict.fromkeys(files) if path in usable]
        usable -= set(mine)
        found.scans.extend(chooser.of(mine, root))
    found.left_out.extend(chooser.left_out)


def _search_store(url: str, found: Places, channel: str | None, *, alone: bool) -> None:
    """The scans behind the URL of a file, a folder or a glob."""
    try:
        store, place = fsspec.core.url_to_fs(url)
        chooser = Chooser(StoreFiles(store), channel)
        lone = not glob.has_magic(place) and store.isfile(place)
        places = [place] if lone else store.glob(place) if glob.has_magic(place) else store.find(place)
        uris: dict[PurePath, str] = {
            _path_of(each): str(store.unstrip_protocol(each)) for each in sorted(places) if not store.isdir(each)
        }
    except Exception as error:  # each protocol has its own errors
        raise UsageError(f"{url}: {describe_error(error)}") from None
    if not uris:
        raise UsageError(f"{url}: no such file, folder or match")
    found.uris.update(uris)
    root = _path_of(place).parent if lone else _fixed(_path_of(place))
    found.bases.append(root)
    if lone and alone:
        found.scans.append(chooser.one(_path_of(place)))
        return
    files = []
    for path in uris:
        below = path.relative_to(root).parts
        if any(part.startswith(".") or part == "__MACOSX" or part == "derivatives" for part in below[:-1]):
            continue
        if (reason := by_ending(path)) is not None:
            chooser.left_out.append(reason)
        elif is_image(path.name) and not path.name.startswith("."):
            files.append(path)
    found.scans.extend(chooser.of(files, root))
    found.left_out.extend(chooser.left_out)


def _path_of(place: str) -> PurePosixPath:
    """The path in a store, without the query of an ``https`` URL."""
    return PurePosixPath(place.partition("?")[0] if place.startswith("http") else place)


def _fixed(path: PurePath) -> PurePath:
    """The folders of a glob before its first wildcard; the path itself, if it has none."""
    return next((up.parent for up in reversed([path, *path.parents]) if glob.has_magic(up.name)), path)


def _common(bases: Sequence[PurePath]) -> PurePath | None:
    """The folder that contains all of these; None: there is none."""
    try:
        return type(bases[0])(os.path.commonpath([str(base) for base in bases])) if bases else None
    except ValueError:  # some are in a store, or on another drive
        return None
