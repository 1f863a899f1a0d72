"""From the paths that a user gives to the scans to submit."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import fsspec
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Cohort, Volume
from gliaflow_proto import CLASSES
from gliaflow_runtime.errors import UsageError, describe_error

MAX_NAME_BYTES = 160  # file systems allow 255; endings and numbers are appended to the name
SCAN_ENDINGS = (".nii", ".nii.gz", ".gz", ".hdr", ".img", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".dcm", ".ima")
FLAIR = re.compile(r"[_-](flair|t2f)$", re.IGNORECASE)
OTHER = re.compile(  # other sequences, and masks, as the public data sets name them
    r"[_-](t1|t1w|t1ce|t1c|t1n|t1gd|t2|t2w|mask|labels?|seg(mentation)?([_-]\w+)?|GlistrBoost(_\w+)?)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Input:
    """One scan to submit.

    Parameters
    ----------
    path: the file, or with ``uri`` its place in the store.
    name: unique within the submission; answers and mask files carry it.
    grade: the known class (HGG or LGG), if there is one.
    channel: of a 4-D file, the number of the FLAIR volume.
    cohort: a scan of a cohort has the same id in every submission, so that a feature store keeps it once.
    volume: gives the NIfTI bytes where ``path`` is not a NIfTI file.
    uri: the preprocessor reads the scan from here.
    relative: its path, relative to the folder that was submitted.
    warnings: doubts about the file, from its name and its folder, for its answer.
    """

    path: Path
    name: str
    patient: str
    grade: str | None = None
    channel: str | None = None
    cohort: str = ""
    volume: Volume | None = None
    uri: str = ""
    relative: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Its URI or path, for messages."""
        return self.uri or str(self.path)

    @property
    def root(self) -> str:
        """The folder or URL under which it is: a preprocessor reads nothing outside the roots that are allowed."""
        return self.uri.rpartition("/")[0] or str(Path(os.path.realpath(self.path)).parent)


@dataclass(frozen=True)
class LeftOut:
    """A file under a submitted folder that is not a scan to submit, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Found:
    """The scans at the paths that a user gave, and what was left out."""

    inputs: list[Input]
    left_out: list[LeftOut]


def stem(path: Path) -> str:
    """The file's name without ``.nii``, ``.nii.gz`` or another ending of a scan."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem if Path(name).suffix.lower() in SCAN_ENDINGS else name


def patient_of(path: Path) -> str:
    """The patient by the file's name: ``BRATS_7_flair.nii.gz`` is a scan of BRATS_7."""
    return FLAIR.sub("", stem(path))


def find_inputs(paths: Iterable[str | PathLike[str]], *, grade: str | None = None, channel: str | None = None) -> Found:
    """The scans at these paths (files, folders, globs, or URLs of them), each with a unique name, in a fixed order.

    A file that is given by name is always submitted. Of a folder, files with the ending of a scan are submitted,
    except masks and other sequences, which are known by their usual names (``_seg``, ``_t1ce`` …).

    Raises
    ------
    UsageError: a path does not exist, a glob matches nothing, there is no scan, or the grade is unknown.
    """
    check_grade(grade)
    texts = [fspath(path) for path in paths]
    files: dict[Path, str] = {}  # each with its URI, if it has one
    for text in texts:
        path = Path(text)
        if "://" in text:
            files |= _behind_url(text)
        elif path.is_dir():
            files |= dict.fromkeys(sorted(f for f in path.rglob("*") if _is_scan(f)), "")
        elif path.exists() or path.is_symlink():
            files[path] = ""
        elif found := sorted(glob.glob(text, recursive=True)):  # noqa: PTH207 - absolute patterns too
            files |= dict.fromkeys((Path(f) for f in found if not Path(f).is_dir()), "")
        else:
            raise UsageError(f"{text}: no such file, folder or match")
    if not files:
        raise UsageError(f"no scan (*.nii, *.nii.gz) in {', '.join(texts)}")
    inputs = [
        Input(path, name, _short(patient_of(path)), grade, _channel(path, channel), uri=uri, relative=path.name)
        for (path, uri), name in zip(files.items(), _names(list(files)), strict=True)
    ]
    return Found(inputs, [])


def find_one(path: str | PathLike[str], *, grade: str | None = None, channel: str | None = None) -> Input:
    """The one scan at this path. Raises UsageError as ``find_inputs`` does, and if there are several."""
    found = find_inputs([path], grade=grade, channel=channel).inputs
    if len(found) > 1:
        raise UsageError(f"{path}: {len(found)} scans, where one is expected")
    return found[0]


def cohort_inputs(cohort: Cohort, name: str, channel: str | None = None) -> list[Input]:
    """Every scan of a cohort with its patient and, if known, its label.

    Parameters
    ----------
    name: the cohort's name. channel: the FLAIR volume of 4-D scans for which the cohort does not state it.

    Raises
    ------
    UsageError: no scan has a label.
    """
    if not any(case.label for case in cohort.cases):
        raise UsageError(f"{name}: no scan has a label (--grades TABLE gives grades; see `gliaflow cohort`)")
    names = _unique([_short(re.sub(r"[/\\]|^\.", "_", case.id)) for case in cohort.cases])
    inputs = []
    for case, unique in zip(cohort.cases, names, strict=True):
        path = case.scan.path if isinstance(case.scan, NiftiFile) else Path(str(case.scan))
        volume = None if isinstance(case.scan, NiftiFile) else case.scan
        inputs.append(Input(path, unique, case.patient, case.label, case.channel or channel, name, volume))
    return inputs


def check_grade(grade: str | None) -> None:
    """Raise UsageError if this is not the name of a class."""
    if grade is not None and grade not in CLASSES:
        raise UsageError(f"grade: {grade!r} is not one of {', '.join(CLASSES)}")


def _behind_url(url: str) -> dict[Path, str]:
    """The scans behind the URL of a file, a folder or a glob: their places in the store, and their URIs.

    Raises
    ------
    UsageError: there are none, or the store cannot be read.
    """
    try:
        store, place = fsspec.core.url_to_fs(url)
        if glob.has_magic(place):
            found = sorted(store.glob(place))
        elif store.isfile(place):
            found = [place]
        else:
            found = sorted(each for each in store.find(place) if _is_scan(Path(each)))
        uris = {Path(each): str(store.unstrip_protocol(each)) for each in found if not store.isdir(each)}
    except Exception as error:  # each protocol has its own errors
        raise UsageError(f"{url}: {describe_error(error)}") from None
    if not uris:
        raise UsageError(f"{url}: no such file, folder or match")
    return uris


def _channel(path: Path, channel: str | None) -> str | None:
    """The number of the FLAIR volume: as given, or looked up by name in ``dataset.json``.

    The Medical Segmentation Decathlon layout has that file beside its folders of scans. Without ``channel``, the
    volume called FLAIR is taken.
    """
    if channel is not None and channel.isdecimal():
        return channel
    for folder in path.absolute().parents[:2]:
        try:
            modality = json.loads((folder / "dataset.json").read_bytes())["modality"]
            return next(str(n) for n, name in modality.items() if name.upper() == (channel or "FLAIR").upper())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, StopIteration):
            continue
    if channel is not None:
        raise UsageError(f"channel: {channel!r} is not a number, and no dataset.json beside {path} names it")
    return None


def _is_scan(path: Path) -> bool:
    by_name = path.name.lower().endswith(SCAN_ENDINGS) and not path.name.startswith(".")
    try:
        return by_name and not path.is_dir() and not OTHER.search(stem(path))
    except OSError:  # in a folder without permission
        return False


def _names(files: list[Path]) -> list[str]:
    """The stems; if two are equal, with the folder's name in front; if that is not enough, with a number."""
    stems = [_short(stem(f)) for f in files]
    common = Counter(s.casefold() for s in stems)
    return _unique(
        [
            _short(f"{file.absolute().parent.name}_{name}") if common[name.casefold()] > 1 else name
            for file, name in zip(files, stems, strict=True)
        ]
    )


def _unique(names: Iterable[str]) -> list[str]:
    """The names, with a number appended to each that repeats an earlier one."""
    taken: set[str] = set()
    found = []
    for name in names:
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        found.append(unique)
    return found


def _short(name: str) -> str:
    """A name that fits into file names and messages: cut to MAX_NAME_BYTES, with bytes that are not UTF-8 replaced."""
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
