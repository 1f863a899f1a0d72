"""What a user names: files, folders, globs and URLs, and the files behind them."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

import fsspec
from gliaflow_plugins.cohorts.decathlon import MAX_JSON_BYTES, Files
from gliaflow_plugins.cohorts.dicom_scans import UnmatchedSeriesError, dicom_scans, require_matches, series_of
from gliaflow_plugins.cohorts.image_names import is_image
from gliaflow_plugins.cohorts.scan_files import Chooser, LocalFiles, ScanFile
from gliaflow_plugins.cohorts.walk import (
    by_ending,
    derived_folder,
    is_derived,
    is_dicom,
    is_hidden,
    named_dicom,
    status_of,
    unusable,
    walk,
)
from gliaflow_plugins.left_out import LeftOut
from gliaflow_runtime.errors import UsageError, describe_error

from gliaflow.flair_rules import flair_rules

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules, KnownImages


@dataclass(frozen=True)
class Places:
    """The scans behind the paths and URLs that a user gave, and what was left out.

    Local paths are absolute. ``dicom``: the DICOM files, whose series are in ``scans`` too. ``bases``: the folder, or a
    glob's fixed part, of each path that the user gave. ``uris``: of the scans in a store.
    """

    scans: list[ScanFile] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    bases: list[PurePath] = field(default_factory=list)
    uris: dict[PurePath, str] = field(default_factory=dict)

    def relative(self) -> list[str]:
        """The scans' paths relative to what the user gave: the folder, or the folder that all given paths share."""
        base = _common(self.bases)
        texts = [
            scan.path.name if base in (None, scan.path) else str(scan.path.relative_to(base)) for scan in self.scans
        ]
        return [text.replace(os.sep, "/").encode("utf-8", "replace").decode("utf-8") for text in texts]


@dataclass(frozen=True)
class Wanted:
    """What a user chose among files: a channel in place of FLAIR, and other sequences, as for ``Chooser``."""

    channel: str | None
    sequences: Sequence[str]

    def chooser(self, files: Files | None = None) -> Chooser:
        """A chooser among these files."""
        return Chooser(files, self.channel, self.sequences)


class StoreFiles:
    """The files of a store, for ``dataset.json``.

    Parameters
    ----------
    root: the folder that was listed completely, if there is one. listed: its files.
    """

    def __init__(
        self, store: fsspec.AbstractFileSystem, root: PurePath | None = None, listed: Iterable[PurePath] = ()
    ) -> None:
        self._store, self._root = store, root
        self._names = names_in(listed)

    def names(self, folder: PurePath) -> list[str]:
        """See ``Files.names``."""
        if self._is_listed(folder):
            return sorted(self._names[folder])
        try:
            return [PurePosixPath(place).name for place in self._store.ls(str(folder), detail=False)]
        except Exception:  # each protocol has its own errors
            return []

    def read(self, path: PurePath) -> bytes | None:
        """See ``Files.read``."""
        if self._is_listed(path.parent) and path.name not in self._names[path.parent]:
            return None
        try:
            return bytes(self._store.cat_file(str(path), start=0, end=MAX_JSON_BYTES + 1))
        except Exception:  # each protocol has its own errors
            return None

    def _is_listed(self, folder: PurePath) -> bool:
        return self._root is not None and folder.is_relative_to(self._root)


def names_in(files: Iterable[PurePath]) -> dict[PurePath, set[str]]:
    """The names of the files and folders in each folder, if these are all files."""
    names: dict[PurePath, set[str]] = defaultdict(set)
    for path in files:
        for each in (path, *path.parents):
            if each.name in names[each.parent]:
                break
            names[each.parent].add(each.name)
    return names


def search(
    texts: Sequence[str],
    channel: str | None = None,
    rules: Callable[[], FlairRules | None] = flair_rules,
    sequences: Sequence[str] = (),
    known: KnownImages | None = None,
) -> Places:
    """The scans at these paths. One file that is named alone is always a scan; of a DICOM file, it is its series.

    Parameters
    ----------
    rules: gives the rules for DICOM series, if there is a DICOM file.
    sequences: the other sequences to look for, as for ``Chooser``. known: as for ``find_series``.

    Raises
    ------
    UsageError: a path does not exist, a glob matches nothing, a store cannot be read, a file is not fetched, or a value
        of ``--series`` matches nothing.
    """
    found = Places()
    local = [Path(os.path.normpath(Path(text).absolute())) for text in texts if "://" not in text]  # links stay
    for text in texts:
        if "://" in text:
            _search_store(text, found, Wanted(channel, sequences), alone=len(texts) == 1)
    if len(texts) == 1 and local and not _is_folder(local[0]) and os.path.lexists(local[0]):
        _take(local[0], found, Wanted(channel, sequences))
    elif local:
        _search_local(local, found, Wanted(channel, sequences), alone=len(texts) == 1)
    if found.dicom:
        wanted = rules()
        lone = len(texts) == 1 and found.dicom == local
        dicom = series_of(local[0], wanted) if lone else dicom_scans(found.dicom, wanted, known)
        try:
            require_matches(wanted, [dicom])
        except UnmatchedSeriesError as error:
            raise UsageError(str(error)) from None
        found.scans.extend(dicom.scans)
        found.left_out.extend(dicom.left_out)
    return found


def _is_folder(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - where no status can be read, Path.is_dir raises


def _take(path: Path, found: Places, chosen: Wanted) -> None:
    reason = unusable(path)
    if reason is not None and reason.kind in ("unfetched file", "broken link"):
        raise UsageError(f"{path}: {reason.why}")
    found.bases.append(path.parent)
    if path.name.casefold() == "dicomdir":
        raise UsageError(f"{path}: an index of the DICOM files on a disc; submit its folder, {path.parent}")
    if is_dicom(path, status_of(path)):
        found.dicom.append(path)
    else:
        found.scans.append(chosen.chooser().one(path))


def _search_local(paths: Sequence[Path], found: Places, chosen: Wanted, *, alone: bool) -> None:
    chooser = chosen.chooser()
    folders: dict[Path, dict[Path, os.stat_result | None]] = {}
    searched = []
    named: list[Path] = []
    for path in paths:
        if _is_folder(path):
            folders[path] = {}
            found.bases.append(path if alone else path.parent)
        elif os.path.lexists(path):
            named.append(path)
            found.bases.append(path.parent)
        elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - absolute
            found.bases.append(_fixed(path))
            named += [Path(match) for match in matches if not _is_folder(match)]
            folders |= {Path(match): {} for match in matches if "**" not in str(path) and _is_folder(match)}
        else:
            raise UsageError(f"{path}: no such file, folder or match")
    for folder in folders:
        if not (alone and folder == paths[0]) and is_derived(folder.name, set(LocalFiles().names(folder.parent))):
            chooser.left_out.append(derived_folder(folder))
            continue
        folders[folder] = walk(folder, chooser.left_out)
        searched.append(folder)
    statuses = {path: status_of(path) for path in named}
    for files in folders.values():
        statuses |= files
    usable = set(chooser.usable(statuses))
    found.dicom.extend(chooser.dicom)
    dicom = set(chooser.dicom)
    for folder in searched:
        if not any(is_image(path.name) or path in dicom for path in folders[folder]):
            chooser.left_out.append(LeftOut(folder, "no image in it", "empty folder"))
    groups = [(folder, list(files)) for folder, files in folders.items()]
    if named and (base := _common([path.parent for path in named])) is not None:
        groups.append((Path(base), named))
    for root, paths_in in groups:
        mine = [path for path in dict.fromkeys(paths_in) if path in usable]
        usable -= set(mine)
        found.scans.extend(chooser.of(mine, root))
    found.left_out.extend(chooser.left_out)


def _search_store(url: str, found: Places, chosen: Wanted, *, alone: bool) -> None:
    """The scans behind the URL of a file, a folder or a glob."""
    try:
        store, place = fsspec.core.url_to_fs(url)
        magic = glob.has_magic(place)
        lone = not magic and store.isfile(place)
        listed = {place: {}} if lone else (store.glob if magic else store.find)(place, detail=True)
        if magic and "**" not in place:
            for folder in [each for each, about in listed.items() if about.get("type") == "directory"]:
                listed |= store.find(folder, detail=True)
        uris: dict[PurePath, str] = {
            _path_of(each): str(store.unstrip_protocol(each))
            for each, about in sorted(listed.items())
            if about.get("type") != "directory"
        }
    except Exception as error:  # each protocol has its own errors
        raise UsageError(f"{url}: {describe_error(error)}") from None
    if not uris:
        raise UsageError(f"{url}: no such file, folder or match")
    found.uris.update(uris)
    root = _path_of(place).parent if lone else _fixed(_path_of(place))
    found.bases.append(root)
    chooser = chosen.chooser(StoreFiles(store, None if lone or magic else root, uris))
    if lone and alone:
        scan = chooser.one(_path_of(place))
        found.scans.append(scan)
        _name_sequences([scan], store, found.uris)
        return
    visible = list(_without_derived(uris, root, chooser.left_out))
    files = []
    for path in visible:
        if (reason := by_ending(path)) is not None:
            chooser.left_out.append(reason)
        elif named_dicom(path):
            why = "a DICOM file in a store: copy its folder to this machine, and submit that"
            chooser.left_out.append(LeftOut(path, why, "DICOM file"))
        elif is_image(path.name):
            files.append(path)
    if not (lone or magic) and not any(is_image(path.name) or named_dicom(path) for path in visible):
        chooser.left_out.append(LeftOut(root, "no image in it", "empty folder"))
    scans = chooser.of(files, root)
    found.scans.extend(scans)
    _name_sequences(scans, store, found.uris)
    found.left_out.extend(chooser.left_out)


def _name_sequences(scans: Iterable[ScanFile], store: fsspec.AbstractFileSystem, uris: dict[PurePath, str]) -> None:
    """Add the URIs of other sequences, which a glob need not match."""
    for scan in scans:
        for each in scan.sequences.found.values():
            uris.setdefault(each.path, str(store.unstrip_protocol(str(each.path))))


def _without_derived(paths: Iterable[PurePath], root: PurePath, left_out: list[LeftOut]) -> Iterator[PurePath]:
    """The paths that ``walk`` would give: without hidden ones, and without derived folders, which are left out."""
    paths = list(paths)
    names = names_in(paths)
    derived: dict[PurePath, PurePath | None] = {}  # by folder: the derived folder in which it is
    for path in paths:
        inside = path.relative_to(root).parts
        if any(map(is_hidden, inside)):
            continue
        if path.parent not in derived:
            folders = [root.joinpath(*inside[:count]) for count in range(1, len(inside))]
            first = next((folder for folder in folders if is_derived(folder.name, names[folder.parent])), None)
            if first is not None and first not in derived.values():
                left_out.append(derived_folder(first))
            derived[path.parent] = first
        if derived[path.parent] is None:
            yield path


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
