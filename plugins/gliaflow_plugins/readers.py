"""Readers: from a folder that people have to the cases in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

GRADES = ("HGG", "LGG")


@dataclass(frozen=True)
class Case:
    """One scan of a cohort. ``mask`` or ``grade`` is None where the folder does not tell."""

    scan: Path
    mask: Path | None
    patient: str
    grade: str | None


@dataclass(frozen=True)
class Cohort:
    """What was understood of a folder: its layout, its cases, and what is wrong with it, a line each."""

    layout: str
    cases: list[Case]
    problems: list[str] = field(default_factory=list)


@runtime_checkable
class Reader(Protocol):
    """Knows one folder layout."""

    @property
    def name(self) -> str: ...

    def read(self, folder: Path) -> Cohort | None:
        """The cases in ``folder``, or None where it is not of this layout.

        A case that cannot be used (no FLAIR, say) is a line in ``problems``, never an exception: one bad
        case must not hide the others. Images are not opened.
        """
        ...


class Brats:
    """BraTS 2017–2019: ``HGG|LGG/<ID>/<ID>_flair.nii.gz`` and ``<ID>_seg.nii.gz``, or plain ``.nii``.

    The folder above gives the grade, and every ID is a patient of its own.
    """

    name = "brats"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``. Hidden files and stray files beside the case folders are passed over."""
        grades = [grade for grade in GRADES if (folder / grade).is_dir()]
        if not grades:
            return None
        cases, problems = [], []
        for grade in grades:
            for case in sorted(path for path in (folder / grade).iterdir() if path.is_dir()):
                if case.name.startswith("."):
                    continue
                scan, mask = _nifti(case, "flair"), _nifti(case, "seg")
                if scan is None:
                    problems.append(f"{grade}/{case.name}: no {case.name}_flair.nii.gz or .nii")
                    continue
                if mask is None:
                    problems.append(f"{grade}/{case.name}: no mask {case.name}_seg.nii.gz or .nii")
                cases.append(Case(scan, mask, patient=case.name, grade=grade))
        problems += [f"{patient}: in both HGG and LGG" for patient in _in_both(cases)]
        return Cohort("BraTS 2017–2019", cases, problems)


def _nifti(case: Path, kind: str) -> Path | None:
    # A common copy is uncompressed; where both are there they are the same image.
    candidates = (case / f"{case.name}_{kind}{ending}" for ending in (".nii.gz", ".nii"))
    return next((path for path in candidates if path.is_file()), None)


def _in_both(cases: list[Case]) -> list[str]:
    high, low = ({case.patient for case in cases if case.grade == grade} for grade in GRADES)
    return sorted(high & low)
