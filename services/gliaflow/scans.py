"""From the paths that a person names to the scans that are meant."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import fsspec
import nibabel as nib
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Cohort
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.storage_errors import in_words

from gliaflow.submission import Input

MAX_NAME_BYTES = 160  # file systems take 255, and endings and numbers come after it
SCAN_ENDINGS = (
    ".nii",
    ".nii.gz",
    ".gz",
    ".hdr",
    ".img",
    ".mgz",
    ".mgh",
    ".mha",
    ".mhd",
    ".nrrd",
    ".dcm",
    ".ima",
)
FLAIR = re.compile(r"[_-](flair|t2f)$", re.IGNORECASE)
OTHER = re.compile(  # other sequences, and masks, as the public data sets name them
    r"[_-](t1|t1w|t1ce|t1c|t1n|t1gd|t2|t2w|mask|labels?|seg(mentation)?([_-]\w+)?|GlistrBoost(_\w+)?)$",
    re.IGNORECASE,
)


def stem(path: Path) -> str:
    """The file's name without ``.nii``, ``.nii.gz`` or another ending of a scan."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem if Path(name).suffix.lower() in SCAN_ENDINGS else name


def patient_of(path: Path) -> str:
    """The patient, as the file's name tells: ``BRATS_7_flair.nii.gz`` is of BRATS_7."""
    return FLAIR.sub("", stem(path))


def find_inputs(paths: Iterable[str], *, grade: str | None = None, channel: str | None = None) -> list[Input]:
    """The scans under files, folders, globs and URLs of such, each with a name of its own, in a steady order.

    A file that was named is always meant, whatever it is. Of a folder, files with the ending of a scan are, except
    masks and other sequences by their usual names (``_seg``, ``_t1ce`` …).

    Raises
    ------
    UsageError: a path does not exist, a glob fits nothing, or there is no scan at all.
    """
    files: list[Path] = []
    uris: dict[Path, str] = {}
    for text in paths:
        if "://" in text:
            found_there = _behind(text)
            uris |= found_there
            files += found_there
            continue
        path = Path(text)
        if path.is_dir():
            files += sorted(f for f in path.rglob("*") if _is_scan(f))
        elif path.exists() or path.is_symlink():
            files.append(path)
        elif found := sorted(glob.glob(text, recursive=True)):  # noqa: PTH207 - absolute patterns too
            files += [Path(f) for f in found if not Path(f).is_dir()]
        else:
            raise UsageError(f"{text}: no such file, folder or match")
    if not files:
        raise UsageError(f"no scan (*.nii, *.nii.gz) in {', '.join(paths)}")
    files = list(dict.fromkeys(files))
    inputs = [
        Input(path, name, _plain(patient_of(path)), grade, _channel(path, channel), uri=uris.get(path, ""))
        for path, name in zip(files, _names(files), strict=True)
    ]
    return inputs


def _behind(url: str) -> dict[Path, str]:
    """The scans behind a URL of a file, a folder or a glob: their places in the store, and their URIs.

    Raises
    ------
    UsageError: there is none, or the store cannot be read.
    """
    try:
        store, place = fsspec.core.url_to_fs(url)
        if glob.has_magic(place):
            found = sorted(store.glob(place))
        elif store.isfile(place):
            found = [place]
        else:
            found = sorted(one for one in store.find(place) if _is_scan(Path(one)))
        uris = {Path(one): str(store.unstrip_protocol(one)) for one in found if not store.isdir(one)}
    except Exception as error:  # each protocol has errors of its own
        raise UsageError(f"{url}: {in_words(error)}") from None
    if not uris:
        raise UsageError(f"{url}: no such file, folder or match")
    return uris


def cohort_inputs(cohort: Cohort, name: str, channel: str | None = None) -> list[Input]:
    """Every scan of a cohort with its patient and, where it is known, its label.

    Parameters
    ----------
    name: of the cohort. channel: of 4-D scans of which the cohort does not tell it.

    Raises
    ------
    UsageError: no scan has a label.
    """
    cases = cohort.cases
    if not any(case.label for case in cases):
        raise UsageError(f"{name}: no scan has a label (--grades TABLE gives grades; see `gliaflow cohort`)")
    names = _unique([_plain(re.sub(r"[/\\]|^\.", "_", case.id)) for case in cases])
    return [
        Input(
            case.scan.path if isinstance(case.scan, NiftiFile) else Path(str(case.scan)),
            unique,
            case.patient,
            case.label,
            case.channel or channel,
            name,
            None if isinstance(case.scan, NiftiFile) else case.scan,
        )
        for case, unique in zip(cases, names, strict=True)
    ]


def _channel(path: Path, channel: str | None) -> str | None:
    """The number of the FLAIR volume: as given, or looked up by name in ``dataset.json``.

    A file in the Medical Segmentation Decathlon layout has that beside its folder; FLAIR is looked up unasked.
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
        raise UsageError(f"--channel: {channel!r} is no number, and no dataset.json beside {path} has it by name")
    return None


def write_mask(path: Path, mask: object, affine: object) -> None:
    """A mask as NIfTI, on the grid of its scan, written whole."""
    image = nib.Nifti1Image(mask, affine)
    image.header.set_xyzt_units("mm")
    part = path.with_name(f".{path.name}.part.nii.gz")
    nib.save(image, part)
    part.replace(path)


def _is_scan(path: Path) -> bool:
    meant = path.name.lower().endswith(SCAN_ENDINGS) and not path.name.startswith(".")
    try:
        return meant and not path.is_dir() and not OTHER.search(stem(path))
    except OSError:  # in a folder that we may not enter
        return False


def _names(files: list[Path]) -> list[str]:
    """The stems; where two are the same, with their folder's name before them, and at last with a number.

    A name becomes part of file names and messages: it is cut to what file systems take, and bytes that are no UTF-8
    are replaced.
    """
    stems = [_plain(stem(f)) for f in files]
    common = Counter(s.casefold() for s in stems)
    return _unique(
        [
            _plain(f"{file.absolute().parent.name}_{name}") if common[name.casefold()] > 1 else name
            for file, name in zip(files, stems, strict=True)
        ]
    )


def _unique(names: Iterable[str]) -> list[str]:
    """The names, with a number where one was there before."""
    taken: set[str] = set()
    found = []
    for name in names:
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        found.append(unique)
    return found


def _plain(name: str) -> str:
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
