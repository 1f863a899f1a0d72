"""The answer as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gliaflow_dicom.objects import capture
from gliaflow_dicom.objects.capture import chosen_slices
from gliaflow_dicom.objects.make import make_objects
from gliaflow_pages.drawing import FOUND
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from sample_answers import answer_to, lesion, no_tumour, small_series

ORANGE = np.round(np.array(to_rgb(FOUND)) * 255)


def orange(picture: Dataset) -> NDArray[np.bool_]:
    """Where the picture has the colour of outlines. Its heading, in the same colour, is left out."""
    return (np.abs(picture.pixel_array[80:].astype(int) - ORANGE) < 8).all(axis=2)


def test_the_picture_is_in_colour_and_shows_the_outline(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    picture = make_objects(series, answer_to(series), capture=True)["_sc.dcm"]
    assert (picture.PhotometricInterpretation, picture.Columns) == ("RGB", 1200)
    assert orange(picture).sum() > 100


def test_without_tumour_there_is_no_outline(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    assert not orange(make_objects(series, no_tumour(series), capture=True)["_sc.dcm"]).any()


def test_the_picture_says_what_a_reader_must_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    texts: list[str] = []
    for kind in (Figure, Axes):
        original = kind.text

        def text(self, x, y, s, *args, original=original, **options):  # type: ignore[no-untyped-def]
            texts.append(s)
            return original(self, x, y, s, *args, **options)

        monkeypatch.setattr(kind, "text", text)
    series = small_series(tmp_path)
    picture = make_objects(series, answer_to(series, tumour_ml=12.34, warnings=("noisy",)), capture=True)["_sc.dcm"]
    written = "\n".join(texts)
    for part in ("HGG", "P(HGG) 0.934", "volume 12.3 ml", "NOT A MEDICAL DEVICE", "demo@0123456789ab", "phantoms"):
        assert part in written
    assert "Warnings: 1, in the structured report." in written
    assert {"R", "L", "A"} <= set(texts)
    assert "CANARY" not in written
    assert picture.BurnedInAnnotation == "NO"


def test_it_is_made_only_if_it_is_wanted(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    assert list(make_objects(series, answer_to(series))) == ["_seg.dcm", "_sr.dcm"]
    assert list(make_objects(series, answer_to(series), capture=True)) == ["_seg.dcm", "_sr.dcm", "_sc.dcm"]


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow_pages.drawing.find_spec", lambda name: None)
    series = small_series(tmp_path)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        make_objects(series, answer_to(series), capture=True)


def test_slices_are_spread_over_the_tumour_with_the_fullest() -> None:
    mask = np.zeros((4, 4, 40), bool)
    mask[0, 0, 10:30] = True
    mask[:, :, 17] = True
    chosen = chosen_slices(mask)
    assert len(chosen) == capture.COLUMNS * capture.ROWS
    assert 17 in chosen
    assert chosen == sorted(chosen)
    assert 10 <= chosen[0] < 15
    assert 25 < chosen[-1] < 30


def test_a_small_tumour_is_shown_with_its_neighbours() -> None:
    mask = np.zeros((4, 4, 40), bool)
    mask[0, 0, 38:] = True
    assert chosen_slices(mask) == [34, 35, 36, 37, 38, 39]
    assert set(np.flatnonzero(lesion()[:, :, :7].any(axis=(0, 1)))) <= set(chosen_slices(lesion()[:, :, :7]))


def test_few_slices_are_all_shown() -> None:
    mask = np.zeros((4, 4, 3), bool)
    mask[0, 0, 1] = True
    assert chosen_slices(mask) == [0, 1, 2]
