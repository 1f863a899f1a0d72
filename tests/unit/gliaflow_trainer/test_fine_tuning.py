"""A fit can start from a U-Net that knows fewer sequences: at first it computes the same masks."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason='needs the extra "train"')

from gliaflow_runtime.bundle.load import demo_bundle, load_bundle  # noqa: E402
from gliaflow_runtime.bundle.manifest import BundleError  # noqa: E402
from gliaflow_trainer.fine_tuning import unet_to_fine_tune  # noqa: E402
from gliaflow_trainer.profiles import PROFILES, with_sequences  # noqa: E402
from gliaflow_trainer.unet import UNet  # noqa: E402
from gliaflow_trainer.unet_bundle import load_weights  # noqa: E402
from torch import Tensor  # noqa: E402

DEMO = PROFILES["demo"]


@pytest.fixture(scope="module")
def shipped() -> UNet:
    return load_weights(load_bundle(demo_bundle()))[0].eval()


@pytest.fixture(scope="module")
def slices() -> Tensor:
    smooth = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    large: Tensor = torch.nn.functional.interpolate(smooth, (64, 64), mode="bicubic")
    return large.clamp(min=0)


def test_a_new_sequence_has_no_effect_yet_and_no_statistics(shipped: UNet, slices: Tensor) -> None:
    grown = unet_to_fine_tune(demo_bundle(), with_sequences(DEMO, ("flair", "t1ce"), 0.2)).eval()
    assert grown.mean.isnan().tolist() == [[[False]], [[True]]]
    grown.mean[1], grown.std[1] = 0.3, 0.2
    both = torch.cat([slices, torch.rand_like(slices)], dim=1)
    torch.testing.assert_close(grown(both).mask, shipped(slices).mask)


def test_the_bundle_is_named_that_does_not_fit() -> None:
    with pytest.raises(BundleError, match="width 8 and batch norm, the profile needs 12 and batch norm"):
        unet_to_fine_tune(demo_bundle(), replace(DEMO, width=12))
    with pytest.raises(BundleError, match="width 8 and batch norm, the profile needs 64;"):
        unet_to_fine_tune(demo_bundle(), PROFILES["paper"])
