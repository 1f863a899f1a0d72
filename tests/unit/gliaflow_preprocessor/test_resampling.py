"""The matrices that resample an axis do what scipy's filter and transform do, at the borders too."""

import numpy as np
from gliaflow_preprocessor.resampling import resampling
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 2),
    size=st.tuples(*[st.integers(1, 30)] * 2),
    step=st.tuples(*[st.one_of(st.just(1.0), st.floats(0.2, 9.0))] * 2),
    origin=st.tuples(*[st.integers(-20, 45)] * 2),
)
@example((10, 12), (10, 12), (1.0, 1.0), (0, 0))
@example((10, 12), (4, 4), (1.6, 1.6), (100, 100))  # all pixels are outside
def test_two_matrices_resample_a_plane(shape, size, step, origin):
    plane = np.random.default_rng(0).normal(1, 1, shape).astype(np.float32)
    blurred = ndimage.gaussian_filter(plane, [max(0.0, (s - 1) / 2) for s in step])
    expected = ndimage.affine_transform(blurred, step, origin, size, order=1, cval=0.0)
    (rows, x), (columns, y) = (resampling(shape[n], size[n], step[n], origin[n]) for n in (0, 1))
    assert rows.shape == (size[0], x.stop - x.start)
    np.testing.assert_allclose(rows @ plane[x, y] @ columns.T, expected, atol=2e-6)


def test_with_the_bundles_spacing_voxels_are_taken_as_they_are():
    matrix, taken = resampling(20, 8, 1.0, 3.0)
    assert taken.start == 3
    values = np.random.default_rng(0).normal(0, 1, 20).astype(np.float32)
    np.testing.assert_array_equal(matrix @ values[taken], values[3:11])
