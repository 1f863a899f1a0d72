"""A stored scan: its grid, and its fields as text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gliaflow_console.stored_scan import MAX_TEXT, ScanGrid, StoredScan
from sample_store import of_others

SCAN = StoredScan(
    "0" * 32,
    "P1_flair",
    "P1",
    own=True,
    created=1.5,
    status="ok",
    grade="HGG",
    p_hgg=0.75,
    slice_p_hgg=((3, 0.5), (4, 0.9)),
    warnings=("is it FLAIR?",),
    grid=ScanGrid((4, 5, 6), (1.0, 1.0, 2.0), ((3, 0.5),)),
)


def test_slices_count_from_the_feet_whatever_the_order_of_the_stored_axes() -> None:
    canonical = np.zeros((4, 5, 6), np.uint8)
    canonical[1:3, 2, 1] = 1
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    expected = ScanGrid((4, 5, 6), (1.0, 2.0, 3.0), ((1, 0.012),))
    assert ScanGrid.of(canonical, affine.ravel().tolist()) == expected
    stored = canonical.transpose(2, 0, 1)[::-1]  # z first, and downwards
    turned = np.array([[0, 1, 0, 0], [0, 0, 2, 0], [-3, 0, 0, 15], [0, 0, 0, 1]], float)
    assert ScanGrid.of(stored, turned.ravel().tolist()) == expected
    outline = ScanGrid.outline(stored.shape, turned.ravel().tolist())  # without the mask
    assert (outline.shape, outline.spacing, outline.slice_ml) == (expected.shape, expected.spacing, None)


def test_a_scan_is_the_same_after_it_was_written_and_read() -> None:
    assert StoredScan.read(json.loads(json.dumps(SCAN.written()))) == SCAN


def test_no_text_of_another_client_hides_or_reverses_others() -> None:
    message, _ = of_others(1)
    hostile = "a\u202eb\x1b"
    source = replace(message.scan, name=hostile, patient=hostile)
    texts = {"grade": hostile, "bundle": hostile, "trained_on": hostile, "warnings": [hostile, hostile * 1000]}
    scan = StoredScan.observed("0" * 32, replace(message, scan=source, **texts), 0.0)
    shown = [scan.name, scan.patient, scan.grade or "", scan.bundle or "", scan.trained_on, *scan.warnings]
    assert all(text.isprintable() and len(text) <= MAX_TEXT for text in shown)
    assert scan.name == r"a\u202eb\x1b"


@pytest.mark.parametrize("status", ["queued", "done", None])
def test_only_an_ended_scan_is_read(status: str | None) -> None:
    with pytest.raises(ValueError, match="status"):
        StoredScan.read({**SCAN.written(), "status": status})
