"""UIDs and series numbers of the objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gliaflow_dicom.objects.make import make_objects
from gliaflow_dicom.objects.uids import object_uid, series_number
from pydicom.uid import UID
from sample_answers import answer_to, no_tumour, small_series


def test_a_repeat_has_the_same_uids_whatever_the_answer(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    once, again = make_objects(series, answer_to(series)), make_objects(series, no_tumour(series))
    for ending in ("_seg.dcm", "_sr.dcm"):
        assert once[ending].SOPInstanceUID == again[ending].SOPInstanceUID
        assert once[ending].SeriesInstanceUID == again[ending].SeriesInstanceUID


def test_uids_are_derived_from_images_bundle_and_kind(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    fewer = replace(series, slices=series.slices[:-1])
    shuffled = replace(series, slices=series.slices[::-1])
    uid = object_uid(series, "demo@0123456789ab", "SEG")
    others = {
        object_uid(fewer, "demo@0123456789ab", "SEG"),
        object_uid(series, "demo@ba9876543210", "SEG"),
        object_uid(series, "demo@0123456789ab", "SR"),
        object_uid(replace(series, sequences={"t1ce": fewer}), "demo@0123456789ab", "SEG"),
        object_uid(replace(series, sequences={"t2": fewer}), "demo@0123456789ab", "SEG"),
    }
    assert uid not in others
    assert len(others) == 5
    assert object_uid(shuffled, "renamed@0123456789ab", "SEG") == uid
    assert UID(uid).is_valid
    assert uid.startswith("2.25.")


def test_every_object_is_in_a_series_of_its_own(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    made = make_objects(series, answer_to(series), capture=True).values()
    assert [each.SeriesNumber for each in made] == [10041, 10042, 10043]  # the source is series 4
    assert len({each.SeriesInstanceUID for each in made} | {series.uid}) == 4
    assert len({each.SOPInstanceUID for each in made}) == 3


def test_series_numbers_of_series_without_a_plausible_number(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    for number in (None, -3, 2**31 - 1):
        assert series_number(replace(series, number=number), "SR") == 10002


def test_a_file_that_is_gone_is_an_error_with_its_name_alone(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    series.paths[3].unlink()
    with pytest.raises(ValueError, match=rf"^{series.paths[3].name}: No such file or directory$"):
        make_objects(series, answer_to(series))
