"""Names of patients: which spellings are the same name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

TCGA_SAMPLE = re.compile(
    r"(TCGA[-_.][0-9A-Z]{2}[-_.][0-9A-Z]{4})[-_.]\d\d[A-Z]?([-_.]\d\d[A-Z]?([-_.][0-9A-Z]{4}([-_.]\d\d)?)?)?",
    re.IGNORECASE,
)


def loose(name: str) -> str:
    """A name in small letters, without leading zeros, separators and BIDS's ``sub-``; Excel's ``45.0`` is ``45``."""
    return "-".join(_parts(name))


def patient_key(name: str) -> str:
    """As ``loose``, but of the patient alone if the name is the TCGA barcode of a sample: ``TCGA-CS-4942-01A-11R``."""
    barcode = TCGA_SAMPLE.fullmatch(name.strip())
    return loose(barcode[1] if barcode else name)


def number_in(name: str) -> tuple[str, str] | None:
    """The text around a name's only number, and the number: ``rem-#`` and ``45`` for ``REM-45``."""
    parts = _parts(name)
    numbers = [part for part in parts if part.isdigit()]
    return (_form(parts), numbers[0]) if len(numbers) == 1 else None


def names_another(stem: str, named: str, own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether a file is named after another case: its name has another case's, or begins with one of the same form.

    A number alone may count something else (``seg_2``), so it must be the beginning of the file's name.

    Parameters
    ----------
    named: the part of the file's ``stem`` that names a case. own: the names of the file's own case.
    others: the names of the cohort's cases.
    """
    parts = _parts(named)
    mine = max((len(each) for name in own if (each := _parts(name)) and _within(each, parts)), default=0)
    for name in {*others} - {*own}:
        other = _parts(name)
        number = not any(map(str.isalpha, other))
        begins = re.match(re.escape(name) + r"(?![^\W_])", stem, re.IGNORECASE) is not None
        if len(other) > mine and (begins if number else _within(other, parts)):
            return True
    names = [each for name in own if any(map(str.isdigit, each := _parts(name))) and any(map(str.isalpha, each))]
    return mine == 0 and any(_form(parts[: len(each)]) == _form(each) for each in names)


def _within(some: Sequence[str], parts: Sequence[str]) -> bool:
    return any(list(some) == list(parts[at : at + len(some)]) for at in range(len(parts) - len(some) + 1))


def _form(parts: Sequence[str]) -> str:
    return "-".join("#" if part.isdigit() else part for part in parts)


def _parts(name: str) -> list[str]:
    plain = re.sub(r"^(\d+)[.,]0+$", r"\1", unicodedata.normalize("NFKC", name).casefold().strip())
    parts = re.findall(r"[^\W\d_]+|\d+", plain)
    parts = parts[1:] if parts[:1] == ["sub"] and len(parts) > 1 else parts
    return [part.lstrip("0") or part[:1] for part in parts]
