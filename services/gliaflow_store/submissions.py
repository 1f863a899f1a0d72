"""Who sent what is in a store, and removal of a submission or of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gliaflow_store.part_file import PartFile, StoreError, stored_parts


@dataclass
class StoredSubmission:
    """The scans of a store that came from one submission.

    Parameters
    ----------
    recorded: when the first of them was written (ISO 8601, UTC); empty: by an earlier version.
    labels: the label of each scan, by its id.
    """

    id: str
    recorded: str
    cohorts: set[str] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)


def stored_submissions(folder: Path) -> list[StoredSubmission]:
    """The submissions of a store, oldest first. Raises StoreError: there is no such folder."""
    submissions: dict[str, StoredSubmission] = {}
    for part in _parts(folder):
        about = part.about
        stored = submissions.setdefault(about.submission, StoredSubmission(about.submission, about.recorded))
        stored.recorded = min(stored.recorded, about.recorded)
        stored.cohorts.add(about.cohort)
        stored.patients.add(about.patient or about.scan)
        stored.labels[about.scan] = about.label
    return sorted(submissions.values(), key=lambda each: each.recorded)


def remove_scans(folder: Path, ids: Sequence[str]) -> set[str]:
    """Remove the scans that have one of these ids, or whose submission has. Returns the removed scans' ids.

    Raises
    ------
    StoreError: there is no such folder. OSError: a file cannot be removed.
    """
    removed = set()
    for part in _parts(folder):
        if part.about.scan in ids or part.about.submission in ids:
            part.path.unlink(missing_ok=True)
            removed.add(part.about.scan)
    return removed


def _parts(folder: Path) -> list[PartFile]:
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder")
    return [part for part in stored_parts(folder) if isinstance(part, PartFile)]
