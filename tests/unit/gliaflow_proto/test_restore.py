"""A mask on the scan's own grid: each voxel has the value of the network's pixel nearest to it, or 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gliaflow_proto import Geometry, geometry, restore
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

SIDE = st.integers(1, 9)


@st.composite
def masks(draw: st.DrawFn) -> tuple[NDArray[np.uint8], Geometry]:
    axes, signs = draw(st.permutations([0, 1, 2])), draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    shape = [draw(SIDE) for _ in range(3)]
    slices = draw(st.permutations(range(shape[axes.index(2)])).flatmap(lambda z: st.sampled_from([z, sorted(z)])))
    size = [draw(SIDE), draw(SIDE)]
    about = Geometry(
        affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        shape=shape,
        orientation=[number for pair in zip(axes, signs, strict=True) for number in pair],
        origin=[draw(st.floats(-5, 5)), draw(st.floats(-5, 5))],
        step=[draw(st.floats(0.3, 3)), draw(st.floats(0.3, 3))],
        size=size,
        slices=slices[: draw(st.integers(1, len(slices)))],
    )
    density, seed = draw(st.sampled_from([0, 0.02, 0.5, 1])), draw(st.integers(0, 99))
    mask = np.random.default_rng(seed).random((len(about.slices), *size)) < density
    return mask.astype(np.uint8), about


def voxel_by_voxel(mask: NDArray[np.uint8], about: Geometry) -> NDArray[np.uint8]:
    """The definition in ``Geometry``."""
    stored = np.zeros(about.shape, np.uint8)
    for place in np.ndindex(*about.shape):
        ras = [0, 0, 0]
        for at, length, axis, sign in zip(
            place, about.shape, about.orientation[::2], about.orientation[1::2], strict=True
        ):
            ras[axis] = at if sign > 0 else length - 1 - at
        row, column = (math.floor((ras[n] - about.origin[n]) / about.step[n] + 0.5) for n in (0, 1))
        if ras[2] in about.slices and 0 <= row < about.size[0] and 0 <= column < about.size[1]:
            stored[place] = mask[about.slices.index(ras[2]), row, column]
    return stored


@given(masks())
@pytest.mark.parametrize("at_once", [1, 2**20])
def test_each_voxel_has_the_value_of_the_nearest_pixel(
    at_once: int, sample: tuple[NDArray[np.uint8], Geometry]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "RESTORED_AT_ONCE", at_once)
        np.testing.assert_array_equal(restore(*sample), voxel_by_voxel(*sample))
