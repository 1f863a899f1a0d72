"""What a command prints about the answers: the lines of scans that need attention, the counts, the true grades."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from gliaflow_proto import CLASSES, NO_TUMOUR

from gliaflow_client.table import ScanRow

PHANTOMS = "phantoms"
DETAILS = re.compile(r" \([^()]{80,}\)")  # of a warning
ON_PHANTOMS = (
    "This bundle was trained on phantoms (drawings of scans): its answers say nothing about a patient. "
    "Train your own with `gliaflow train`."
)


def is_on_phantoms(rows: Sequence[ScanRow]) -> bool:
    """Whether a bundle answered that knows only phantoms."""
    return any(row.trained_on == PHANTOMS for row in rows)


def attention(row: ScanRow, place: str) -> str:
    """The line of a scan that failed, has no tumour or has warnings; empty for all others.

    Details of a warning are only in the table, so that many warnings do not hide a scan that failed.
    """
    without = f"tumour {row.tumour_ml or 0:.1f} ml, so no grade"
    about = {"ok": [], "failed": [row.error.removeprefix(f"{place}: ")]}.get(row.status, [without])
    notes = [*about, *(DETAILS.sub("", warning) for warning in row.warnings)]
    return f"{'warning' if row.status == 'ok' else row.status:<10} {place}: {'; '.join(notes)}" if notes else ""


def counts(rows: Sequence[ScanRow]) -> str:
    """``12 of 14 scans answered: 9 graded, 3 without tumour, 2 failed; 4 with warnings``, without what is 0."""
    status = Counter(row.status for row in rows)
    warned = sum(bool(row.warnings) for row in rows)
    parts = [(status["ok"], "graded"), (status[NO_TUMOUR], "without tumour"), (status["failed"], "failed")]
    text = ", ".join(f"{number} {name}" for number, name in parts if number)
    text += f"; {warned} with warnings" if warned else ""
    return f"{len(rows) - status['failed']} of {len(rows)} scans answered" + (f": {text}" if text else "")


def true_grades(rows: Sequence[ScanRow]) -> str:
    """How many grades are the true ones; empty if no scan has a true grade."""
    labelled = [row for row in rows if row.true_grade]
    if not labelled:
        return ""
    graded = [row for row in labelled if row.status == "ok"]
    right = [row for row in graded if row.grade == row.true_grade]
    text = f"true grades: {len(right)} of {len(graded)} graded scans are right"
    shares = []
    for grade in CLASSES:
        of = sum(row.true_grade == grade for row in graded)
        if of:
            hits = sum(row.true_grade == grade for row in right)
            shares.append(hits / of)
            text += f"; {grade} {hits} of {of}"
    if len(shares) == len(CLASSES):
        text += f"; balanced accuracy {sum(shares) / len(shares):.2f}"
    others = Counter(row.status for row in labelled)
    named = [(others[NO_TUMOUR], "without tumour"), (others["failed"], "failed")]
    not_counted = [f"{number} {name}" for number, name in named if number]
    if len(rows) > len(labelled):
        not_counted.append(f"{len(rows) - len(labelled)} without a true grade")
    return text + (f". Not counted: {', '.join(not_counted)}" if not_counted else "")
