"""The lines about the answers: what needs attention, the counts, the true grades."""

from __future__ import annotations

import pytest
from gliaflow_client.summary import attention, counts, is_on_phantoms, true_grades
from gliaflow_client.table import ScanRow

OK = ScanRow("a", "p", grade="HGG", p_hgg=0.7, tumour_ml=3.0, status="ok")


def rows(text: str) -> list[ScanRow]:
    """Rows from ``grade/true grade``: ``HGG/LGG none/HGG failed/``."""
    made = []
    for number, word in enumerate(text.split()):
        grade, _, true = word.partition("/")
        status = {"none": "no tumour", "failed": "failed"}.get(grade, "ok")
        made.append(ScanRow(str(number), "p", grade=grade if status == "ok" else "", status=status, true_grade=true))
    return made


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (OK, ""),
        (ScanRow("a", "p", error="no head"), "failed     x.nii: no head"),
        (ScanRow("a", "p", status="no tumour", tumour_ml=0.0), "no tumour  x.nii: tumour 0.0 ml, so no grade"),
        (ScanRow("a", "p", status="ok", warnings=("a", "b")), "warning    x.nii: a; b"),
        (ScanRow("a", "p", error="no head", warnings=("a",)), "failed     x.nii: no head; a"),
        (ScanRow("a", "p", error="x.nii: no head"), "failed     x.nii: no head"),
        (
            ScanRow(
                "a", "p", status="ok", warnings=(f"not typical ({'a value; ' * 20}); is it FLAIR?", "short (1 mm)")
            ),
            "warning    x.nii: not typical; is it FLAIR?; short (1 mm)",
        ),
    ],
)
def test_a_scan_that_needs_attention_has_one_line(row: ScanRow, line: str) -> None:
    assert attention(row, "x.nii") == line


def test_counts() -> None:
    made = [*rows("HGG HGG none failed failed"), ScanRow("w", "p", status="ok", warnings=("a",))]
    assert counts(made) == "4 of 6 scans answered: 3 graded, 1 without tumour, 2 failed; 1 with warnings"
    assert counts(rows("HGG")) == "1 of 1 scans answered: 1 graded"
    assert counts([]) == "0 of 0 scans answered"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("HGG LGG", ""),
        ("HGG/HGG LGG/HGG", "true grades: 1 of 2 graded scans are right; HGG 1 of 2"),
        (
            "HGG/HGG LGG/HGG HGG/HGG HGG/HGG LGG/LGG HGG/LGG none/LGG none/HGG failed/LGG LGG/",
            "true grades: 4 of 6 graded scans are right; HGG 3 of 4; LGG 1 of 2; balanced accuracy 0.62. "
            "Not counted: 2 without tumour, 1 failed, 1 without a true grade",
        ),
        ("none/HGG", "true grades: 0 of 0 graded scans are right. Not counted: 1 without tumour"),
    ],
)
def test_scans_without_a_grade_are_neither_right_nor_wrong(text: str, line: str) -> None:
    assert true_grades(rows(text)) == line


def test_whether_a_bundle_knows_only_phantoms() -> None:
    assert is_on_phantoms([OK, ScanRow("a", "p", trained_on="phantoms")])
    assert not is_on_phantoms([OK, ScanRow("a", "p", trained_on="patients")])
