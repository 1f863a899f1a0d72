"""Phantoms are the same for the same seed, and show their grade by texture, not size."""

from __future__ import annotations

import numpy as np
import pytest
from gliaflow_phantoms.anatomy import Head
from gliaflow_phantoms.atlas import atlas
from gliaflow_phantoms.phantom import Phantom, make_patient
from gliaflow_phantoms.shapes import Grid
from gliaflow_phantoms.tumour import _arrival
from scipy import ndimage


def volume_ml(phantom: Phantom) -> float:
    return float((phantom.mask > 0).sum() * abs(np.linalg.det(phantom.affine[:3, :3])) / 1000)


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    """Eight pairs of patients, one of each grade, that are drawn from the same numbers."""
    return [make_patient(grade, np.random.default_rng([5, k])) for k in range(8) for grade in ("HGG", "LGG")]


def test_a_patient_depends_on_the_random_generator_alone() -> None:
    first, again, other = (make_patient("HGG", np.random.default_rng([3, k])) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.flair, again.flair)
    np.testing.assert_array_equal(first.mask, again.mask)
    np.testing.assert_array_equal(first.affine, again.affine)
    assert first.flair.shape != other.flair.shape or (first.flair != other.flair).any()


def test_every_patient_has_a_tumour_in_the_head(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        assert phantom.flair.dtype == np.int16
        assert phantom.mask.dtype == np.uint8
        assert phantom.flair.shape == phantom.mask.shape
        assert set(np.unique(phantom.mask)) <= {0, 1, 2, 4}
        tumour = phantom.mask > 0
        assert 4 < volume_ml(phantom) < 360
        air = np.percentile(phantom.flair, 5)
        assert phantom.flair[tumour].mean() > 3 * air


@pytest.mark.parametrize("seed", range(4))
def test_a_head_ends_in_air_on_all_sides(seed: int) -> None:
    rng = np.random.default_rng([7, seed])
    grid = Grid.draw(rng)
    tissue = sum(Head(grid, rng).outside().values())
    assert max(tissue[0].mean(), tissue[-1].mean()) == 0
    assert max(tissue[:, 0].mean(), tissue[:, -1].mean()) < 0.05  # of the largest noses, the tip


def test_only_an_enhancing_tumour_has_a_rim(cohort: list[Phantom]) -> None:
    rims = {grade: sum((p.mask == 4).any() for p in cohort if p.grade == grade) for grade in ("HGG", "LGG")}
    assert rims["HGG"] > rims["LGG"]
    assert all((phantom.mask == 1).any() for phantom in cohort if (phantom.mask == 4).sum() > 500)


def test_most_tumours_are_brighter_than_the_brain(cohort: list[Phantom]) -> None:
    def contrast(phantom: Phantom) -> float:
        # the brain's middle half, in any storage order
        middle = tuple(slice(n // 4, 3 * n // 4) for n in phantom.flair.shape)
        brain = phantom.flair[middle][phantom.mask[middle] == 0]
        return float(np.median(phantom.flair[phantom.mask == 2]) / np.median(brain[brain > brain.mean() / 2]))

    assert np.median([contrast(phantom) for phantom in cohort]) > 1.2


def test_volume_does_not_depend_on_the_grade(cohort: list[Phantom]) -> None:
    # The n-th patients of both grades are drawn from the same numbers, except for the tumour's looks: their volumes
    # are equal, unless the brain has no room for one of them.
    pairs = zip(cohort[::2], cohort[1::2], strict=True)
    apart = [abs(np.log(volume_ml(hgg) / volume_ml(lgg))) for hgg, lgg in pairs]
    assert np.median(apart) < 0.02


def test_more_high_grade_tumours_have_a_dark_core(cohort: list[Phantom]) -> None:
    cored = {
        grade: sum((phantom.mask == 1).any() for phantom in cohort if phantom.grade == grade)
        for grade in ("HGG", "LGG")
    }
    assert cored["HGG"] > cored["LGG"] + 2


def test_an_unknown_grade_is_an_error() -> None:
    with pytest.raises(ValueError, match="grade"):
        make_patient("II", np.random.default_rng(0))


def test_other_sequences_do_not_change_the_flair_and_are_on_its_grid() -> None:
    alone = make_patient("HGG", np.random.default_rng([5, 1]))
    four = make_patient("HGG", np.random.default_rng([5, 1]), ("flair", "t1", "t1ce", "t2"))
    np.testing.assert_array_equal(alone.flair, four.flair)
    assert {image.shape for image in four.images.values()} == {alone.flair.shape}
    assert not np.array_equal(four.images["t1"], four.images["t1ce"])


def test_each_sequence_shows_the_contrast_of_its_tissues() -> None:
    """Medians over drawings: T1 has dark tumours and fluid, T2 bright ones; contrast medium brightens the rims."""
    drawn = [make_patient("HGG", np.random.default_rng([6, k]), ("flair", "t1", "t1ce", "t2")) for k in range(6)]
    rims = [phantom for phantom in drawn if (phantom.mask == 4).sum() > 200]
    assert len(rims) >= 3

    def level(phantom: Phantom, sequence: str, label: int) -> float:
        image = phantom.images[sequence].astype(float)
        around = ndimage.binary_dilation(phantom.mask > 0, iterations=4) & (phantom.mask == 0)
        return float(np.median(image[phantom.mask == label]) / np.median(image[around]))

    assert np.median([level(phantom, "flair", 2) for phantom in drawn]) > 1.2
    assert np.median([level(phantom, "t1", 2) / level(phantom, "flair", 2) for phantom in drawn]) < 0.8
    assert np.median([level(phantom, "t2", 2) for phantom in drawn]) > 1.1
    assert np.median([level(phantom, "t1ce", 4) / level(phantom, "t1", 4) for phantom in rims]) > 1.3


def test_the_atlas_is_the_same_on_both_sides_and_its_distances_are_those_of_its_maps() -> None:
    maps = atlas().maps
    for field in maps.values():
        np.testing.assert_allclose(field, field[::-1], atol=1e-5)
    inside = maps["brain"] < 0
    assert 1_700 < inside.sum() * atlas().mm ** 3 / 1000 < 2_000  # ml
    assert (maps["grey"] + maps["white"] + maps["csf"])[inside].max() < 1.2
    assert maps["white"][maps["ventricle"] < -2].max() < 0.5
    (brain,) = atlas().at(tuple(np.float32([[0], [0], [0]])[:, :, None, None]), "brain")
    assert brain.item() < -20  # the middle of the head is deep in the brain


def test_a_front_goes_around_what_is_slow() -> None:
    slow = np.ones((9, 9, 1), np.float32)
    slow[4, :8] = 50
    time = _arrival(slow, (0, 0, 0), [1.0, 1.0, 1.0])
    assert time[0, 8, 0] == 8
    assert 12 < time[8, 0, 0] < 24  # through the gap at the end of the wall: the straight way takes over 50


@pytest.mark.parametrize("sequences", [("flair", "dwi"), ("t1",), ()])
def test_a_phantom_has_a_flair_and_no_unknown_sequence(sequences: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"must be flair, or flair with .*: {', '.join(sequences) or 'none'}$"):
        make_patient("HGG", np.random.default_rng(0), sequences)
