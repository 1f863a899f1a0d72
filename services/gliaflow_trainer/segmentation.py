"""Fitting the U-Net on slices with masks.

Two ways: as in the paper (``augment`` a sample at a time, soft-dice loss), and quickly for a small network: crops
before whole slices, augmentation of whole batches in torch, and cross-entropy beside the dice loss.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_trainer.unet import SMOOTH, UNet, soft_dice_loss

Augment = Callable[[NDArray[np.float32], NDArray[np.uint8], np.random.Generator], tuple[Any, Any]]
Progress = Callable[[int, int, Mapping[str, float]], None]
History = list[dict[str, float]]


def fit_unet(
    images: NDArray[Any],
    masks: NDArray[np.uint8],
    patients: Sequence[str],
    validation: Sequence[str] = (),
    *,
    seed: int,
    width: int = 64,
    norm: bool = False,
    epochs: int = 30,
    epoch_slices: int | None = None,
    batch: int = 10,
    learning_rate: float = 1e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    cosine: bool = False,
    loss: Literal["dice", "dice+bce"] = "dice",
    augment: Augment | None = None,
    randomise: bool = False,
    air: float | None = None,
    crop: int | None = None,
    crop_share: float = 0.6,
    start: UNet | None = None,
    grades: NDArray[np.int64] | None = None,
    grade_weight: float = 0.0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[UNet, History]:
    """Fit a U-Net and keep the epoch with the best IoU on the validation patients (the last, where there are none).

    The defaults are the paper's fine-tuning (section 3.5 and the reference code): Adam, 1e-5, batch 10, soft dice.

    Parameters
    ----------
    images: [n, H, W] or [n, 1, H, W], normalised, float32 or float16 (memory maps will do: a batch is read at a time).
    masks: [n, H, W], non-zero is tumour.
    patients: n names; those in ``validation`` choose the epoch and are not learnt from.
    epochs, epoch_slices: an epoch is every training slice once, or ``epoch_slices`` slices drawn at random, as many
        with tumour as without.
    cosine: warm up over a twentieth of the steps and decay to 0, instead of a constant rate.
    loss: the paper's soft dice, or its mean with binary cross-entropy, which has a gradient from the first step.
    augment: applied to each training sample before anything else; its chance is a generator of its own per sample.
    randomise: random geometry and intensities for whole batches (``randomised``), for training on phantoms.
    air: the normalised value of air, for ``randomise``; the training images' minimum by default.
    crop: for the first ``crop_share`` of the epochs, train on random squares of this many pixels (a multiple of 16).
    start: a network to go on from (it is not changed).
    grades: each slice's class, 0 or 1 [n]; with ``grade_weight`` over 0, a linear layer on the tumour's mean of
        ``enc5`` learns them beside the mask, so that the features know of the grade. It is thrown away afterwards.
        The paper has no such term, and found its features "not discriminative enough" (section 4.2.1).
    progress: after each epoch: number, epochs, and ``loss``, ``val_dice``, ``val_iou``, ``seconds``, ``left_seconds``.

    Returns
    -------
    The network, in evaluation mode on the CPU, and the figures of each epoch.
    """
    images = images.reshape(len(images), *images.shape[-2:])
    held = np.isin(np.asarray(patients), list(validation))
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    if not len(train):
        raise ValueError("there is no training slice: every patient is in the validation part")
    if crop is not None and crop % 16:
        raise ValueError(f"crop must be a multiple of 16: {crop}")
    sampler = _Sampler(train, np.array([bool(masks[i].any()) for i in train]), epoch_slices, seed)
    if air is None:
        air = float(min(images[i].min() for i in train[:: max(1, len(train) // 200)]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(width, norm) if start is None else copy.deepcopy(start)
    # channels_last halves the time on a CPU, where channels are few.
    net = net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    chance = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grader = nn.Linear(16 * width, 1).to(device)
    learnt = [*net.parameters(), *grader.parameters()] if grade_weight else list(net.parameters())
    optimiser = torch.optim.Adam(learnt, lr=learning_rate, betas=betas)
    steps = epochs * math.ceil(sampler.size / batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, steps) if cosine else 1.0)
    history: History = []
    best, best_score, began = copy.deepcopy(net.state_dict()), -1.0, time.monotonic()
    for epoch in range(1, epochs + 1):
        side = crop if crop is not None and epoch <= crop_share * epochs else None
        total, count = 0.0, 0
        order = sampler.epoch(epoch)
        net.train()
        for first in range(0, len(order), batch):
            picked = order[first : first + batch]
            rngs = [np.random.default_rng([seed, epoch, first + i]) for i in range(len(picked))]
            image, mask = _batch(images, masks, picked, rngs, augment, side)
            image, mask = image.to(device), mask.to(device)
            if randomise:
                image, mask = randomised(image, mask, air, chance)
            logit, features = net.logits_and_features(image.contiguous(memory_format=torch.channels_last))
            value = soft_dice_loss(torch.sigmoid(logit), mask)
            if loss == "dice+bce":
                value = (value + F.binary_cross_entropy_with_logits(logit, mask)) / 2
            if grade_weight and grades is not None:
                target = torch.from_numpy(grades[picked]).to(device, torch.float32)
                value = value + grade_weight * _grade_loss(grader, features, mask, target)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total, count = total + float(value.detach()) * len(picked), count + len(picked)
        figures = {"loss": total / count}
        if len(val):
            figures |= _validate(net, images, masks, val, device)
        if not len(val) or figures["val_iou"] >= best_score:
            best, best_score = copy.deepcopy(net.state_dict()), figures.get("val_iou", 0.0)
        figures["seconds"] = time.monotonic() - began
        history.append(figures)
        if progress is not None:
            progress(epoch, epochs, {**figures, "left_seconds": figures["seconds"] / epoch * (epochs - epoch)})
    net.load_state_dict(best)
    return net.to("cpu", memory_format=torch.contiguous_format).eval(), history


def probabilities(net: UNet, images: NDArray[Any], device: str = "cpu", batch: int = 16) -> NDArray[np.float32]:
    """The probability of tumour at each pixel: images [n, H, W] → float32 [n, H, W]."""
    net = net.eval()
    out = np.empty(images.shape, dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(images), batch):
            image = torch.from_numpy(np.asarray(images[first : first + batch], dtype=np.float32))[:, None]
            image = image.to(device).contiguous(memory_format=torch.channels_last)
            out[first : first + batch] = torch.sigmoid(net.logits(image))[:, 0].cpu().numpy()
    return out


def randomised(image: Tensor, mask: Tensor, air: float, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Domain randomisation of a batch: image and mask [n, 1, H, W] moved alike, intensities changed in the image.

    Geometry: flip left–right, rotation ±20°, zoom ±20 %, shear, shift. Intensity, of each sample by itself: gain,
    gamma, a smooth field of gain (bias), blur, noise. It is measured from ``air``, which stays what it was.
    """
    n, device = len(image), image.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=chance) * (high - low) + low).to(device)

    def often(probability: float) -> Tensor:
        return (torch.rand(n, generator=chance) < probability).to(device)

    angle, zoom, flip = uniform(-0.35, 0.35), uniform(0.83, 1.2), 1 - 2.0 * often(0.5)
    cos, sin, shear = torch.cos(angle) * zoom, torch.sin(angle) * zoom, uniform(-0.08, 0.08)
    turn = torch.stack([cos, -sin + shear, uniform(-0.08, 0.08), sin, cos, uniform(-0.08, 0.08)], dim=1).view(n, 2, 3)
    turn[:, 1, :2] *= flip[:, None]  # rows are stored along left–right
    grid = F.affine_grid(turn, list(image.shape), align_corners=False)
    signal = F.grid_sample(image - air, grid, align_corners=False)
    mask = F.grid_sample(mask, grid, mode="nearest", align_corners=False)

    def each(values: Tensor) -> Tensor:
        return values.view(n, 1, 1, 1)

    peak = signal.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    gamma = torch.where(often(0.6), torch.exp(uniform(-0.35, 0.35)), 1.0)
    signal = peak * (signal.clamp(min=0) / peak) ** each(gamma)
    coarse = torch.randn(n, 1, 4, 4, generator=chance).to(device) * each(uniform(0, 0.15))
    bias = F.interpolate(coarse, size=signal.shape[-2:], mode="bicubic", align_corners=True)
    signal = signal * torch.exp(bias) * each(torch.exp(uniform(-0.25, 0.25)))
    smooth = F.avg_pool2d(F.avg_pool2d(signal, 3, 1, 1), 3, 1, 1)
    signal = torch.lerp(signal, smooth, each(uniform(0, 1) * often(0.3)))
    level = each(uniform(0, 0.12) * often(0.5)) * signal.mean(dim=(1, 2, 3), keepdim=True) * 2
    noise = torch.randn(signal.shape, generator=chance).to(device)
    return (signal + level * noise).clamp(min=0) + air, mask


class _Sampler:
    """Which slices an epoch is made of: all of them, or a number, half of them with tumour."""

    def __init__(
        self, train: NDArray[np.int64], tumour: NDArray[np.bool_], epoch_slices: int | None, seed: int
    ) -> None:
        self._train, self._seed = train, seed
        self._parts = [part for part in (train[tumour], train[~tumour]) if len(part)]
        self._drawn = epoch_slices
        self.size = epoch_slices or len(train)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, epoch])
        if self._drawn is None:
            return rng.permutation(self._train)
        shares = np.array_split(np.arange(self._drawn), len(self._parts))
        counts = [len(share) for share in shares]
        drawn = [rng.choice(part, n, replace=n > len(part)) for part, n in zip(self._parts, counts, strict=True)]
        return rng.permutation(np.concatenate(drawn))


def _batch(
    images: NDArray[Any],
    masks: NDArray[np.uint8],
    picked: NDArray[np.int64],
    rngs: Sequence[np.random.Generator],
    augment: Augment | None,
    side: int | None,
) -> tuple[Tensor, Tensor]:
    samples = []
    for index, rng in zip(picked, rngs, strict=True):
        image, mask = np.asarray(images[index], dtype=np.float32), (masks[index] > 0).astype(np.uint8)
        if augment is not None:
            image, mask = augment(image, mask, rng)
        if side is not None:
            low = [int(rng.integers(0, length - side + 1)) if length > side else 0 for length in image.shape]
            window = (slice(low[0], low[0] + side), slice(low[1], low[1] + side))
            image, mask = image[window], mask[window]
        samples.append((image, mask))
    image, mask = (np.stack(kind)[:, None].astype(np.float32) for kind in zip(*samples, strict=True))
    return torch.from_numpy(image), torch.from_numpy(mask)


def _grade_loss(grader: nn.Module, features: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the grade [n], from the mean of the features [n, C, h, w] over the tumour; 0 without any."""
    share = F.adaptive_avg_pool2d(mask, (features.shape[2], features.shape[3]))
    shown = share.sum(dim=(1, 2, 3)) > 0
    if not bool(shown.any()):
        return features.new_zeros(())
    features, share = features[shown], share[shown]
    mean = (features * share).sum(dim=(2, 3)) / share.sum(dim=(2, 3))
    return F.binary_cross_entropy_with_logits(grader(mean)[:, 0], target[shown])


def _cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _validate(
    net: UNet, images: NDArray[Any], masks: NDArray[np.uint8], val: NDArray[np.int64], device: str
) -> dict[str, float]:
    """Hard dice and IoU (Eq. 4 and 5) over all pixels of the validation slices."""
    both = found = truth = 0
    for first in range(0, len(val), 64):
        part = val[first : first + 64]
        guess, mask = probabilities(net, images[part], device) > 0.5, masks[part] > 0
        both, found, truth = both + int((guess & mask).sum()), found + int(guess.sum()), truth + int(mask.sum())
    either = found + truth - both
    return {
        "val_dice": (2 * both + SMOOTH) / (found + truth + SMOOTH),
        "val_iou": (both + SMOOTH) / (either + SMOOTH),
    }
