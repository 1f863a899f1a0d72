"""The scale of a scan: what plain numpy gives, which works through the whole volume for each step."""

import numpy as np
import pytest
from gliaflow_preprocessor.scaling import (
    CLIP,
    FILLED,
    FILLED_TOLERANCE,
    HEAD,
    IntensityScale,
    UnusableScan,
    fill_not_finite,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st


def plainly(volume):
    """The scaled volume and where the head is, step by step."""
    volume = volume.astype(np.float32)
    fill_not_finite(volume)
    corner = float(np.median(volume[:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1]))
    low, high = np.percentile(volume, [0.5, 99.5])
    background = np.abs(volume - np.float32(corner)) <= FILLED_TOLERANCE * (high - low)
    if background.mean() >= FILLED and not background.all():
        darkest, dark = np.percentile(volume[~background], [0.5, 5])
        if corner > dark or corner < 0 <= darkest:
            volume[background] = min(0.0, float(darkest))
    air, bright = np.percentile(volume, [1, 99.5])
    volume -= air
    head = volume > HEAD * (bright - air)
    if bright <= air or not head.any():
        return None
    return np.clip(volume / np.median(volume[head]), 0, CLIP), head


def scan(shape, background, noise, seed):
    """A head of noise about 300 in a background: a value, or noise of a width."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = i**2 + j**2 + k**2 < rng.uniform(0.3, 1.2)
    return np.where(inside, rng.normal(300, 60, shape), background + noise * rng.standard_normal(shape))


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(8, 14)] * 3),
    background=st.sampled_from([0, -1000, 4000, 250, 40, -0.5]),
    noise=st.sampled_from([0, 0.01, 5]),
    offset=st.sampled_from([0, -300, 17.3]),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.float32]),
    order=st.sampled_from("CF"),
    spoilt=st.sampled_from([(), (np.nan,), (np.inf, -np.inf)]),
    seed=st.integers(0, 5),
)
def test_the_scale_is_that_of_plain_numpy(shape, background, noise, offset, dtype, order, spoilt, seed):
    volume = scan(shape, background, noise, seed) + offset
    if np.dtype(dtype).kind != "f":
        volume = np.clip(np.round(volume), np.iinfo(dtype).min, np.iinfo(dtype).max)
    volume = np.asarray(volume, dtype, order=order)
    if np.dtype(dtype).kind == "f":
        for number, value in enumerate(spoilt):
            volume[number, 3, 4] = value
        expected = plainly(volume)
        fill_not_finite(volume)
    else:
        expected = plainly(volume)
    assume(expected is not None)
    scale = IntensityScale.of(volume)
    np.testing.assert_array_equal(scale.find_head(volume), expected[1])
    scaled = volume.astype(np.float32)
    scale.apply(scaled)
    np.testing.assert_array_equal(scaled, expected[0])


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_constant_volume_has_no_scale(value, dtype):
    with pytest.raises(UnusableScan, match="constant or almost empty"):
        IntensityScale.of(np.full((20, 20, 20), value, dtype))
