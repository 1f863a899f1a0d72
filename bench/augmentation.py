"""Speed of augmentations beside four libraries: the paper's Table 1 together, and each of the scanner's by itself.

make bench-augment
.venv-peers-augmentation/bin/python bench/augmentation.py [--rounds 15] [--calls 20] [--json FILE]
.venv-peers-augmentation/bin/python bench/augmentation.py --training    its share of a training step

240×240, float32 and uint8, one thread, all in turn in one process. Times are CPU seconds of this process, so that other
work on the machine counts little. Each library is written as its documentation says, with one resampling for as many
steps as it can join. What it leaves out or does otherwise is in ``DIFFERS`` and in the comments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # before any of them is imported
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask a server for its newest version

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gliaflow_plugins.augmentations.pipeline import (  # noqa: E402
    PAPER_AUGMENTATIONS,
    SCANNER_AUGMENTATIONS,
    AugmentationPipeline,
)
from gliaflow_plugins.registry import load_registry  # noqa: E402

SIDE = 240
ALPHA, SIGMA = 720, 24  # of the elastic distortion; pixels move by 4.7 RMS
DEGREES, SHIFT, SHEAR, ZOOM = 20, 0.1, 0.05, 0.1
SHEAR_DEGREES = float(np.rad2deg(np.arctan(SHEAR)))
RADIANS = float(np.deg2rad(DEGREES))
PIXELS = SHIFT * SIDE
DIFFERS = {
    "gliaflow": "",
    "albumentations, seven steps": "five resamplings",
    "albumentations, joined": "two resamplings: elastic, and affine",
    "batchgeneratorsv2": "no shear",
    "MONAI": "control points instead of a blurred field",
    "TorchIO": "no shear; B-splines instead of a blurred field",
}
Pair = tuple[Any, Any]
Augment = Callable[[np.ndarray, np.ndarray], Pair]


def gliaflow() -> Augment:
    pipeline, rng = AugmentationPipeline(load_registry(), PAPER_AUGMENTATIONS), np.random.default_rng(0)
    return lambda image, mask: pipeline(image, mask, rng)


def albumentations(joined: bool) -> Augment:
    # ``approximate=True`` is no choice: it cuts the kernel of σ 24 off at 17 pixels, which is another field.
    import albumentations as alb
    import cv2

    cv2.setNumThreads(0)
    fill = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": 0, "p": 1}
    still = {"scale": 1.0, "translate_percent": 0, "rotate": 0, "shear": 0}
    affine = {
        "rotate": (-DEGREES, DEGREES),
        "translate_percent": {"x": (-SHIFT, SHIFT), "y": (-SHIFT, SHIFT)},
        "shear": {"x": (-SHEAR_DEGREES, SHEAR_DEGREES), "y": (0, 0)},
        "scale": (1 - ZOOM, 1 + ZOOM),
    }
    steps = [affine] if joined else [{**still, name: values} for name, values in affine.items()]
    apply = alb.Compose(
        [
            alb.HorizontalFlip(p=0.5),
            alb.VerticalFlip(p=0.5),
            alb.ElasticTransform(alpha=ALPHA, sigma=SIGMA, noise_distribution="uniform", **fill),
            *(alb.Affine(**step, **fill) for step in steps),
        ]
    )

    def augment(image: np.ndarray, mask: np.ndarray) -> Pair:
        result = apply(image=image, mask=mask)
        return result["image"], result["mask"]

    return augment


def batchgenerators() -> Augment:
    # Its shift is a random crop. The field is scaled to a largest displacement, here about that of Table 1.
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    mirror = MirrorTransform((0, 1))
    spatial = SpatialTransform(
        (SIDE, SIDE),
        patch_center_dist_from_border=int(SIDE / 2 - PIXELS),
        random_crop=True,
        p_elastic_deform=1,
        elastic_deform_scale=(SIGMA / SIDE, SIGMA / SIDE),
        elastic_deform_magnitude=(12, 12),
        p_synchronize_def_scale_across_axes=1,
        p_rotation=1,
        rotation=(-RADIANS, RADIANS),
        p_scaling=1,
        scaling=(1 - ZOOM, 1 + ZOOM),
        p_synchronize_scaling_across_axes=1,
        mode_seg="nearest",
    )

    def augment(image: np.ndarray, mask: np.ndarray) -> Pair:
        given = {"image": torch.from_numpy(image)[None], "segmentation": torch.from_numpy(mask)[None]}
        result = spatial(**mirror(**given))
        return result["image"][0].numpy(), result["segmentation"][0].numpy()

    return augment


def monai() -> Augment:
    from monai import transforms

    keys = ["image", "mask"]
    apply = transforms.Compose(
        [
            transforms.RandFlipd(keys, 0.5, 0),
            transforms.RandFlipd(keys, 0.5, 1),
            transforms.Rand2DElasticd(
                keys,
                spacing=SIGMA,
                magnitude_range=(0, 8),
                prob=1,
                rotate_range=RADIANS,
                shear_range=((0.0, 0.0), (-SHEAR, SHEAR)),
                translate_range=(PIXELS, PIXELS),
                scale_range=ZOOM,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
        ]
    )

    def augment(image: np.ndarray, mask: np.ndarray) -> Pair:
        result = apply({"image": image[None], "mask": mask[None]})
        return result["image"][0].numpy(), result["mask"][0].numpy()

    return augment


def torchio() -> Augment:
    # It knows volumes only: a slice is one of a single plane.
    import SimpleITK
    import torchio as tio

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    apply = tio.Compose(
        [
            tio.RandomFlip((0, 1)),
            tio.RandomAffineElasticDeformation(
                affine_kwargs={
                    "scales": (1 - ZOOM, 1 + ZOOM),
                    "isotropic": True,
                    "degrees": (0, 0, 0, 0, -DEGREES, DEGREES),
                    "translation": (-PIXELS, PIXELS, -PIXELS, PIXELS, 0, 0),
                },
                elastic_kwargs={
                    "num_control_points": (10, 10, 4),
                    "locked_borders": 0,
                    "max_displacement": (8, 8, 0),
                },
            ),
        ]
    )

    def augment(image: np.ndarray, mask: np.ndarray) -> Pair:
        planes = (torch.from_numpy(plane)[None, ..., None] for plane in (image, mask))
        subject = tio.Subject(image=tio.ScalarImage(tensor=next(planes)), mask=tio.LabelMap(tensor=next(planes)))
        result = apply(subject)
        return result.image.data[0, ..., 0].numpy(), result.mask.data[0, ..., 0].numpy()

    return augment


def slice_and_mask(side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A head of noise with a round tumour; the time does not depend on what is seen."""
    rows, columns = np.indices((side, side)) / side - 0.5
    head = (rows / 0.38) ** 2 + (columns / 0.44) ** 2 < 1
    noise = np.random.default_rng(0).normal(1, 0.1, head.shape)
    return np.float32(head * noise), np.uint8((rows - 0.1) ** 2 + (columns + 0.1) ** 2 < 0.01)


def milliseconds(augment: Augment, calls: int) -> float:
    """CPU time of a call."""
    image, mask = slice_and_mask()
    started = time.process_time()
    for _ in range(calls):
        augment(image, mask)
    return 1000 * (time.process_time() - started) / calls


def require_change(name: str, augment: Augment) -> None:
    """It must do something to both, and return their size."""
    image, mask = slice_and_mask()
    moved, moved_mask = augment(image, mask)
    assert moved.shape == moved_mask.shape == image.shape, f"{name}: {moved.shape}, {moved_mask.shape}"
    assert np.abs(moved - image).mean() > 0.05, f"{name}: the image stayed as it was"
    assert 0 < (moved_mask != mask).mean() < 0.2, f"{name}: the mask stayed as it was, or is another"


def compare(rounds: int, calls: int) -> dict[str, list[float]]:
    """Milliseconds of each contender in each round."""
    contenders = {
        "gliaflow": gliaflow(),
        "albumentations, seven steps": albumentations(joined=False),
        "albumentations, joined": albumentations(joined=True),
        "batchgeneratorsv2": batchgenerators(),
        "MONAI": monai(),
        "TorchIO": torchio(),
    }
    for name, augment in contenders.items():
        require_change(name, augment)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, augment in contenders.items():
            times[name].append(milliseconds(augment, calls))
    return times


def compare_scanner(rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each kind, each library and each round."""
    import SimpleITK
    from scanner_peers import contenders

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = slice_and_mask()[0].clip(0)
    image /= image.max()  # albumentations needs 0 … 1; gliaflow takes any scale
    every = contenders()
    times: dict[str, dict[str, list[float]]] = {kind: {library: [] for library in each} for kind, each in every.items()}
    for kind, each in every.items():
        for library, change in each.items():
            changed = [change(image) for _ in range(4)]
            assert all(one.shape == image.shape and np.isfinite(one).all() for one in changed), (kind, library)
            assert max(np.abs(one - image).max() for one in changed) > 0.01, f"{library} does nothing: {kind}"
    for _ in range(rounds):
        for kind, each in every.items():
            for library, change in each.items():
                started = time.process_time()
                for _ in range(calls):
                    change(image)
                times[kind][library].append(1000 * (time.process_time() - started) / calls)
    return times


def scanner_markdown(times: dict[str, dict[str, list[float]]]) -> str:
    """A row for each kind; of each library its milliseconds, and how many times ours they are."""
    from scanner_peers import DIFFERS

    libraries = list(dict.fromkeys(library for each in times.values() for library in each))
    lines = [f"| | {' | '.join(libraries)} |", "|---" * (1 + len(libraries)) + "|"]
    for kind, each in times.items():
        cells = [f"{statistics.median(each['gliaflow']):.2f}", *("–" for _ in libraries[1:])]
        for library in each.keys() - {"gliaflow"}:
            ratios = [one / ours for one, ours in zip(each[library], each["gliaflow"], strict=True)]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
            note = f"; {DIFFERS[kind, library]}" if (kind, library) in DIFFERS else ""
            cells[libraries.index(library)] = f"{statistics.median(each[library]):.2f}: {spread}{note}"
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(times: dict[str, list[float]]) -> str:
    lines = [
        "| | CPU ms a slice (median) | gliaflow is faster by: median (range) | what differs |",
        "|---|---|---|---|",
    ]
    for name, each in times.items():
        ratios = [one / ours for one, ours in zip(each, times["gliaflow"], strict=True)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})" if name != "gliaflow" else "1"
        lines.append(f"| {name} | {statistics.median(each):.2f} | {spread} | {DIFFERS[name]} |")
    return "\n".join(lines)


def share_of_training(rounds: int) -> str:
    """CPU time of a batch's augmentation beside that of the whole training step.

    Of the profiles, and of ``small`` with the augmentations of the scanner before its own.
    """
    from gliaflow_plugins.contracts import FitContext
    from gliaflow_trainer.profiles import PROFILES
    from gliaflow_trainer.slices import Slices
    from gliaflow_trainer.unet_fit import UNetOptions, fit_unet, randomised

    lines = ["| profile | a step, CPU ms | its augmentation, CPU ms | share |", "|---|---|---|---|"]
    scanner = replace(PROFILES["small"], augmentations=SCANNER_AUGMENTATIONS)
    for name, profile in {**PROFILES, "small + scanner": scanner}.items():
        options = UNetOptions(profile.width, profile.norm, **{**profile.unet, "epochs": 1, "epoch_slices": None})
        image, mask = slice_and_mask(profile.input.size[0])
        slices = Slices([])
        slices.images, slices.masks = [image[None]] * options.batch, [mask] * options.batch
        pipeline = AugmentationPipeline(load_registry(), profile.augmentations)
        one_by_one = pipeline if pipeline.augmentations else None
        batch = tuple(torch.from_numpy(np.stack([part] * options.batch)[:, None]).float() for part in (image, mask))
        chance, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        steps, changes = [], []
        for _ in range(rounds):
            started = time.process_time()
            every = np.arange(options.batch)  # one step
            fit_unet(slices, every, every[:0], options, FitContext(seed=0), augment=one_by_one)
            fitted = time.process_time()
            if options.randomise:
                randomised(*batch, chance)
            for _ in range(options.batch if one_by_one else 0):
                pipeline(image, mask, rng)
            steps.append(1000 * (fitted - started))
            changes.append(1000 * (time.process_time() - fitted))
        step, change = statistics.median(steps), statistics.median(changes)
        lines.append(f"| `{name}` | {step:.0f} | {change:.1f} | {change / step:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=20, help="calls of each contender in a round")
    parser.add_argument("--json", type=Path, help="write the milliseconds of each round into this file")
    parser.add_argument("--training", action="store_true", help="the share of a training step instead")
    flags = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the peers
    torch.set_num_threads(1)
    if flags.training:
        print(share_of_training(flags.rounds))
        return
    together = compare(flags.rounds, flags.calls)
    print(markdown(together))
    apart = compare_scanner(flags.rounds, flags.calls)
    print(f"\n{scanner_markdown(apart)}")
    if flags.json:
        flags.json.write_text(json.dumps({"Table 1": together, "scanner": apart}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
