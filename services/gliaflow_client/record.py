"""``.gliaflow.jsonl``: which scans gliaflow answered in a folder, and which files it wrote there.

One line for each event, appended: a run that is killed leaves at most half a line, which is skipped. A file's digest
is recorded before the file gets its name, so a file that gliaflow wrote is always known. If the record is lost, all
files in the folder count as files of the user.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Any

import fsspec
from gliaflow.scans import Input
from gliaflow.sequences import SequenceInput
from gliaflow_plugins.cohorts.dicom_scans import as_series
from gliaflow_plugins.regular_files import open_regular
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import lock

from gliaflow_client.table import TABLE

RECORD = ".gliaflow.jsonl"
AND_SEQUENCES = " and sequences "


@dataclass(frozen=True)
class ScanState:
    """A scan's place, and what shows that the scan changed.

    Parameters
    ----------
    location: its absolute path or URI. source: its path, relative to what was submitted.
    stamp: sizes and times of its files. Empty: not known.
    sha256: the digest of its file, or of the files of a DICOM series, and of the other sequences that are sent with it.
        Empty: not known, as for a URI.
    series: the SeriesInstanceUID of a DICOM series: a folder may have several.
    undecided: the StudyInstanceUID of a study of which several series may be FLAIR.
    """

    location: str
    source: str
    patient: str
    channel: str
    stamp: str
    sha256: str = ""
    series: str = ""
    undecided: str = ""

    @classmethod
    def of(cls, item: Input) -> ScanState:
        """The state now, without the digest, which takes reading the whole file."""
        source = item.relative or item.path.name
        series = as_series(item.volume)
        undecided = series.study if series and series.choices else ""
        return cls(
            _location(item),
            source,
            item.patient,
            item.channel or "",
            _stamp(item),
            series=item.series,
            undecided=undecided,
        )

    @property
    def own_stamp(self) -> str:
        """The stamp without that of the other sequences."""
        return self.stamp.partition(AND_SEQUENCES)[0]

    @property
    def place(self) -> tuple[str, str]:
        """Where the scan is. Two scans never have the same place."""
        return self.location, self.series

    def is_same_series(self, other: ScanState) -> bool:
        """Whether both are one DICOM series, of which one folder contains the other: some of its files may be new."""
        mine, others = PurePath(self.location), PurePath(other.location)
        nested = mine.is_relative_to(others) or others.is_relative_to(mine)
        return self.series != "" and self.series == other.series and nested


def name_key(name: str) -> str:
    """Two names with one key may be one file on a file system that ignores case, or that decomposes letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with a number if its key is taken."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if name_key(free) not in taken)


def readable(text: str) -> str:
    """The text with bytes that are not UTF-8 replaced."""
    return text.encode("utf-8", "replace").decode()


def sha256_of(path: Path) -> str:
    """The digest of a regular file; empty if it cannot be read."""
    try:
        file: Any = open_regular(path)
        with file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def scan_sha256(item: Input) -> str:
    """The digest of a scan that is one file or a DICOM series; empty for a URI and for another image of several files.

    The names of a series' files do not matter.
    """
    if not item.sequences:
        return _sha256(item)
    digests = {"flair": (_sha256(item), item.channel)}
    digests |= {name: (_sha256(each), each.channel) for name, each in item.sequences.items()}
    text = json.dumps(digests, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if all(digest for digest, _ in digests.values()) else ""


def _sha256(item: Input | SequenceInput) -> str:
    if series := as_series(item.volume):
        digests = [sha256_of(path) for path in series.paths]
        text = json.dumps([series.echo_ms, *sorted(digests)])
        return hashlib.sha256(text.encode()).hexdigest() if all(digests) else ""
    return "" if item.uri or item.volume is not None else sha256_of(item.path)


class Record:
    """The record of one folder, locked until ``close``: two commands never write into one folder at the same time.

    Raises
    ------
    UsageError: another command has the folder.
    OSError: the record cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / RECORD).open("a+b", buffering=0)
        try:
            lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise UsageError(
                f"{folder}: another gliaflow command writes into this folder; wait for its end, or choose another --out"
            ) from None
        self.scans: dict[str, ScanState] = {}
        self.answers: dict[str, dict[str, Any]] = {}  # values in the table's row of each scan
        self.not_in_table: set[str] = set()  # scans that were answered after the table was written last
        self._files: dict[str, dict[str, str]] = defaultdict(dict)  # of each scan: file names by key
        self._owners: dict[str, str] = {}  # by key: the scan
        self._digests: dict[str, set[str]] = defaultdict(set)  # by key
        self._file.seek(0)
        for line in self._file.read().splitlines():
            self._take(line)

    def close(self) -> None:
        """Unlock the folder. A record without a line is removed."""
        if self._file.seek(0, os.SEEK_END) == 0:
            (self._folder / RECORD).unlink(missing_ok=True)
        self._file.close()

    def add_scan(self, name: str, state: ScanState) -> None:
        """Record that the scan was answered under this name."""
        if self.scans.get(name) != state:
            self._append({"scan": name, **asdict(state)})

    def add_answer(self, name: str, values: Mapping[str, Any]) -> None:
        """Record the values in the scan's row of the table."""
        self._append({"answer": name, "values": dict(values)})

    def add_times(self, name: str, state: ScanState) -> None:
        """Record the new place and times of a scan whose content did not change since it was answered."""
        self._append({"same": name, **asdict(state)})

    def add_file(self, file: str, scan: str, digest: str) -> None:
        """Record that gliaflow writes this file, for this scan; a file that belongs to no scan has an empty one."""
        self._append({"file": file, "of": scan, "sha256": digest})

    def undecided(self, study: str) -> set[str]:
        """The scans that stand for a study of which no series was chosen."""
        return {name for name, state in self.scans.items() if state.undecided == study}

    def owns(self, path: PurePath) -> bool:
        """Whether gliaflow wrote a file of this name into this folder."""
        return name_key(path.name) in self._owners and _real(path.parent) == _real(self._folder)

    def files_of(self, scan: str, ending: str) -> list[str]:
        """The names of the scan's files with this ending that gliaflow wrote."""
        return [file for file in self._files.get(scan, {}).values() if file.endswith(ending)]

    def wrote(self, path: Path) -> bool:
        """Whether gliaflow wrote this file, and nothing changed it since."""
        return self.owns(path) and not path.is_symlink() and sha256_of(path) in self._digests[name_key(path.name)]

    def may_write(self, file: str, scan: str) -> bool:
        """Whether the file is free, or is this scan's own and unchanged."""
        if self._owners.get(name_key(file), scan) != scan:
            return False
        path = self._folder / file
        return not os.path.lexists(path) or self.wrote(path)

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode()
        self._file.write(b"\n" + text)  # the line before may be half a line
        self._take(text)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            if "scan" in event:
                name = event.pop("scan")
                self.scans[name] = ScanState(**event)
                self.not_in_table.add(name)
            elif "answer" in event:
                self.answers[event["answer"]] = dict(event["values"])
            elif "same" in event:
                name = event.pop("same")
                self.scans[name] = ScanState(**event)
            else:
                key = name_key(event["file"])
                self._owners[key] = event["of"]
                self._files[event["of"]][key] = event["file"]
                self._digests[key].add(event["sha256"])
                if not event["of"] and key == TABLE:
                    self.not_in_table.clear()
        except (ValueError, TypeError, KeyError, AttributeError):
            pass  # half a line of a run that was killed


def _location(item: Input | SequenceInput) -> str:
    return item.uri or f"{_real(item.path.parent)}/{item.path.name}"  # a link to a file keeps its own name


@lru_cache(maxsize=2**14)
def _real(folder: PurePath) -> str:
    return os.path.realpath(folder)


def _stamp(item: Input) -> str:
    """The stamp of a scan's files; of a scan that is sent with other sequences, that of all of them."""
    stamps = {name: [_stamp_of(each), _location(each), each.channel] for name, each in item.sequences.items()}
    own = _stamp_of(item)
    if not stamps or not own or not all(stamp for stamp, *_ in stamps.values()):
        return "" if stamps else own
    return own + AND_SEQUENCES + hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()


def _stamp_of(item: Input | SequenceInput) -> str:
    try:
        if item.uri:
            store, place = fsspec.core.url_to_fs(item.uri)
            about = store.info(place)
            return json.dumps([about.get(key) for key in ("size", "ETag", "mtime", "LastModified")], default=str)
        files = [f for path in _paths(item) for f in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        states = [file.stat() for file in files]
        whole: list[Any] = [[state.st_size, state.st_mtime_ns, state.st_ctime_ns] for state in states]
        if series := as_series(item.volume):
            whole += [series.echo_ms, [str(path) for path in files]]
        return json.dumps(whole[0] if len(whole) == 1 else hashlib.sha256(json.dumps(whole).encode()).hexdigest())
    except Exception:  # each protocol has its own errors; reading the scan reports them
        return ""


def _paths(item: Input | SequenceInput) -> Sequence[Path]:
    """The files and folders of a scan: of a stack its slices, of a pair both."""
    if slices := getattr(item.volume, "paths", None):
        return list(slices)
    pair = [item.path.with_suffix(ending) for ending in (".hdr", ".img", ".HDR", ".IMG")]
    is_pair = item.path.suffix.lower() in (".hdr", ".img")
    return [path for path in pair if path.exists()] if is_pair else [item.path]
