"""The U-Net has the paper's shapes, its losses mean what Eq. 3–5 say, and it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gliaflow_trainer.unet import TAPS, UNet, hard_dice, iou, soft_dice_loss  # noqa: E402
from gliaflow_trainer.unet_fit import fit_unet, probabilities, randomised  # noqa: E402


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


ALL, NONE = np.arange(24), np.zeros(0, np.int64)


def discs(n: int = 24, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((side, side))
    centres = rng.integers(14, side - 14, (n, 2))
    masks = np.stack([(rows - r) ** 2 + (columns - c) ** 2 < 81 for r, c in centres]).astype(np.uint8)
    images = (rng.normal(0, 0.2, masks.shape) + 2 * masks).astype(np.float32)
    return images, masks


def test_at_width_64_it_is_the_papers_network() -> None:
    net = UNet(64)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(34.5e6, rel=0.002)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in UNet(64)(torch.empty(1, 1, 240, 240))._asdict().items()}
    assert shapes == {
        "mask": (1, 1, 240, 240),
        "enc5": (1, 1024, 15, 15),
        "enc4": (1, 512, 30, 30),
        "dec1": (1, 512, 30, 30),
        "dec2": (1, 256, 60, 60),
        "dec3": (1, 128, 120, 120),
    }


@pytest.mark.parametrize("norm", [False, True])
def test_masks_are_probabilities_and_taps_come_after_relu(norm: bool) -> None:
    with torch.no_grad():
        out = UNet(4, norm).eval()(torch.randn(2, 1, 32, 48))
    assert out.mask.shape == (2, 1, 32, 48)
    assert 0 <= float(out.mask.min()) <= float(out.mask.max()) <= 1
    for tap in TAPS:
        values = getattr(out, tap)
        assert values.min() == 0
        assert values.max() > 0


def test_soft_dice_is_equation_3_over_the_batch() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2] = 1
    assert float(soft_dice_loss(mask, mask)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice_loss(1 - mask, mask)) == pytest.approx(1, abs=1e-5)
    half = torch.full_like(mask, 0.5)  # 2·(8·½) / (32·½ + 8)
    assert float(soft_dice_loss(half, mask)) == pytest.approx(1 - 8 / 24, abs=1e-5)


def test_soft_dice_pulls_up_within_the_mask_and_down_without() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    probability = torch.full_like(mask, 0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_dice_loss(probability, mask), probability)
    assert (slope[mask > 0] < 0).all()
    assert (slope[mask == 0] > 0).all()


def test_hard_dice_and_iou_count_pixels() -> None:
    probability = torch.tensor([0.9, 0.6, 0.4, 0.1])
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert float(hard_dice(probability, mask)) == pytest.approx(1 / 2, abs=1e-4)
    assert float(iou(probability, mask)) == pytest.approx(1 / 3, abs=1e-4)
    nothing = torch.zeros(4)
    assert float(hard_dice(nothing, nothing)) == float(iou(nothing, nothing)) == 1


def test_it_learns_the_discs_and_keeps_the_best_epoch() -> None:
    images, masks = discs()
    seen: list[dict[str, float]] = []
    net, history = fit_unet(
        images, masks, ALL[4:], ALL[:4], seed=0, width=4, norm=True, epochs=16, batch=4, learning_rate=1e-2,
        cosine=True, loss="dice+bce", regions=1.0, progress=lambda epoch, epochs, figures: seen.append(dict(figures)),
    )  # fmt: skip
    assert len(seen) == len(history) == 16
    assert seen[0]["left_seconds"] > seen[-1]["left_seconds"] == 0
    guess = torch.from_numpy(probabilities(net, images[:4]))
    truth = torch.from_numpy(masks[:4])
    assert float(iou(guess, truth)) == pytest.approx(max(h["val_iou"] for h in history), abs=1e-3)
    assert float(hard_dice(guess, truth)) > 0.8


def test_the_same_seed_fits_the_same_network_and_leaves_torchs_generator_alone() -> None:
    images, masks = discs(8)
    before = torch.get_rng_state()
    nets = [
        fit_unet(images, masks, ALL[:8], NONE, seed=seed, width=2, epochs=1, batch=4, randomise=True)[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (net.state_dict()["head.weight"] for net in nets)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_validation_slices_are_not_learnt_from_nor_normalised_by() -> None:
    images, masks = discs(8)
    spoilt = images.copy()
    spoilt[:2] = 100
    fits = [
        fit_unet(x, masks, ALL[2:8], ALL[:2], seed=0, width=2, epochs=1, batch=4, augment=lambda i, m, rng: (i, m))[0]
        for x in (images, spoilt)
    ]
    assert float(fits[0].mean) == pytest.approx(images[2:].mean(), rel=1e-5)
    for a, b in zip(fits[0].parameters(), fits[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="no training slice"):
        fit_unet(images, masks, NONE, ALL[:8], seed=0, width=2)


def test_it_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path: Path) -> None:
    images, masks = discs(8)

    def fit(**options: Any) -> UNet:
        return fit_unet(
            images, masks, ALL[2:8], ALL[:2], seed=3, width=2, norm=True, epochs=3, batch=4, learning_rate=1e-3,
            cosine=True, randomise=True, **options,
        )[0]  # fmt: skip

    def killed(epoch: int, epochs: int, figures: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=tmp_path / "unet.checkpoint", progress=killed)
    resumed, whole = fit(checkpoint=tmp_path / "unet.checkpoint"), fit()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_randomisation_moves_the_mask_with_the_image_and_leaves_air_alone() -> None:
    masks = discs(6, 64)[1]
    truth = torch.from_numpy(masks)[:, None].float()
    moved, mask = randomised(2 * truth, 4 * truth, torch.Generator().manual_seed(0))
    assert set(mask.flatten().tolist()) == {0.0, 4.0}, "regions keep their numbers"
    assert float(moved.min()) == 0
    for each, its in zip(moved, mask, strict=True):
        assert float(each[its > 0].mean()) > 1 > float(each[its == 0].mean())
