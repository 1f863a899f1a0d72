"""Fitting the U-Net on slices with masks.

The paper's way: ``augment`` changes one sample at a time, and the loss is soft Dice. A quick way for a small network:
whole batches are changed in torch (``randomised``), cross-entropy joins the loss, and ``enc5`` learns the regions.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from gliaflow_plugins.contracts import FitContext
from gliaflow_plugins.networks.mixed_precision import mixed_precision
from gliaflow_runtime.files import whole_file
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import swa_utils

from gliaflow_trainer.distributed import rank_and_count
from gliaflow_trainer.slices import Slices
from gliaflow_trainer.unet import SMOOTH, UNet, soft_dice_loss

Augment = Callable[[NDArray[np.float32], NDArray[np.uint8], np.random.Generator], tuple[Any, Any]]
History = list[dict[str, float]]


@dataclass(frozen=True)
class UNetOptions:
    """The size of a U-Net, and how it is fitted. The defaults are the paper's fine-tuning (section 3.5).

    Parameters
    ----------
    width, norm: see ``UNet``.
    epochs, epoch_slices: an epoch is every training slice once, or ``epoch_slices`` slices drawn at random, half of
        them with tumour.
    cosine: warm up over a twentieth of the steps and decay to 0, instead of a constant rate.
    loss: the paper's soft Dice, or its mean with binary cross-entropy, which has a gradient from the first step.
    randomise: random geometry and intensities for whole batches (``randomised``).
    drop: the probability with which a training sample lacks a sequence, for each but the FLAIR: its channel is 0, as in
        serving. So the network learns to answer without it (modality dropout: Neverova et al. 2016, "ModDrop").
    average: 0, or how much of the mean of the weights remains at each step: the network that counts is this moving mean
        over the last 1 / (1 − ``average``) steps or so (Polyak and Juditsky 1992). It is less noisy than the last step.
    regions: weight of a second loss (deep supervision; Lee et al. 2015): a linear layer on ``enc5`` predicts each
        region's share of a pixel, so that the features distinguish a core from a rim. The layer is not kept. The paper
        has no such loss, and calls its features "not discriminative enough".
    """

    width: int = 64
    norm: bool = False
    epochs: int = 30
    epoch_slices: int | None = None
    batch: int = 10
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    cosine: bool = False
    loss: Literal["dice", "dice+bce"] = "dice"
    randomise: bool = False
    regions: float = 0.0
    drop: float = 0.0
    average: float = 0.0


def fit_unet(
    slices: Slices,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    options: UNetOptions,
    context: FitContext,
    *,
    augment: Augment | None = None,
    start: UNet | None = None,
) -> tuple[UNet, History]:
    """Fit a U-Net and keep the epoch with the best IoU on the validation slices (without any, the last epoch).

    Convolutions run in bfloat16 where the device is faster at it, losses in float32. Under torchrun, each process takes
    its share of every epoch, and the first process's network counts.

    Parameters
    ----------
    train, validation: the numbers of the slices to learn from, and of those that choose the epoch. A patient must not
        be in both.
    context: its ``checkpoint`` is written after each epoch; if the file exists, the fit continues from it. Its
        ``progress`` gets ``loss``, ``val_loss``, ``val_dice``, ``val_iou`` (Eq. 3–5), ``seconds`` and ``left_seconds``.
    augment: applied to each training sample first, with a random generator for each sample.
    start: fine-tune a copy of this network, with its width, norm and statistics; those that are NaN are of the training
        slices.

    Returns
    -------
    The network, in evaluation mode on the CPU, and the figures of each epoch.
    """
    if not len(train):
        raise ValueError("there is no training slice: every patient is in the validation part")
    images, masks, seed, device = slices.images, slices.masks, context.seed, context.device
    rank, processes = rank_and_count()
    tumour = np.array([bool(masks[i].any()) for i in train])
    values = np.unique([v for i in train[:: max(1, len(train) // 400)] for v in np.unique(masks[i])])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start is None:
            net = UNet(options.width, options.norm, *_mean_and_deviation(images, train))
        else:
            net = copy.deepcopy(start)
            for known, of_these in zip((net.mean, net.std), _mean_and_deviation(images, train), strict=True):
                known.copy_(torch.where(known.isnan(), torch.tensor(of_these).reshape(known.shape), known))
        step = _Step(net, [int(v) for v in values if v], options)
    # channels_last halves the time on a CPU, where channels are few.
    step = step.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = swa_utils.AveragedModel(net, multi_avg_fn=partial(_averaged, options.average), use_buffers=True)
    counts = cast(UNet, mean.module) if options.average else net
    learner = nn.parallel.DistributedDataParallel(step) if processes > 1 else step
    chance = torch.Generator().manual_seed(seed + rank)
    optimiser = torch.optim.Adam(step.parameters(), lr=options.learning_rate, betas=options.betas)
    steps = options.epochs * math.ceil((options.epoch_slices or len(train)) / (options.batch * processes))
    rate = (lambda n: _cosine(n, steps)) if options.cosine else (lambda n: 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    checkpointed: dict[str, Any] = {"step": step, "optimiser": optimiser, "schedule": schedule, "mean": mean}
    history: History = []
    best, best_score = copy.deepcopy(net.state_dict()), -1.0
    if context.checkpoint is not None and context.checkpoint.exists():
        state = torch.load(context.checkpoint, map_location=device, weights_only=True)
        for name, part in checkpointed.items():
            part.load_state_dict(state[name])
        chance.set_state(state["chance"].cpu())
        best, best_score, history = state["best"], state["best_score"], state["history"]
    began = time.monotonic() - (history[-1]["seconds"] if history else 0.0)
    for epoch in range(len(history) + 1, options.epochs + 1):
        total, count = 0.0, 0
        order = _epoch_slices(train, tumour, options.epoch_slices, np.random.default_rng([seed, epoch]))
        order = np.resize(order, -(-len(order) // processes) * processes)[rank::processes]  # the same number for each
        step.train()
        for first in range(0, len(order), options.batch):
            picked = order[first : first + options.batch]
            rngs = [np.random.default_rng([seed, epoch, rank, first + i]) for i in range(len(picked))]
            image, mask = (part.to(device) for part in _batch(slices, picked, rngs, augment))
            if options.randomise:
                image, mask = randomised(image, mask, chance)
            if options.drop and net.channels > 1:
                image = without_some(image, options.drop, chance)
            value = learner(image.contiguous(memory_format=torch.channels_last), mask)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            mean.update_parameters(net)
            total, count = total + float(value.detach()) * len(picked), count + len(picked)
        figures = {"loss": total / count}
        if len(validation):
            scores = measure(counts, slices, validation, device)
            figures |= {"val_loss": scores["soft_dice_loss"], "val_dice": scores["hard_dice"], "val_iou": scores["iou"]}
        if not len(validation) or figures["val_iou"] >= best_score:
            best, best_score = copy.deepcopy(counts.state_dict()), figures.get("val_iou", 0.0)
        figures["seconds"] = time.monotonic() - began
        history.append(figures)
        if context.checkpoint is not None and rank == 0:
            state = {name: part.state_dict() for name, part in checkpointed.items()}
            state |= {"chance": chance.get_state(), "best": best, "best_score": best_score, "history": history}
            with whole_file(context.checkpoint, sweep=True) as part_file:
                torch.save(state, part_file)
        if context.progress is not None:
            left = figures["seconds"] / epoch * (options.epochs - epoch)
            context.progress(epoch, options.epochs, {**figures, "left_seconds": left})
    net.load_state_dict(best)
    return net.to("cpu", memory_format=torch.contiguous_format).eval(), history  # type: ignore[call-overload]


def dice_by_patient(masks: Iterable[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]]) -> dict[str, float]:
    """Dice over all pixels of each patient; 1 where no tumour is, and none was found.

    ``masks``: patient, true mask and found mask of each scan.
    """
    counts: dict[str, list[int]] = {}
    for patient, truth, found in masks:
        both = counts.setdefault(patient, [0, 0])
        both[0] += 2 * int((truth & found).sum())
        both[1] += int(truth.sum()) + int(found.sum())
    return {patient: overlap / total if total else 1.0 for patient, (overlap, total) in counts.items()}


def measure(net: UNet, slices: Slices, numbers: NDArray[np.int64], device: str = "cpu") -> dict[str, float]:
    """Soft-dice loss, hard Dice and IoU (Eq. 3–5) over all pixels of these slices: the paper's Table 2."""
    both = found = truth = 0
    overlap = mass = 0.0
    for first in range(0, len(numbers), 64):
        part = numbers[first : first + 64]
        probability = probabilities(net, np.stack([slices.images[i] for i in part]), device)
        mask = np.stack([slices.masks[i] for i in part]) > 0
        guess = probability > 0.5
        both, found, truth = both + int((guess & mask).sum()), found + int(guess.sum()), truth + int(mask.sum())
        overlap, mass = overlap + float(probability[mask].sum()), mass + float(probability.sum(dtype=np.float64))
    return {
        "soft_dice_loss": 1 - (2 * overlap + SMOOTH) / (mass + truth + SMOOTH),
        "hard_dice": (2 * both + SMOOTH) / (found + truth + SMOOTH),
        "iou": (both + SMOOTH) / (found + truth - both + SMOOTH),
    }


def probabilities(net: UNet, images: NDArray[Any], device: str = "cpu", batch: int = 16) -> NDArray[np.float32]:
    """The probability of tumour at each pixel: images [n, C, H, W] → float32 [n, H, W]."""
    net = net.eval()
    out = np.empty((len(images), *images.shape[2:]), dtype=np.float32)
    with torch.inference_mode(), mixed_precision(device):
        for first in range(0, len(images), batch):
            image = torch.from_numpy(np.asarray(images[first : first + batch], dtype=np.float32))
            image = image.to(device).contiguous(memory_format=torch.channels_last)
            out[first : first + batch] = torch.sigmoid(net.logit_and_taps(image)[0].float())[:, 0].cpu().numpy()
    return out


def randomised(image: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Domain randomisation of a batch: image [n, C, H, W] and mask [n, 1, H, W] move alike, and intensities change.

    Geometry: flip left–right, rotation ±20°, zoom ±20 %, shear, shift. Intensities, different for each sample and
    sequence: gain, gamma, a smooth field of gain (bias), blur, noise. Air stays 0.
    """
    image, mask = _moved(image, mask, chance)
    channels = image.reshape(-1, 1, *image.shape[2:])  # each by itself
    return _with_other_intensities(channels, chance).view_as(image), mask


def without_some(image: Tensor, share: float, chance: torch.Generator) -> Tensor:
    """A batch [n, C, H, W] in which each channel but the first is 0 with a probability of ``share``."""
    kept = torch.rand(*image.shape[:2], 1, 1, generator=chance) >= share
    kept[:, 0] = True
    return image * kept.to(image.device)


def _moved(image: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    n, device = len(image), image.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=chance) * (high - low) + low).to(device)

    def with_probability(probability: float) -> Tensor:
        return (torch.rand(n, generator=chance) < probability).to(device)

    angle, zoom, flip = uniform(-0.35, 0.35), uniform(0.83, 1.2), 1 - 2.0 * with_probability(0.5)
    cos, sin, shear = torch.cos(angle) * zoom, torch.sin(angle) * zoom, uniform(-0.08, 0.08)
    turn = torch.stack([cos, -sin + shear, uniform(-0.08, 0.08), sin, cos, uniform(-0.08, 0.08)], dim=1).view(n, 2, 3)
    turn[:, 1, :2] *= flip[:, None]  # rows are stored along left–right
    grid = F.affine_grid(turn, list(image.shape), align_corners=False)
    return (
        F.grid_sample(image, grid, align_corners=False),
        F.grid_sample(mask, grid, mode="nearest", align_corners=False),
    )


def _with_other_intensities(signal: Tensor, chance: torch.Generator) -> Tensor:
    """Of each of the images [n, 1, H, W]."""
    n, device = len(signal), signal.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=chance) * (high - low) + low).to(device)

    def with_probability(probability: float) -> Tensor:
        return (torch.rand(n, generator=chance) < probability).to(device)

    def each(values: Tensor) -> Tensor:
        return values.view(n, 1, 1, 1)

    peak = signal.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    gamma = torch.where(with_probability(0.6), torch.exp(uniform(-0.35, 0.35)), 1.0)
    signal = peak * (signal.clamp(min=0) / peak) ** each(gamma)
    coarse = torch.randn(n, 1, 4, 4, generator=chance).to(device) * each(uniform(0, 0.15))
    bias = F.interpolate(coarse, size=signal.shape[-2:], mode="bicubic", align_corners=True)
    signal = signal * torch.exp(bias) * each(torch.exp(uniform(-0.25, 0.25)))
    smooth = F.avg_pool2d(F.avg_pool2d(signal, 3, 1, 1), 3, 1, 1)
    signal = torch.lerp(signal, smooth, each(uniform(0, 1) * with_probability(0.3)))
    level = each(uniform(0, 0.12) * with_probability(0.5)) * signal.mean(dim=(1, 2, 3), keepdim=True) * 2
    noise = torch.randn(signal.shape, generator=chance).to(device)
    return (signal + level * noise).clamp(min=0)


class _Step(nn.Module):
    """image [n, C, H, W], mask [n, 1, H, W] → the loss: of the mask, and of the layer that predicts regions."""

    def __init__(self, net: UNet, values: Sequence[int], options: UNetOptions) -> None:
        super().__init__()
        self.net, self.values, self.options = net, values, options
        self.region = nn.Conv2d(16 * net.width, max(1, len(values)), 1) if options.regions else None

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        with mixed_precision(image.device.type):
            logit, (enc5, *_) = self.net.logit_and_taps(image)
            regions = self.region(enc5).float() if self.region is not None else None
        logit, truth = logit.float(), (mask > 0).float()
        value = soft_dice_loss(torch.sigmoid(logit), truth)
        if self.options.loss == "dice+bce":
            value = (value + F.binary_cross_entropy_with_logits(logit, truth)) / 2
        if regions is not None:
            each = torch.cat([(mask == v).float() for v in self.values], dim=1) if self.values else truth
            share = F.adaptive_avg_pool2d(each, regions.shape[-2:])
            value = value + self.options.regions * F.binary_cross_entropy_with_logits(regions, share)
        return value


def _averaged(share: float, means: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
    """``share`` of each mean remains; at the first steps less, so that no random first weights do."""
    share = min(share, (1 + int(steps)) / (10 + int(steps)))
    swa_utils.get_ema_multi_avg_fn(share)(means, values, steps)  # type: ignore[no-untyped-call]


def _epoch_slices(
    train: NDArray[np.int64], tumour: NDArray[np.bool_], count: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The slices of an epoch in random order: all of them, or ``count`` of them, half with tumour."""
    if count is None:
        return rng.permutation(train)
    parts = [part for part in (train[tumour], train[~tumour]) if len(part)]
    counts = [len(share) for share in np.array_split(np.arange(count), len(parts))]
    drawn = [rng.choice(part, n, replace=n > len(part)) for part, n in zip(parts, counts, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _mean_and_deviation(images: Sequence[NDArray[Any]], train: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Of all pixels of the training slices (paper section 3.5), for each channel. One that a scan lacks is left out."""
    means, deviations = [], []
    for channel in range(len(images[train[0]])):
        planes = (np.float64(images[i][channel]) for i in train)
        moments = [[p.mean(), np.square(p).mean()] for p in planes if channel == 0 or p.any()]
        mean, square = (float(moment) for moment in np.mean(moments or [[0, 1]], axis=0))
        means.append(mean)
        deviations.append(max(square - mean**2, 1e-12) ** 0.5)
    return means, deviations


def _batch(
    slices: Slices, picked: NDArray[np.int64], rngs: Sequence[np.random.Generator], augment: Augment | None
) -> tuple[Tensor, Tensor]:
    samples = []
    for index, rng in zip(picked, rngs, strict=True):
        image = np.asarray(slices.images[index], dtype=np.float32)
        mask = np.asarray(slices.masks[index], dtype=np.uint8)
        if augment is not None:
            present = image.any(axis=(1, 2), keepdims=True)
            image, mask = augment(image, mask, rng)
            image = image * present  # noise in a sequence that the scan lacks would be a sequence
        samples.append((image, mask))
    stacked = [np.stack(kind).astype(np.float32) for kind in zip(*samples, strict=True)]
    return torch.from_numpy(stacked[0]), torch.from_numpy(stacked[1])[:, None]


def _cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
