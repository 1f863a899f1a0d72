"""Percentiles and counts without sorting: what numpy gives for the same voxels, for each dtype and distribution."""

import weakref

import numpy as np
import pytest
from gliaflow_preprocessor.ordered import Ordered, percentiles, with_copies
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

FINITE = {"allow_nan": False, "allow_infinity": False}
volumes = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.float16, np.float32]).flatmap(
    lambda dtype: arrays.arrays(
        dtype,
        arrays.array_shapes(min_dims=1, max_dims=3, max_side=6),
        elements=st.one_of(
            st.sampled_from([0, 1, 3, 127]),  # many equal voxels, as in a background
            arrays.from_dtype(np.dtype(dtype), **(FINITE if np.dtype(dtype).kind == "f" else {})),
        ),
        fill=st.nothing(),
    )
)


@settings(max_examples=60, deadline=None)
@given(volumes, st.lists(st.floats(0, 100), min_size=1, max_size=3))
def test_percentiles_are_those_of_numpy(volume, shares):
    plain = volume.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(percentiles(Ordered(volume), volume.size, shares), np.percentile(plain, shares))


@settings(max_examples=60, deadline=None)
@given(volumes, st.data())
def test_ranks_and_counts_are_those_of_the_sorted_voxels(volume, data):
    ordered, plain = Ordered(volume), np.sort(volume.astype(np.float32), axis=None)
    np.testing.assert_array_equal(ordered(np.arange(plain.size)), plain)
    limit = data.draw(st.sampled_from(list(plain)))
    assert ordered.count(lambda value: value < limit) == np.count_nonzero(plain < limit)
    assert ordered.count(lambda value: value <= limit) == np.count_nonzero(plain <= limit)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, plain.size)] * 2)))
    rest = np.delete(plain, slice(start, stop))
    np.testing.assert_array_equal(ordered.without(start, stop)(np.arange(rest.size)), rest)
    if rest.size:
        filled = with_copies(ordered.without(start, stop), limit, int(np.searchsorted(rest, limit)), stop - start)
        expected = np.sort(np.append(rest, np.full(stop - start, limit)))
        np.testing.assert_array_equal(filled(np.arange(plain.size)), expected)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_volume_of_many_blocks_and_in_any_order_of_axes(dtype, monkeypatch):
    monkeypatch.setattr("gliaflow_preprocessor.ordered.BLOCK", 1000)
    volume = np.random.default_rng(0).normal(0, 500, (20, 30, 17)).astype(dtype)
    for view in (volume, volume.transpose(2, 0, 1), np.asfortranarray(volume), volume[::-1, :, ::2]):
        found = percentiles(Ordered(view), view.size, [0.5, 50, 99.5])
        np.testing.assert_array_equal(found, np.percentile(view.astype(np.float32), [0.5, 50, 99.5]))


def test_the_voxels_are_freed_at_once():
    ordered = Ordered(np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32))
    percentiles(ordered, ordered.size, [50])
    reference = weakref.ref(ordered)
    del ordered
    assert reference() is None, "it waits for the garbage collector"
