"""From the paths that a person names to the scans that are meant."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib

from gliaflow_cli.client import Input

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


class UsageError(ValueError):
    """What was asked for makes no sense. The text says what to do."""


def stem(path: Path) -> str:
    """The file's name without ``.nii``, ``.nii.gz`` or another ending of a scan."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem if Path(name).suffix.lower() in SCAN_ENDINGS else name


def patient_of(path: Path) -> str:
    """The patient, as the file's name tells: ``BRATS_7_flair.nii.gz`` is of BRATS_7."""
    return FLAIR.sub("", stem(path))


def find_inputs(paths: Iterable[str], *, grade: str | None = None, channel: str | None = None) -> list[Input]:
    """The scans under files, folders and globs, each with a name of its own, in a steady order.

    A file that was named is always meant, whatever it is. Of a folder, files with the ending of a scan are, except
    masks and other sequences by their usual names (``_seg``, ``_t1ce`` …).

    Raises
    ------
    UsageError: a path does not exist, a glob fits nothing, or there is no scan at all.
    """
    files: list[Path] = []
    for text in paths:
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
        Input(path, name, patient_of(path), grade, channel or flair_channel(path))
        for path, name in zip(files, _names(files), strict=True)
    ]
    return inputs


def flair_channel(path: Path) -> str | None:
    """For a 4-D file in the Medical Segmentation Decathlon layout: the number of FLAIR in its ``dataset.json``."""
    for folder in path.absolute().parents[:2]:
        try:
            modality = json.loads((folder / "dataset.json").read_bytes())["modality"]
            return next(str(number) for number, name in modality.items() if name.upper() == "FLAIR")
        except (OSError, ValueError, KeyError, AttributeError, TypeError, StopIteration):
            continue
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
    return meant and not path.is_dir() and not OTHER.search(stem(path))


def _names(files: list[Path]) -> list[str]:
    """The stems; where two are the same, with their folder's name before them, and at last with a number."""
    names = [stem(f) for f in files]
    common = Counter(names)
    names = [f"{f.absolute().parent.name}_{n}" if common[n] > 1 else n for f, n in zip(files, names, strict=True)]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique
