"""The U-Net has the paper's shapes, its loss and scores are Eq. 3–5, and it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gliaflow_plugins.contracts import FitContext  # noqa: E402
from gliaflow_runtime.bundle.manifest import TAPS  # noqa: E402
from gliaflow_trainer.unet import UNet, soft_dice_loss  # noqa: E402
from gliaflow_trainer.unet_fit import UNetOptions, dice_by_patient, fit_unet, measure, probabilities, randomised  # noqa: E402


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


ALL, NONE = np.arange(24), np.zeros(0, np.int64)


class Planes(NamedTuple):
    images: np.ndarray
    masks: np.ndarray


def discs(n: int = 24, side: int = 48) -> Planes:
    """Bright discs on noise, images [n, 1, H, W]."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((side, side))
    centres = rng.integers(14, side - 14, (n, 2))
    masks = np.stack([(rows - r) ** 2 + (columns - c) ** 2 < 81 for r, c in centres]).astype(np.uint8)
    images = (rng.normal(0, 0.2, masks.shape) + 2 * masks).astype(np.float32)
    return Planes(images[:, None], masks)


def test_width_64_is_the_papers_network() -> None:
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


def test_soft_dice_raises_probabilities_inside_the_mask_and_lowers_them_outside() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    probability = torch.full_like(mask, 0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_dice_loss(probability, mask), probability)
    assert (slope[mask > 0] < 0).all()
    assert (slope[mask == 0] > 0).all()


class Copy(torch.nn.Module):
    """The slice itself is the logit of its mask."""

    def logit_and_taps(self, image: Any) -> tuple[Any, list[Any]]:
        return image, []


def test_hard_dice_and_iou_count_pixels_over_all_slices() -> None:
    probability = np.array([[[0.9, 0.6]], [[0.4, 0.1]]], np.float32)
    mask = np.array([[[3, 0]], [[1, 0]]], np.uint8)
    scores = measure(Copy(), Planes(np.log(probability / (1 - probability))[:, None], mask), np.arange(2))
    assert scores["hard_dice"] == pytest.approx(1 / 2, abs=1e-4)
    assert scores["iou"] == pytest.approx(1 / 3, abs=1e-4)
    assert scores["soft_dice_loss"] == pytest.approx(1 - 2 * (0.9 + 0.4) / (2 + 2), abs=1e-4)
    empty = measure(Copy(), Planes(np.full((1, 1, 2, 2), -9, np.float32), np.zeros((1, 2, 2), np.uint8)), np.arange(1))
    assert empty["hard_dice"] == empty["iou"] == 1


def test_dice_by_patient_counts_all_scans_of_a_patient() -> None:
    half, full, none = np.array([True, False]), np.array([True, True]), np.array([False, False])
    dice = dice_by_patient([("a", half, full), ("b", none, none), ("a", full, full)])
    assert dice == {"a": 2 * 3 / (3 + 4), "b": 1}


def test_a_fit_learns_the_discs_and_keeps_the_best_epoch() -> None:
    slices = discs()
    seen: list[dict[str, float]] = []
    context = FitContext(0, progress=lambda epoch, epochs, figures: seen.append(dict(figures)))
    options = UNetOptions(
        4, norm=True, epochs=16, batch=4, learning_rate=1e-2, cosine=True, loss="dice+bce", regions=1.0
    )
    net, history = fit_unet(slices, ALL[4:], ALL[:4], options, context)
    assert len(seen) == len(history) == 16
    assert seen[0]["left_seconds"] > seen[-1]["left_seconds"] == 0
    guess, truth = probabilities(net, slices.images[:4]) > 0.5, slices.masks[:4] > 0
    iou = (guess & truth).sum() / (guess | truth).sum()
    assert iou == pytest.approx(max(figures["val_iou"] for figures in history), abs=1e-3)
    assert 2 * (guess & truth).sum() / (guess.sum() + truth.sum()) > 0.8


def test_the_same_seed_fits_the_same_network_and_does_not_change_torchs_random_state() -> None:
    before = torch.get_rng_state()
    options = UNetOptions(2, epochs=1, batch=4, randomise=True)
    nets = [fit_unet(discs(8), ALL[:8], NONE, options, FitContext(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (net.state_dict()["head.weight"] for net in nets)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_statistics_that_the_start_lacks_are_those_of_the_training_slices() -> None:
    slices = discs(8)
    both = Planes(np.concatenate([slices.images, 3 * slices.images], axis=1), slices.masks)
    start = UNet(2, mean=(0.25, float("nan")), std=(0.5, float("nan")))
    options = UNetOptions(2, epochs=1, batch=8, learning_rate=0.0)
    net, _ = fit_unet(both, ALL[:8], NONE, options, FitContext(1), start=start)
    assert net.mean.ravel().tolist() == pytest.approx([0.25, 3 * np.mean(slices.images)], rel=1e-3)
    assert net.std.ravel().tolist() == pytest.approx([0.5, 3 * np.std(slices.images)], rel=1e-3)


def test_validation_slices_change_neither_the_weights_nor_the_normalisation() -> None:
    images, masks = discs(8)
    spoilt = images.copy()
    spoilt[:2] = 100
    options = UNetOptions(2, epochs=1, batch=4)
    fits = [
        fit_unet(Planes(x, masks), ALL[2:8], ALL[:2], options, FitContext(0), augment=lambda i, m, rng: (i, m))[0]
        for x in (images, spoilt)
    ]
    assert float(fits[0].mean) == pytest.approx(images[2:].mean(), rel=1e-5)
    for a, b in zip(fits[0].parameters(), fits[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="no training slice"):
        fit_unet(Planes(images, masks), NONE, ALL[:8], options, FitContext(0))


def test_the_averaged_network_is_the_moving_mean_of_the_steps() -> None:
    def weights(average: float, epochs: int) -> Any:
        options = UNetOptions(2, epochs=epochs, batch=8, learning_rate=1e-3, average=average)
        return fit_unet(discs(8), ALL[:8], NONE, options, FitContext(1))[0].state_dict()["encoder.0.0.weight"]

    steps = [weights(0, epochs) for epochs in (1, 2, 3)]  # of one step each
    early = 2 / 11 * steps[0] + 9 / 11 * steps[1]
    torch.testing.assert_close(weights(0.75, 3), 3 / 12 * early + 9 / 12 * steps[2])
    torch.testing.assert_close(weights(0.2, 3), 0.2 * early + 0.8 * steps[2])


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_resumed_fit_gives_the_same_network_as_an_uninterrupted_one(tmp_path: Path, average: float) -> None:
    options = UNetOptions(
        2, norm=True, epochs=3, batch=4, learning_rate=1e-3, cosine=True, randomise=True, average=average
    )

    def fit(**context: Any) -> UNet:
        return fit_unet(discs(8), ALL[2:8], ALL[:2], options, FitContext(3, **context))[0]

    def killed(epoch: int, epochs: int, figures: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=tmp_path / "unet.checkpoint", progress=killed)
    resumed, whole = fit(checkpoint=tmp_path / "unet.checkpoint"), fit()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_randomisation_moves_the_mask_with_the_image_and_keeps_air_at_0() -> None:
    masks = discs(6, 64)[1]
    truth = torch.from_numpy(masks)[:, None].float()
    moved, mask = randomised(2 * truth, 4 * truth, torch.Generator().manual_seed(0))
    assert set(mask.flatten().tolist()) == {0.0, 4.0}, "regions keep their numbers"
    assert float(moved.min()) == 0
    for image, its_mask in zip(moved, mask, strict=True):
        assert float(image[its_mask > 0].mean()) > 1 > float(image[its_mask == 0].mean())
