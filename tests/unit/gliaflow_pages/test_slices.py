"""Pictures of slices and feature maps: which side is which, and one scale for all."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gliaflow_preprocessor.slices import prepare, prepare_mask
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray

pytest.importorskip("matplotlib")

from gliaflow_pages.drawing import Picture
from gliaflow_pages.slices import Slice, feature_maps, slice_pictures, upright

ROWS, COLUMNS = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")


def pixels(picture: Picture) -> NDArray[Any]:
    """Height, width and RGBA from 0 to 1."""
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(picture.data)))


def head(size: float = 0.8) -> NDArray[Any]:
    return np.asarray((np.hypot(ROWS, COLUMNS) < size) * 100.0)


def blob(row: float, column: float, radius: float = 0.15) -> NDArray[Any]:
    return np.asarray((ROWS - row) ** 2 + (COLUMNS - column) ** 2 < radius**2)


def centre_of(where: NDArray[Any]) -> tuple[float, float]:
    """Of true pixels: how far down and how far to the right, 0 to 1."""
    down, right = np.nonzero(where)
    return float(down.mean() / where.shape[0]), float(right.mean() / where.shape[1])


def blue(image: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((image[..., 2] > 0.8) & (image[..., 0] < 0.5))


def amber(image: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((image[..., 0] > 0.8) & (image[..., 2] < 0.3))


@pytest.mark.parametrize(
    ("stored", "affine"),
    [
        ((slice(None), slice(None)), np.diag([2.0, 2, 5, 1])),  # RAS+: the first voxel is left, back, below
        ((slice(None, None, -1), slice(None, None, -1)), np.diag([-2.0, -2, 5, 1])),  # LPS+: right, front, below
    ],
    ids=["RAS+", "LPS+"],
)
def test_the_patients_left_front_is_at_the_upper_right_whatever_the_storage(
    stored: tuple[slice, slice], affine: NDArray[Any]
) -> None:
    """A phantom with a tumour in front on the left: low along the axis to the right, high along the axis to the front.

    In RAS+ coordinates the patient's left has negative x, and the front has positive y.
    """
    tumour = blob(-0.4, 0.4)
    volume = np.stack([head() + 50 * tumour] * 4, axis=2)
    mask = np.stack([tumour] * 4, axis=2)
    prepared = prepare(volume[stored], affine, InputSpec(size=(64, 64), spacing=(2.0, 2.0)))
    true = prepare_mask(mask[stored], prepared.geometry)
    (picture,) = slice_pictures([Slice(prepared.image[0], true[0], np.zeros_like(true[0]))])
    down, right = centre_of(blue(pixels(picture)))
    assert down < 0.4
    assert right > 0.6


def test_r_and_l_are_written_into_the_upper_corners() -> None:
    nothing = np.zeros((64, 64))
    (picture,) = slice_pictures([Slice(head(0.3) + head(0.9) * 0.01, nothing, nothing)])
    white = pixels(picture)[..., :3].min(axis=2) > 0.9
    height, width = white.shape
    assert white[: height // 6, : width // 6].any()
    assert white[: height // 6, -width // 6 :].any()


def test_the_true_mask_is_blue_and_the_mask_that_was_found_is_amber() -> None:
    (picture,) = slice_pictures([Slice(head(), blob(-0.4, 0), blob(0.4, 0))])
    image = pixels(picture)
    assert centre_of(blue(image))[1] > 0.6 > 0.4 > centre_of(amber(image))[1], "left is at the right"


def test_all_slices_have_one_field_of_view_which_the_largest_head_fills() -> None:
    nothing = np.zeros((64, 64))
    small, large, fine = pictures = slice_pictures(
        [
            Slice(head(0.4), nothing, nothing),
            Slice(head(0.8), nothing, nothing),
            Slice(head(0.8), nothing, nothing, (0.5, 0.5)),  # the same head of half the size in mm
        ]
    )
    assert len({pixels(picture).shape for picture in pictures}) == 1
    widths = {}
    for name, picture in (("small", small), ("large", large), ("fine", fine)):
        row = pixels(picture)[..., 0]
        widths[name] = float((row[row.shape[0] // 2] > 0.5).mean())
    assert widths["large"] > 0.8
    assert widths["small"] == pytest.approx(widths["large"] / 2, rel=0.1)
    assert widths["fine"] == pytest.approx(widths["large"] / 2, rel=0.1)


def test_empty_and_constant_slices_are_drawn() -> None:
    nothing, everything = np.zeros((32, 32)), np.ones((32, 32))
    assert len(slice_pictures([Slice(nothing, nothing, everything), Slice(everything * np.nan, nothing, nothing)])) == 2
    assert slice_pictures([]) == []


def test_dice_is_of_the_slice_and_unknown_where_there_is_no_tumour() -> None:
    mask = blob(0, 0)
    assert Slice(head(), mask, mask).dice() == 1
    assert Slice(head(), mask, np.zeros_like(mask)).dice() == 0
    assert Slice(head(), np.zeros_like(mask), np.zeros_like(mask)).dice() is None


def test_upright_turns_slices_and_feature_maps_alike() -> None:
    plane = np.zeros((4, 6))
    plane[0, -1] = 1  # leftmost, foremost
    assert upright(plane).shape == (6, 4)
    assert upright(plane)[0, -1] == 1
    assert np.array_equal(upright(np.stack([plane] * 3))[1], upright(plane))


def maps(*planes: NDArray[Any]) -> NDArray[Any]:
    """Feature maps [1, C, H, W]."""
    return np.stack(planes)[None].astype(np.float16)


def test_feature_maps_are_turned_as_the_slices_and_cropped_to_their_content() -> None:
    channel = 5.0 * blob(-0.5, 0.5, 0.3)
    drawn = feature_maps(maps(channel), maps(channel * 0.5))
    real, synthetic = pixels(drawn.real)[..., 0], pixels(drawn.synthetic)[..., 0] if drawn.synthetic else np.zeros(0)
    assert real.shape == synthetic.shape
    assert (real > 0.5).mean() > 0.5, "the map fills the picture"
    assert real.max() == pytest.approx(1, abs=0.01)
    assert synthetic.max() == pytest.approx(0.5, abs=0.01), "one grey scale for both"
    assert drawn.white == (5.0, 5.0)
    corner = np.zeros((16, 16))
    corner[0, -1] = corner[-1, 0] = corner[-1, -1] = 1  # all corners but the patient's left at the back
    turned = pixels(feature_maps(maps(corner), None).real)[..., 0] > 0.5
    assert [turned[0, 0], turned[0, -1], turned[-1, 0], turned[-1, -1]] == [True, True, True, False]


def test_the_strongest_channels_are_shown_and_silent_ones_left_out() -> None:
    planes = [strength * blob(0, 0, 0.5) for strength in (1, 3, 0, 0.0001, 2)]
    drawn = feature_maps(maps(*planes), None)
    assert (drawn.shown, drawn.white) == (3, (1.0, 3.0))
    assert drawn.synthetic is None
    many = feature_maps(maps(*[strength * blob(0, 0, 0.5) for strength in range(1, 21)]), None)
    assert (many.shown, many.white) == (8, (13.0, 20.0))
    assert feature_maps(np.zeros((2, 3, 8, 8)), None).shown == 3, "nothing responds: all are drawn, black"


def test_a_row_is_a_sample_and_a_column_a_channel() -> None:
    real = np.stack([np.stack([(1 + n) * blob(0, 0, 0.9)] * 3) for n in range(2)])
    image = pixels(feature_maps(real, None).real)
    gaps = (image[..., 3] == 0).all(axis=0), (image[..., 3] == 0).all(axis=1)
    assert [sum(after and not before for before, after in pairwise(gap)) for gap in gaps] == [2, 1]
