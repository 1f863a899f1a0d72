"""Augmentations of the scanner in gliaflow and in four libraries, for ``augmentation.py``.

Each gets the image [H, W] alone, since none changes the mask, and draws anew at each call, with probability 1.
Parameters are as near as the interfaces allow; what a library does otherwise is in ``DIFFERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gliaflow_plugins.augmentations.pipeline import SCANNER_AUGMENTATIONS
from gliaflow_plugins.registry import load_registry

Change = Callable[[np.ndarray], Any]
GAMMA = (float(np.exp(-0.35)), float(np.exp(0.35)))
DIFFERS = {
    ("histogram", "albumentations"): "a Bézier curve, 256 values",
    ("low-resolution", "MONAI"): "along both axes",
    ("low-resolution", "batchgeneratorsv2"): "along each axis",
    ("low-resolution", "albumentations"): "along both axes",
    ("rician-noise", "TorchIO"): "Gaussian",
    ("rician-noise", "albumentations"): "Gaussian",
}


def gliaflow() -> dict[str, Change]:
    registry, rng = load_registry(), np.random.default_rng(0)

    def of(name: str) -> Change:
        plugin = registry.augmentation(name)
        options, mask = plugin.options(), np.zeros((240, 240), np.uint8)
        return lambda image: plugin(image, mask, rng, options)[0]

    return {name: of(name) for name, _ in SCANNER_AUGMENTATIONS}


def torchio() -> dict[str, Change]:
    import torchio as tio

    steps = {
        "gamma": tio.RandomGamma(log_gamma=0.35),
        "bias-field": tio.RandomBiasField(coefficients=0.3, order=3),
        "motion": tio.RandomMotion(degrees=5, translation=5, num_transforms=2),  # ours: 1 to 3
        "ghosting": tio.RandomGhosting(axes=(0, 1)),
        "low-resolution": tio.RandomAnisotropy(axes=(0, 1), downsampling=(1, 4)),
        "blur": tio.RandomBlur(std=(0, 1.5, 0, 1.5, 0, 0)),
        "rician-noise": tio.RandomNoise(std=(0, 0.1)),
        "spikes": tio.RandomSpike(num_spikes=(1, 2), intensity=(0.01, 0.1)),
    }

    def of(step: Any) -> Change:
        return lambda image: step(torch.from_numpy(image)[None, ..., None])[0, ..., 0].numpy()

    return {name: of(step) for name, step in steps.items()}


def monai() -> dict[str, Change]:
    from monai import transforms

    steps = {
        "gamma": transforms.RandAdjustContrast(prob=1, gamma=GAMMA),
        "histogram": transforms.RandHistogramShift(prob=1, num_control_points=9),
        "bias-field": transforms.RandBiasField(prob=1, degree=3, coeff_range=(-0.3, 0.3)),
        "low-resolution": transforms.RandSimulateLowResolution(1, upsample_mode="bilinear", zoom_range=(0.25, 1.0)),
        "blur": transforms.RandGaussianSmooth(prob=1, sigma_x=(0.01, 1.5), sigma_y=(0.01, 1.5)),
        "rician-noise": transforms.RandRicianNoise(prob=1, std=0.1),
        "spikes": transforms.RandKSpaceSpikeNoise(prob=1),
    }

    def of(step: Any) -> Change:
        return lambda image: np.asarray(step(image[None])[0])

    return {name: of(step) for name, step in steps.items()}


def batchgenerators() -> dict[str, Change]:
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.noise.rician import RicianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

    steps = {
        "gamma": GammaTransform(GAMMA, 0, False, 1, 0),
        "low-resolution": SimulateLowResolutionTransform((0.25, 1.0), False, False, ()),
        "blur": GaussianBlurTransform((0.01, 1.5)),
        "rician-noise": RicianNoiseTransform((0.0, 0.1)),
    }

    def of(step: Any) -> Change:
        return lambda image: step(image=torch.from_numpy(image.copy())[None])["image"][0].numpy()  # it writes into it

    return {name: of(step) for name, step in steps.items()}


def albumentations() -> dict[str, Change]:
    # It takes images of 0 … 1, so that it gets the slice divided by its highest value, outside of the time measured.
    import albumentations as alb
    import cv2

    cv2.setNumThreads(0)
    steps = {
        "gamma": alb.RandomGamma((100 * GAMMA[0], 100 * GAMMA[1]), p=1),
        "histogram": alb.RandomToneCurve(scale=0.2, p=1),
        "low-resolution": alb.Downscale(scale_range=(0.25, 0.99), p=1),
        "blur": alb.GaussianBlur(blur_limit=0, sigma_limit=(0.01, 1.5), p=1),
        "rician-noise": alb.GaussNoise(std_range=(0, 0.03), p=1),
    }

    def of(step: Any) -> Change:
        apply = alb.Compose([step])
        return lambda image: apply(image=image)["image"]

    return {name: of(step) for name, step in steps.items()}


def contenders() -> dict[str, dict[str, Change]]:
    """By kind, then by library; gliaflow is the first."""
    libraries = {
        "gliaflow": gliaflow(),
        "TorchIO": torchio(),
        "MONAI": monai(),
        "batchgeneratorsv2": batchgenerators(),
        "albumentations": albumentations(),
    }
    return {
        kind: {library: each[kind] for library, each in libraries.items() if kind in each}
        for kind in libraries["gliaflow"]
    }
