"""A file, a folder or a series in which there is no scan to submit, and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

NO_FLAIR = "DICOM study without FLAIR"  # a ``kind``


@dataclass(frozen=True)
class LeftOut:
    """A file or folder in which there is no scan to submit.

    Parameters
    ----------
    why: the reason, as a sentence. kind: what it is, in the singular, to count by. detail: which of that kind.
    """

    path: PurePath
    why: str
    kind: str
    detail: str = ""
