"""Augmentations of the scanner: at any scale of intensities, and each as the physics of its artefact says."""

from typing import Any

import numpy as np
import pytest
from gliaflow_plugins.augmentations.kspace import Ghosting, LowResolution, Motion, Spikes
from gliaflow_plugins.augmentations.pipeline import SCANNER_AUGMENTATIONS, AugmentationPipeline
from gliaflow_plugins.augmentations.scanner import BiasField, Blur, Gamma, Histogram, RicianNoise, Scanner
from gliaflow_plugins.registry import load_registry
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

REGISTRY = load_registry()
NAMES = [name for name, _ in SCANNER_AUGMENTATIONS]
ALL: list[Any] = [REGISTRY.augmentation(name) for name in NAMES]
seeds = st.integers(0, 2**32 - 1)


def head(shape: tuple[int, int] = (60, 48)) -> np.ndarray:
    """A stripped head: 0.6 to 1.4 in an ellipse, 0 around it."""
    rows, columns = (np.indices(shape) + 0.5) / np.reshape(shape, (2, 1, 1)) - 0.5
    inside = (rows / 0.4) ** 2 + (columns / 0.35) ** 2 < 1
    return np.asarray(inside * np.random.default_rng(0).uniform(0.6, 1.4, shape), np.float32)


def change(plugin: Scanner, image: np.ndarray, seed: int = 0, **options: Any) -> np.ndarray:
    mask = (image > 1).astype(np.uint8)
    changed, same = plugin(image, mask, np.random.default_rng(seed), plugin.options(**options))
    assert np.array_equal(same, image > 1), "the mask stays as it is"
    return changed


def test_all_of_the_scanner_are_in_the_list() -> None:
    shipped = {name for name, plugin in REGISTRY.augmentations.items() if isinstance(plugin, Scanner)}
    assert shipped == set(NAMES)


@settings(deadline=None, max_examples=40)
@given(
    plugin=st.sampled_from(ALL),
    seed=seeds,
    scale=st.floats(1e-3, 1e4),
    offset=st.floats(-1, 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_the_result_does_not_depend_on_the_unit_of_intensities(
    plugin: Scanner, seed: int, scale: float, offset: float, shape: tuple[int, int]
) -> None:
    image = head(shape)
    changed = change(plugin, image, seed)
    other = change(plugin, (scale * (image + offset)).astype(np.float32), seed)
    assert changed.dtype == np.float32
    assert changed.shape == shape
    near = 3e-3 * max(1, changed.max())  # a value at the edge of a table's step may get the next one
    assert np.allclose(other / scale - offset, changed, atol=near)


@pytest.mark.parametrize("plugin", ALL, ids=NAMES)
def test_a_slice_is_changed_with_the_given_probability_and_a_blank_one_never(plugin: Scanner) -> None:
    image = head()
    assert sum(np.any(change(plugin, image, seed, probability=0.3) != image) for seed in range(100)) in range(18, 43)
    assert np.array_equal(change(plugin, np.full((9, 7), 2, np.float32)), np.full((9, 7), 2))


@pytest.mark.parametrize("plugin", [Gamma(), Histogram(), BiasField()], ids=lambda plugin: plugin.name)
def test_what_acts_on_tissue_leaves_air_alone(plugin: Scanner) -> None:
    image = head()
    for seed in range(10):
        changed = change(plugin, image, seed)
        assert np.array_equal(changed > 0, image > 0)


@pytest.mark.parametrize("plugin", ALL, ids=NAMES)
def test_air_of_a_stripped_scan_stays_on_request(plugin: Scanner) -> None:
    image = head() - np.float32(0.5)
    changed = change(plugin, image, 1, stripped=True)
    assert (changed[image == -0.5] == -0.5).all()
    assert (changed[image > -0.5] != image[image > -0.5]).any()


def test_a_bias_field_is_a_smooth_gain_of_the_given_strength() -> None:
    spreads = []
    for seed in range(100):
        image = np.ones((80, 100), np.float32)
        image[0, 0] = 0
        log = np.log(change(BiasField(), image, seed, strength=0.4)[1:, 1:])
        spreads.append(log.std())
        assert max(np.abs(np.diff(log, axis=axis)).max() for axis in (0, 1)) < 0.1, "from pixel to pixel"
    assert 0.35 < max(spreads) < 0.42
    assert min(spreads) < 0.05
    assert np.mean(spreads) == pytest.approx(0.2, abs=0.04)


def test_gamma_is_a_power_about_the_heads_level() -> None:
    image = head()
    inside = image > 0
    level = (image**2).sum() / image.sum()
    exponents = []
    for seed in range(50):
        powers = np.log(change(Gamma(), image, seed, spread=0.5)[inside] / level) / np.log(image[inside] / level)
        assert np.ptp(powers[np.abs(image[inside] / level - 1) > 0.05]) < 1e-3
        exponents.append(np.median(powers))
    assert np.exp(-0.5) < min(exponents) < 0.7
    assert 1.45 < max(exponents) < np.exp(0.5)


def test_a_histogram_keeps_the_order_of_intensities_and_the_level() -> None:
    image = head()
    level = (image**2).sum() / image.sum()
    for seed in range(20):
        changed = change(Histogram(), image, seed)
        in_order = changed.ravel()[image.ravel().argsort()]
        assert (np.diff(in_order) >= 0).all()
        assert np.interp(level, np.sort(image.ravel()), in_order) == pytest.approx(level, rel=0.01)


def test_rician_noise_is_rayleigh_in_air_and_gaussian_in_the_head() -> None:
    """Gudbjartsson and Patz: in air, mean σ√(π/2) and mean square 2σ²; for a signal A ≫ σ, mean A + σ²/2A and σ."""
    image = np.zeros((300, 300), np.float32)
    image[:, 150:] = 1
    noisy = change(RicianNoise(), image, 3, deviation=0.2)
    air, tissue = noisy[:, :150], noisy[:, 150:]
    sigma = np.sqrt(np.square(air).mean() / 2)
    assert 0.01 < sigma < 0.2
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert tissue.std() == pytest.approx(sigma, rel=0.02)
    assert tissue.mean() == pytest.approx(1 + sigma**2 / 2, abs=0.1 * sigma)


def test_blur_spreads_a_point_along_each_axis_by_itself() -> None:
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    blurred = np.array([change(Blur(), point, seed, sigma=3) for seed in range(40)])
    assert np.allclose(blurred.sum(axis=(1, 2)), 1, atol=1e-4)
    distance = np.square(np.arange(41) - 20)
    rows, columns = (np.sqrt(blurred.sum(axis=axis) @ distance) for axis in (2, 1))
    assert 2.5 < max(rows.max(), columns.max()) < 3.01
    assert np.abs(np.corrcoef(rows, columns)[0, 1]) < 0.4


def waves(period: float) -> np.ndarray:
    """Stripes across rows and columns."""
    rows, columns = np.indices((96, 96))
    return np.asarray(2 + np.cos(2 * np.pi * rows / period) + np.cos(2 * np.pi * columns / period), np.float32)


def test_low_resolution_takes_fine_detail_away_along_one_axis_and_leaves_the_rest() -> None:
    coarse, fine = waves(period=16), waves(period=2)
    axes = set()
    for seed in range(20):
        assert np.allclose(change(LowResolution(), coarse, seed, factor=4), coarse, atol=1e-5)
        left = change(LowResolution(), fine, seed, factor=4).std(axis=(0, 1)), fine.std(axis=(0, 1))
        assert left[0] < left[1]
        spectrum = np.abs(np.fft.fft2(change(LowResolution(), fine, seed, factor=4)))
        axes.add((spectrum[48, 0] < 1, spectrum[0, 48] < 1))
    assert axes == {(True, False), (False, True)}


def test_motion_takes_outer_lines_from_another_position_and_none_from_the_same() -> None:
    image = gaussian_filter(head(), 1)
    assert np.allclose(change(Motion(), image, 5, degrees=0, shift=0), image, atol=1e-5)
    changes = []
    for seed in range(20):
        changed = change(Motion(), image, seed)
        changes.append(np.abs(changed - image).mean())
        assert changed.mean() == pytest.approx(image.mean(), rel=0.05), "the centre of k-space has most of the signal"
        places = [(np.indices(image.shape) * pixels).sum(axis=(1, 2)) / pixels.sum() for pixels in (image, changed)]
        assert np.abs(places[0] - places[1]).max() < 0.5, "the head stays where the mask is"
    assert max(changes) > 0.01


def test_ghosts_of_a_line_are_at_equal_distances() -> None:
    image = np.zeros((1000, 8), np.float32)
    image[500] = 1
    nearest = np.abs((np.arange(1000) - 500 + 10) % 20 - 10)  # pixels to a multiple of 20
    heights = []
    for seed in range(10):
        changed = change(Ghosting(), image, seed, distance=0.02001, shift=0.003)
        power = np.square(changed[:, 0]) * (np.abs(np.arange(1000) - 500) > 10)  # without the line itself
        heights.append(np.sqrt(power.max()))
        assert power[nearest <= 4].sum() >= 0.9 * power.sum(), "each within the movement's 3 pixels"
    assert max(heights) > 0.1
    assert np.allclose(change(Ghosting(), image, shift=0), image, atol=1e-5)


def test_a_spike_is_one_wave_of_the_given_height() -> None:
    image = np.ones((240, 240), np.float32)
    image[0, 0] = 0
    heights = []
    for seed in range(20):
        stripes = change(Spikes(), image, seed, number=1, strength=0.2)[1:, 1:] - 1
        heights.append((stripes.max() - stripes.min()) / 2)
        spectrum = np.square(np.abs(np.fft.fft2(stripes - stripes.mean())))
        highest = np.sort(spectrum.ravel())[::-1]
        assert highest[:18].sum() > 0.6 * highest.sum(), "a frequency between whole ones leaks to its neighbours"
    assert 0.15 < max(heights) < 0.201


def test_the_list_runs_as_a_pipeline_and_leaves_some_slices_alone() -> None:
    pipeline, image = AugmentationPipeline(REGISTRY, SCANNER_AUGMENTATIONS), head()
    changed = [pipeline(image, image > 1, np.random.default_rng(seed))[0] for seed in range(40)]
    assert 2 < sum(np.array_equal(each, image) for each in changed) < 25
    assert all(each.min() >= 0 for each in changed)


@pytest.mark.parametrize("plugin", ALL, ids=NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (31, 17)])
def test_the_strongest_options_give_finite_slices_of_any_shape(plugin: Scanner, shape: tuple[int, int]) -> None:
    strongest = {  # ``le`` of each number
        name: next(bound.le for bound in field.metadata if hasattr(bound, "le"))
        for name, field in plugin.options.model_fields.items()
        if field.metadata
    }
    image = head(shape) + np.linspace(0, 4, np.prod(shape), dtype=np.float32).reshape(shape)
    for seed in range(5):
        changed = change(plugin, image, seed, **strongest)
        assert np.isfinite(changed).all()
        assert changed.min() >= image.min() - 1e-5
        assert changed.max() > image.min() or np.ptp(image) == 0
