"""Fitting the U-Net on slices with masks.

Two ways: as in the paper (``augment`` a sample at a time, soft-dice loss), and quickly for a small network: whole
batches augmented in torch, cross-entropy beside the dice loss, and the tumour's regions taught to the fifth block.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from gliaflow_trainer.unet import SMOOTH, UNet, soft_dice_loss

Planes = Sequence[NDArray[Any]]  # slices by number: an array [n, H, W], or memory maps of many files
Augment = Callable[[NDArray[np.float32], NDArray[np.uint8], np.random.Generator], tuple[Any, Any]]
Progress = Callable[[int, int, Mapping[str, float]], None]
History = list[dict[str, float]]


def fit_unet(
    images: Planes,
    masks: Planes,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
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
    regions: float = 0.0,
    start: UNet | None = None,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[UNet, History]:
    """Fit a U-Net and keep the epoch with the best IoU on the validation slices (the last, where there are none).

    The defaults are the paper's fine-tuning (section 3.5 and the reference code): Adam, 1e-5, batch 10, soft dice.
    Run by torchrun, each process takes its share of every epoch; the first one's network counts.

    Parameters
    ----------
    images: N slices [H, W], air 0 and head about 1, of any float dtype. A batch is read at a time.
    masks: N planes [H, W] uint8; non-zero is tumour, and each value a region of its own.
    train, validation: which slices to learn from, and which choose the epoch. No patient may be in both.
    epochs, epoch_slices: an epoch is every training slice once, or ``epoch_slices`` slices drawn at random, as many
        with tumour as without.
    cosine: warm up over a twentieth of the steps and decay to 0, instead of a constant rate.
    loss: the paper's soft dice, or its mean with binary cross-entropy, which has a gradient from the first step.
    augment: applied to each training sample before anything else; its chance is a generator of its own per sample.
    randomise: random geometry and intensities for whole batches (``randomised``).
    regions: weight of a loss by which a linear layer on ``enc5`` tells each region's share of its pixels (deep
        supervision; Lee et al. 2015), so that the features the grade is read from know a core from a rim. The layer
        is thrown away afterwards. The paper has no such term, and found its features "not discriminative enough".
    start: a network to go on from, with its width, norm and statistics (it is not changed).
    device: "cpu" or "cuda". Convolutions run in bfloat16 where the hardware has it, losses in float32.
    checkpoint: a file that holds all there is after each epoch; where it exists, fitting goes on from it.
    progress: after each epoch: its number, how many there are, and ``loss``, ``val_loss``, ``val_dice``, ``val_iou``
        (Eq. 3–5 on the validation slices), ``seconds`` so far and ``left_seconds``.

    Returns
    -------
    The network, in evaluation mode on the CPU, and the figures of each epoch.
    """
    if not len(train):
        raise ValueError("there is no training slice: every patient is in the validation part")
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    sampler = _Sampler(train, np.array([bool(masks[i].any()) for i in train]), epoch_slices, seed)
    values = np.unique([v for i in train[:: max(1, len(train) // 400)] for v in np.unique(masks[i])])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(width, norm, *_statistics(images, train)) if start is None else copy.deepcopy(start)
        step = _Step(net, [int(v) for v in values if v], loss, regions)
    # channels_last halves the time on a CPU, where channels are few.
    step = step.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = nn.parallel.DistributedDataParallel(step) if world > 1 else step
    chance = torch.Generator().manual_seed(seed + rank)
    optimiser = torch.optim.Adam(step.parameters(), lr=learning_rate, betas=betas)
    steps = epochs * math.ceil(sampler.size / (batch * world))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: _cosine(n, steps) if cosine else 1.0)
    history: History = []
    best, best_score, before = copy.deepcopy(net.state_dict()), -1.0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        step.load_state_dict(state["step"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        chance.set_state(state["chance"].cpu())
        best, best_score, history = state["best"], state["best_score"], state["history"]
        before = history[-1]["seconds"]
    began = time.monotonic() - before
    for epoch in range(len(history) + 1, epochs + 1):
        total, count = 0.0, 0
        order = sampler.epoch(epoch)
        order = np.resize(order, -(-len(order) // world) * world)[rank::world]  # as many each: they step together
        step.train()
        for first in range(0, len(order), batch):
            picked = order[first : first + batch]
            rngs = [np.random.default_rng([seed, epoch, rank, first + i]) for i in range(len(picked))]
            image, mask = (part.to(device) for part in _batch(images, masks, picked, rngs, augment))
            if randomise:
                image, mask = randomised(image, mask, chance)
            value = learner(image.contiguous(memory_format=torch.channels_last), mask)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            total, count = total + float(value.detach()) * len(picked), count + len(picked)
        figures = {"loss": total / count}
        if len(validation):
            found = measure(net, images, masks, validation, device)
            figures |= {"val_loss": found["soft_dice_loss"], "val_dice": found["hard_dice"], "val_iou": found["iou"]}
        if not len(validation) or figures["val_iou"] >= best_score:
            best, best_score = copy.deepcopy(net.state_dict()), figures.get("val_iou", 0.0)
        figures["seconds"] = time.monotonic() - began
        history.append(figures)
        if checkpoint is not None and rank == 0:
            _save(
                checkpoint,
                step=step.state_dict(),
                optimiser=optimiser.state_dict(),
                schedule=schedule.state_dict(),
                chance=chance.get_state(),
                best=best,
                best_score=best_score,
                history=history,
            )
        if progress is not None:
            progress(epoch, epochs, {**figures, "left_seconds": figures["seconds"] / epoch * (epochs - epoch)})
    net.load_state_dict(best)
    return net.to("cpu", memory_format=torch.contiguous_format).eval(), history  # type: ignore[call-overload]


def probabilities(net: UNet, images: NDArray[Any], device: str = "cpu", batch: int = 16) -> NDArray[np.float32]:
    """The probability of tumour at each pixel: images [n, H, W] → float32 [n, H, W]."""
    net = net.eval()
    out = np.empty(images.shape, dtype=np.float32)
    with torch.inference_mode(), mixed_precision(device):
        for first in range(0, len(images), batch):
            image = torch.from_numpy(np.asarray(images[first : first + batch], dtype=np.float32))[:, None]
            image = image.to(device).contiguous(memory_format=torch.channels_last)
            out[first : first + batch] = torch.sigmoid(net.logits(image).float())[:, 0].cpu().numpy()
    return out


def mixed_precision(device: str) -> torch.autocast:
    """Autocast to bfloat16 where the device computes in it faster: CUDA, and CPUs with AVX-512 BF16 or AMX."""
    kind = torch.device(device).type
    able = torch.cuda.is_bf16_supported() if kind == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=bool(able))


def randomised(image: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Domain randomisation of a batch: image and mask [n, 1, H, W] moved alike, intensities changed in the image.

    Geometry: flip left–right, rotation ±20°, zoom ±20 %, shear, shift. Intensity, of each sample by itself: gain,
    gamma, a smooth field of gain (bias), blur, noise. Air stays 0.
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
    signal = F.grid_sample(image, grid, align_corners=False)
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
    return (signal + level * noise).clamp(min=0), mask


class _Step(nn.Module):
    """image [n, 1, H, W], mask [n, 1, H, W] → the loss, of the network and of the layer that tells regions."""

    def __init__(self, net: UNet, values: Sequence[int], loss: str, regions: float) -> None:
        super().__init__()
        self.net, self.values, self.loss, self.regions = net, values, loss, regions
        self.region = nn.Conv2d(16 * net.width, max(1, len(values)), 1) if regions else None

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        with mixed_precision(image.device.type):
            logit, features = self.net.logits_and_features(image)
            told = self.region(features).float() if self.region is not None else None
        logit, truth = logit.float(), (mask > 0).float()
        value = soft_dice_loss(torch.sigmoid(logit), truth)
        if self.loss == "dice+bce":
            value = (value + F.binary_cross_entropy_with_logits(logit, truth)) / 2
        if told is not None:
            each = torch.cat([(mask == v).float() for v in self.values], dim=1) if self.values else truth
            share = F.adaptive_avg_pool2d(each, told.shape[-2:])
            value = value + self.regions * F.binary_cross_entropy_with_logits(told, share)
        return value


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


def _statistics(images: Planes, train: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of the training slices (paper section 3.5)."""
    moments = np.mean([[p.mean(), np.square(p).mean()] for p in (np.float64(images[i]) for i in train)], axis=0)
    mean, square = (float(moment) for moment in moments)
    return mean, max(square - mean**2, 1e-12) ** 0.5


def _batch(
    images: Planes,
    masks: Planes,
    picked: NDArray[np.int64],
    rngs: Sequence[np.random.Generator],
    augment: Augment | None,
) -> tuple[Tensor, Tensor]:
    samples = []
    for index, rng in zip(picked, rngs, strict=True):
        image, mask = np.asarray(images[index], dtype=np.float32), np.asarray(masks[index], dtype=np.uint8)
        samples.append(augment(image, mask, rng) if augment is not None else (image, mask))
    stacked = [np.stack(kind)[:, None].astype(np.float32) for kind in zip(*samples, strict=True)]
    return torch.from_numpy(stacked[0]), torch.from_numpy(stacked[1])


def _cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def measure(net: UNet, images: Planes, masks: Planes, some: NDArray[np.int64], device: str = "cpu") -> dict[str, float]:
    """Soft-dice loss, hard Dice and IoU (Eq. 3–5) over all pixels of some slices: the paper's Table 2."""
    both = found = truth = 0
    overlap = mass = 0.0
    for first in range(0, len(some), 64):
        part = some[first : first + 64]
        probability = probabilities(net, np.stack([images[i] for i in part]), device)
        mask = np.stack([masks[i] for i in part]) > 0
        guess = probability > 0.5
        both, found, truth = both + int((guess & mask).sum()), found + int(guess.sum()), truth + int(mask.sum())
        overlap, mass = overlap + float(probability[mask].sum()), mass + float(probability.sum(dtype=np.float64))
    return {
        "soft_dice_loss": 1 - (2 * overlap + SMOOTH) / (mass + truth + SMOOTH),
        "hard_dice": (2 * both + SMOOTH) / (found + truth + SMOOTH),
        "iou": (both + SMOOTH) / (found + truth - both + SMOOTH),
    }


def _save(path: Path, **state: Any) -> None:
    """Whole or not at all: a kill in the middle leaves the checkpoint of the epoch before."""
    part = path.with_name(f".part-{path.name}")
    torch.save(state, part)
    part.replace(path)
