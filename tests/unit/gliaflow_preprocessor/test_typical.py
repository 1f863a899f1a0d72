"""A scan that is not like those of the bundle's training gets a warning; a FLAIR of any acquisition gets none."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from gliaflow_phantoms.anatomy import Head
from gliaflow_phantoms.phantom import make_patient
from gliaflow_phantoms.shapes import Grid, inside
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.slices import prepare
from gliaflow_preprocessor.typical import doubt, statistics
from gliaflow_proto import Scan, ScanMessage, SlicesMessage, Source, expect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.bundle.manifest import InputSpec

MANIFEST = load_bundle(None).manifest
SPEC, LIMITS = MANIFEST.input, MANIFEST.typical
AFFINE = np.diag([0.9, 0.9, 5.0, 1.0])
SHAPE = (224, 256, 24)
RNG = np.random.default_rng(0)


def doubted(volume, affine=AFFINE):
    return doubt(prepare(np.asarray(volume), affine, SPEC).image, SPEC, LIMITS)


@pytest.fixture(scope="module")
def brain():
    """A head and its brain, without a tumour."""
    spacing = (0.9, 0.9, 5.0)
    axes = [((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n, mm in zip(SHAPE, spacing, strict=True)]
    head = Head(Grid(tuple(axes), SHAPE[:2], spacing), np.random.default_rng(3))
    return head, head.brain_at(head.p, np.float32(0))


def painted(brain, fluid, grey):
    """The brain with this brightness of fluid and grey matter. White matter has 1."""
    head, tissues = brain
    levels = {"grey": grey, "nuclei": grey, "csf": fluid, "gliosis": 0, "cerebellum": 0}
    return rician(tissues.paint(levels) * inside(head.intracranial, 1.0))


def rician(volume, sigma=0.02):
    return 300 * np.hypot(volume + sigma * RNG.standard_normal(SHAPE), sigma * RNG.standard_normal(SHAPE))


def test_flair_is_typical_with_and_without_a_skull_and_in_any_storage(brain):
    for seed in (1, 2, 3, 4):
        phantom = make_patient("HGG", np.random.default_rng([8, seed]))
        assert doubted(phantom.flair, phantom.affine) == []
        scaled = phantom.flair.astype(np.float32) * 0.01 - 3  # air is -3
        assert doubted(scaled, phantom.affine) == []
    assert doubted(painted(brain, fluid=0.3, grey=1.2)) == []


def test_t1_is_not(brain):
    (warning,) = doubted(painted(brain, fluid=0.4, grey=0.8))
    assert warning.startswith("this does not look like a scan that the bundle was trained on")
    assert "how much darker the cortex is than the tissue below it, as on T1, is 0." in warning
    assert warning.endswith("is it FLAIR?")


def test_t2_is_not(brain):
    assert "bright details" in doubted(painted(brain, fluid=2.5, grey=1.3))[0]


def test_ct_is_not(brain):
    head = brain[0]
    scalp, skull, tissue = (inside(head.intracranial - mm, 1.0) > 0.5 for mm in (9, 6, 0))
    hounsfield = np.select([tissue, skull, scalp], [33.0, 1000.0, -60.0], -1000.0) + RNG.normal(0, 6, SHAPE)
    (warning,) = doubted(hounsfield.astype(np.int16))
    assert "pixels" in warning


@pytest.mark.parametrize(
    "volume",
    [
        RNG.integers(0, 500, SHAPE),
        RNG.normal(1000, 100, SHAPE),
        RNG.rayleigh(50, SHAPE),
        np.hypot(*np.indices(SHAPE)[:2] - 110) < 80,
    ],
    ids=["uniform", "normal", "rayleigh", "cylinder"],
)
def test_noise_and_constant_shapes_are_not(volume):
    assert len(doubted(volume.astype(np.float32))) == 1


def test_a_label_map_is_not(brain):
    head, tissues = brain
    labels = (head.intracranial < 0) * (1.0 + (tissues.fluid > 0.5) + 2 * (tissues.grey > 0.5))
    assert "pixels that are equal" in doubted(labels)[0]


def test_a_scan_that_shows_no_head_says_so():
    spots = (RNG.random(SHAPE) > 0.9) * 100.0
    assert "it shows no head" in doubted(spots)[0]


def test_a_bundle_without_limits_gives_no_warning():
    assert doubt(np.zeros((3, 64, 64), np.float32), InputSpec(size=(64, 64)), {}) == []


def test_the_statistics_do_not_depend_on_the_bundles_normalisation_and_spacing(brain):
    volume = painted(brain, fluid=0.3, grey=1.2)
    plain = statistics(prepare(volume, AFFINE, SPEC).image, SPEC)
    for other in (
        SPEC.model_copy(update={"mean": 0.4, "std": 0.5}),
        InputSpec(size=(192, 192), spacing=(1.0, 1.0)),
    ):
        values = statistics(prepare(volume, AFFINE, other).image, other)
        assert values.keys() == plain.keys()
        assert all(abs(values[name] - plain[name]) < 0.1 for name in plain)


def test_the_warning_is_in_each_message():
    file = io.BytesIO()
    image = nib.Nifti1Image(RNG.integers(0, 500, SHAPE).astype(np.int16), AFFINE)
    image.to_file_map({"image": nib.FileHolder(fileobj=file), "header": nib.FileHolder(fileobj=file)})
    stage = Preprocessor(load_bundle(None), MemoryBroker(), [])
    message = ScanMessage(id="1", scan=Scan(id="s", name="noise", patient="p"), source=Source(data=file.getvalue()))
    parts = [expect(part, SlicesMessage) for part in stage.handle(message, Delivery("", "", b"")).publish]
    assert all(any("is it FLAIR?" in warning for warning in part.warnings) for part in parts)
