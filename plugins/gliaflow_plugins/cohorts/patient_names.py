"""Names of patients: which spellings are the same name."""

from __future__ import annotations

import re
import unicodedata


def loose(name: str) -> str:
    """A name in small letters, without leading zeros, separators and BIDS's ``sub-``; Excel's ``45.0`` is ``45``."""
    return "-".join(_parts(name))


def number_in(name: str) -> tuple[str, str] | None:
    """The text around a name's only number, and the number: ``rem-#`` and ``45`` for ``REM-45``."""
    parts = _parts(name)
    numbers = [part for part in parts if part.isdigit()]
    return ("-".join("#" if part.isdigit() else part for part in parts), numbers[0]) if len(numbers) == 1 else None


def _parts(name: str) -> list[str]:
    plain = re.sub(r"^(\d+)[.,]0+$", r"\1", unicodedata.normalize("NFKC", name).casefold().strip())
    parts = re.findall(r"[^\W\d_]+|\d+", plain)
    parts = parts[1:] if parts[:1] == ["sub"] and len(parts) > 1 else parts
    return [part.lstrip("0") or part[:1] for part in parts]
