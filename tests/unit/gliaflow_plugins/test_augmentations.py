"""The paper's augmentations: seeded, composed into one resampling, and applied to the mask as to the image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gliaflow_pages.slices import upright
from gliaflow_plugins import Options, PluginError
from gliaflow_plugins.augmentations.geometry import Affine, Displacement, Geometric, resample
from gliaflow_plugins.augmentations.pipeline import PAPER_AUGMENTATIONS, AugmentationPipeline
from gliaflow_plugins.augmentations.shipped import (
    Elastic,
    ElasticOptions,
    MirrorFrontBack,
    MirrorLeftRight,
    Rotation,
    RotationOptions,
    Shear,
    Shift,
    ShiftOptions,
    Zoom,
)
from gliaflow_plugins.registry import Registry, load_registry
from gliaflow_preprocessor.slices import prepare
from gliaflow_runtime.bundle.manifest import InputSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d, map_coordinates

MIRRORS = MirrorFrontBack(), MirrorLeftRight()
NAMES = [name for name, _ in PAPER_AUGMENTATIONS]
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


REGISTRY = load_registry()


def blob(shape: tuple[int, int] = (240, 240)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return ((rows - 130) ** 2 / 50**2 + (columns - 100) ** 2 / 30**2 < 1).astype(np.uint8)


def picture(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(shape=shapes, seed=seeds, name=st.sampled_from(["mirror-front-back", "mirror-left-right"]))
def test_a_mirror_is_exact_and_two_restore_the_image(shape: tuple[int, int], seed: int, name: str) -> None:
    image = picture(shape, seed)
    mask = (image > 0).astype(np.uint8)
    once = AugmentationPipeline(REGISTRY, [(name, {"probability": 1})])
    flipped, flipped_mask = once(image, mask, np.random.default_rng(0))
    axis = 1 if name == "mirror-front-back" else 0
    assert np.array_equal(flipped, np.flip(image, axis))
    assert np.array_equal(flipped_mask, np.flip(mask, axis))
    twice = AugmentationPipeline(REGISTRY, [(name, {"probability": 1})] * 2)
    assert np.array_equal(twice(image, mask, np.random.default_rng(0))[0], image)


@pytest.mark.parametrize(
    ("name", "place"),
    [("mirror-left-right", "upper left"), ("mirror-front-back", "lower right")],
)
def test_mirrors_are_named_by_what_they_do_to_the_patient(name: str, place: str) -> None:
    """A scan with a spot in front on the patient's left: the upper right of a page (radiological convention)."""
    volume = np.zeros((40, 40, 3), np.float32)
    volume[4:36, 4:36] = 1
    volume[8:14, 26:32] = 3  # RAS: low i is left, high j is front
    prepared = prepare(volume, np.eye(4), InputSpec(size=(40, 40), spacing=(1, 1)))
    image = prepared.image[1]

    def where(pixels: np.ndarray) -> str:
        rows, columns = np.nonzero(upright(pixels) > 0.8 * image.max())
        return f"{'upper' if rows.mean() < 19.5 else 'lower'} {'left' if columns.mean() < 19.5 else 'right'}"

    assert where(image) == "upper right"
    pipeline = AugmentationPipeline(REGISTRY, [(name, {"probability": 1})])
    assert where(pipeline(image, image > 0, np.random.default_rng(0))[0]) == place


@pytest.mark.parametrize(("earlier", "today"), [("hflip", "mirror-front-back"), ("vflip", "mirror-left-right")])
def test_earlier_names_give_the_same_numbers(earlier: str, today: str) -> None:
    image = picture((20, 30))
    axis = {"hflip": 1, "vflip": 0}[earlier]
    for seed in range(8):
        known, new = (
            AugmentationPipeline(REGISTRY, [(name, {}), ("rotation", {})])(
                image, image > 0, np.random.default_rng(seed)
            )
            for name in (earlier, today)
        )
        assert np.array_equal(known[0], new[0])
        assert np.array_equal(known[1], new[1])
    always = AugmentationPipeline(REGISTRY, [(earlier, {"probability": 1})])
    assert np.array_equal(always(image, image > 0, np.random.default_rng(0))[0], np.flip(image, axis))


@settings(deadline=None, max_examples=25)
@given(seed=seeds, steps=st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_the_mask_moves_with_the_image(seed: int, steps: list[str]) -> None:
    """Augment an image that is its own mask. The nearest pixel has a quarter or more of the bilinear weight."""
    mask = 4 * blob()  # a BraTS label: no values between 0 and 4
    pipeline = AugmentationPipeline(REGISTRY, [(name, {}) for name in steps])
    image, moved = pipeline((mask / 4).astype(np.float32), mask, np.random.default_rng(seed))
    assert image.dtype == np.float32
    assert moved.dtype == np.uint8
    assert set(np.unique(moved)) <= {0, 4}
    assert image[moved == 4].min() >= 0.25 - 1e-4
    assert image[moved == 0].max() <= 0.75 + 1e-4
    assert 0.5 < moved.sum() / mask.sum() < 2, "zoom, shear and elastic together can add more than a half"


def test_the_same_seed_gives_the_same_pair_and_another_seed_another_pair(registry: Registry) -> None:
    pipeline, image, mask = AugmentationPipeline(registry, PAPER_AUGMENTATIONS), picture((240, 240)), blob()
    first, again, other = (pipeline(image, mask, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_the_arguments_stay_unchanged(registry: Registry) -> None:
    image, mask = picture((240, 240)), blob()
    kept = image.copy(), mask.copy()
    AugmentationPipeline(registry, PAPER_AUGMENTATIONS)(image, mask, np.random.default_rng(0))
    assert np.array_equal(image, kept[0])
    assert np.array_equal(mask, kept[1])


def test_pixels_from_outside_the_image_are_background_and_not_zero(registry: Registry) -> None:
    image = np.full((60, 60), -0.7, dtype=np.float32)  # background after normalisation
    image[20:40, 20:40] = 3
    pipeline = AugmentationPipeline(registry, [("shift", {"rows": 0.5, "columns": 0.5})])
    for seed in range(5):
        moved, mask = pipeline(image, np.ones((60, 60), np.uint8), np.random.default_rng(seed))
        assert moved.min() == np.float32(-0.7)
        assert (moved[mask == 0] == np.float32(-0.7)).all()


def test_the_elastic_field_is_simards() -> None:
    """Uniform noise for each pixel, blurred, times α: so large and so smooth, in the middle and at the edges."""
    places = [0, 24, 60, 120, 144, 239]
    blur = gaussian_filter1d(np.eye(240), 24, axis=0, mode="constant")
    along = (blur @ blur.T)[np.ix_(places, places)]
    expected = 720**2 / 3 * np.kron(along, along)  # 1/3 is the variance of a uniform value in [−1, 1]
    points, rng = np.stack(np.meshgrid(places, places, indexing="ij")).astype(float), np.random.default_rng(0)
    fields = np.stack([Elastic().draw((240, 240), rng, ElasticOptions())(points) - points for _ in range(2000)])
    rows, columns = fields.reshape(2000, 2, -1).swapaxes(0, 1)
    found, largest = (rows.T @ rows + columns.T @ columns) / 4000, expected.max()
    assert np.sqrt(largest) == pytest.approx(4.9, abs=0.1)
    assert np.abs(found - expected).max() < 0.1 * largest
    assert np.abs(rows.T @ columns).max() / 2000 < 0.1 * largest, "the axes are independent of each other"


@settings(deadline=None, max_examples=20)
@given(seed=seeds, steps=st.permutations(NAMES))
def test_table_1_composed_is_what_scipy_gives_for_each_pixel(seed: int, steps: list[str]) -> None:
    """Every map followed for every pixel, then ``map_coordinates``. Between its nodes a field is interpolated."""
    rng = np.random.default_rng(seed)
    drawn = [REGISTRY.augmentation(name) for name in steps]
    maps = [each.draw((240, 240), rng, each.options()) for each in drawn]
    points = np.indices((240, 240), dtype=np.float64)
    for step in reversed(maps):
        points = step(points)
    rows, columns = np.indices((240, 240), dtype=np.float32)
    inside = ((points > 2) & (points < 237)).all(axis=0)
    for ramp, expected in ((rows, points[0]), (columns, points[1])):  # its value says where a pixel is from
        off = np.abs(resample(ramp, blob(), maps)[0] - expected)[inside]
        assert off.mean() < 0.1
        assert off.max() < 1
    moved = resample(rows, blob(), maps)[1]
    assert (moved != map_coordinates(blob(), points, order=0, mode="grid-constant")).mean() < 0.003
    straight = [step for step in maps if isinstance(step, Affine)]
    points = np.indices((240, 240), dtype=np.float64)
    for step in reversed(straight):
        points = step(points)
    image = picture((240, 240), seed)
    expected = map_coordinates(image, points, order=1, mode="grid-constant", cval=float(image.min()))
    assert np.abs(resample(image, blob(), straight)[0] - expected).max() < 1e-3


def test_a_map_of_ones_own_is_followed_for_each_pixel() -> None:
    image = picture((30, 20))

    def rough(points: np.ndarray) -> np.ndarray:  # every other row comes from the row below
        return points + np.stack([np.round(points[0]) % 2, np.zeros_like(points[1])])

    moved, _ = resample(image, image > 0, [rough, Affine(np.eye(2), np.zeros(2))])
    assert np.array_equal(moved[0:29:2], image[0:29:2])
    assert np.array_equal(moved[1:29:2], image[2:30:2])


def test_a_map_that_leads_nowhere_is_an_error_with_its_name() -> None:
    class Nowhere(Geometric):
        name, options = "nowhere", Options

        def draw(self, shape: Any, rng: Any, options: Any) -> Any:
            return lambda points: points * np.nan

    pipeline = AugmentationPipeline(Registry(augmentations={"nowhere": Nowhere()}), [("nowhere", {})])
    with pytest.raises(PluginError, match="'nowhere': ValueError: a map leads to positions that are not finite"):
        pipeline(picture((9, 9)), blob((9, 9)), np.random.default_rng(0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scale", "message"), [(0, "the matrix of an affine map is 0"), (1e300, "are not finite")])
def test_an_affine_map_that_is_no_map_is_an_error_without_warnings(scale: float, message: str) -> None:
    maps = [Displacement(np.zeros((2, 2, 2)), 8), Affine(scale * np.eye(2), np.zeros(2))]
    with pytest.raises(ValueError, match=message):
        resample(picture((9, 9)), blob((9, 9)), maps)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (
            lambda rng: Rotation().draw((101, 101), rng, RotationOptions()),
            lambda m: np.rad2deg(np.arcsin(m[1, 0])),
        ),
        (lambda rng: Zoom().draw((101, 101), rng, Zoom.options()), lambda m: 200 * (1 / m[0, 0] - 1)),
        (lambda rng: Shear().draw((101, 101), rng, Shear.options()), lambda m: 400 * m[1, 0]),
    ],
    ids=["rotation ±20°", "zoom ±10 %, in half percents", "shear ±0.05, in 1/400"],
)
def test_values_are_uniform_over_the_whole_range(draw: Callable, expected: Callable) -> None:
    rng = np.random.default_rng(0)
    values = np.array([expected(draw(rng).matrix) for _ in range(400)])
    assert values.min() > -20
    assert values.max() < 20
    assert values.min() < -18.5
    assert values.max() > 18.5
    assert values.std() == pytest.approx(40 / np.sqrt(12), rel=0.1)


def test_mirrors_turn_half_of_the_slices_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    turned = np.array([[m.draw((9, 9), rng, m.options()).matrix.min() < 0 for m in MIRRORS] for _ in range(400)])
    assert np.abs(turned.mean(axis=0) - 0.5).max() < 0.08
    assert abs(turned.all(axis=1).mean() - 0.25) < 0.08


def test_a_shift_is_a_share_of_each_side() -> None:
    rng = np.random.default_rng(0)
    shifts = np.array([Shift().draw((100, 200), rng, ShiftOptions()).offset for _ in range(400)])
    assert (np.abs(shifts).max(axis=0) <= [10, 20]).all()
    assert (np.abs(shifts).max(axis=0) > [9, 18]).all()


def test_maps_act_in_order_and_the_image_is_resampled_once() -> None:
    """Shift by one to the right, then flip: the pixel of column 2 moves to 3, and then to the mirror of 3."""
    image = np.zeros((1, 10), dtype=np.float32)
    image[0, 2] = 1
    shift = Affine(np.eye(2), np.array([0.0, -1.0]))
    flip = Affine.about_centre((1, 10), [[1, 0], [0, -1]])
    assert resample(image, image > 0, [shift, flip])[0].argmax() == 6
    assert resample(image, image > 0, [flip, shift])[0].argmax() == 8
    halves = [Affine(np.eye(2), np.array([0.0, half])) for half in (-0.5, -0.5)]
    assert resample(image, image > 0, halves)[0].max() == 1  # half a pixel twice, and nothing is blurred


def test_a_third_party_augmentation_keeps_its_place_in_the_order(registry: Registry) -> None:
    class AddOptions(Options):
        amount: float = 1.0

    class Add:
        name = "add"
        options = AddOptions

        def __call__(self, image, mask, rng, options):
            return image + np.float32(options.amount), mask

    extended = Registry(augmentations={**registry.augmentations, "add": Add()})
    pipeline = AugmentationPipeline(
        extended,
        [("mirror-front-back", {"probability": 1}), ("add", {"amount": 2}), ("mirror-left-right", {"probability": 1})],
    )
    image = picture((8, 6))
    moved, _ = pipeline(image, image > 0, np.random.default_rng(0))
    assert np.array_equal(moved, image[::-1, ::-1] + np.float32(2))


def test_an_augmentation_can_be_called_alone(registry: Registry) -> None:
    mirror, image = MirrorFrontBack(), picture((5, 5))
    moved, _ = mirror(image, image > 0, np.random.default_rng(0), mirror.options(probability=1))
    assert np.array_equal(moved, image[:, ::-1])


def test_unknown_names_wrong_options_and_shapes_are_refused(registry: Registry) -> None:
    with pytest.raises(PluginError, match="no usable augmentation 'sepia'"):
        AugmentationPipeline(registry, [("sepia", {})])
    with pytest.raises(PluginError, match="rotation: degrees"):
        AugmentationPipeline(registry, [("rotation", {"degrees": float("nan")})])
    with pytest.raises(ValueError, match="one shape"):
        AugmentationPipeline(registry, PAPER_AUGMENTATIONS)(picture((4, 4)), np.zeros((4, 5)), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda image, mask: 1 / 0, "'mine': ZeroDivisionError: division by zero"),
        (lambda image, mask: (image[1:], mask), r"'mine': ValueError: it returned \[\(239, 240\), \(240, 240\)\]"),
        (lambda image, mask: (image * np.nan, mask), "'mine': ValueError: it returned .* or NaN"),
        (
            lambda image, mask: (image.astype(int), mask),
            "'mine': ValueError: it returned an image of int64: .* float32",
        ),
    ],
)
def test_an_augmentation_that_breaks_the_contract_is_named(broken: Any, message: str) -> None:
    class Mine:
        name, options = "mine", Options

        def __call__(self, image: Any, mask: Any, rng: Any, options: Any) -> Any:
            return broken(image, mask)

    pipeline = AugmentationPipeline(Registry(augmentations={"mine": Mine()}), [("mine", {})])
    with pytest.raises(PluginError, match=message):
        pipeline(picture((240, 240)), blob(), np.random.default_rng(0))
