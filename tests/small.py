"""The smallest useful cohort, networks and generator: a whole training takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from gliaflow_plugins.classifiers import CNN, Pooled
from gliaflow_plugins.cohorts.read import CohortRequest
from gliaflow_plugins.contracts import Cohort, FeatureSource, FitContext, Fitted, Options
from gliaflow_plugins.registry import Registry, load_registry
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_trainer.profiles import Profile

SHAPE = (36, 40, 10)
PROFILE = Profile(
    width=4,
    norm=True,
    input=InputSpec(size=(48, 48), spacing=(5, 5)),
    unet={
        "batch": 8,
        "cosine": True,
        "loss": "dice+bce",
        "regions": 1.0,
        "epochs": 12,
        "epoch_slices": 96,
        "learning_rate": 1e-2,
    },
    fine_tune={"epochs": 1},
    generators={"levels": {"spread": 0.5}},
)


def head(grade: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan and its mask, 5 × 5 × 6 mm: an ellipsoid with a bright ball, which is brighter in HGG."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    scan = (i**2 + j**2 + k**2 < 0.8) * rng.normal(300, 10, SHAPE)
    centre = rng.uniform(-0.3, 0.3, 3)
    distance = np.sqrt((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2)
    mask = distance < 0.45
    scan[mask] += 600 if grade == "HGG" else 250
    return scan.astype(np.int16), (4 * mask).astype(np.uint8)


def write_cohort(folder: Path, hgg: int, lgg: int) -> Path:
    """Write a cohort in the BraTS 2018 layout, ``HGG|LGG/<ID>/<ID>_{flair,seg}.nii.gz``, with ids H0, … and L0, …"""
    for grade, count in (("HGG", hgg), ("LGG", lgg)):
        for number in range(count):
            name = f"{grade[0]}{number}"
            (folder / grade / name).mkdir(parents=True)
            for kind, volume in zip(("flair", "seg"), head(grade, 100 * (grade == "HGG") + number), strict=True):
                image = nib.Nifti1Image(volume, np.diag([5.0, 5, 6, 1]))
                nib.save(image, folder / grade / name / f"{name}_{kind}.nii.gz")
    return folder


def cohort(folder: Path) -> Cohort:
    return CohortRequest(folder).read(load_registry())


class LevelsOptions(Options):
    spread: float = 1.0


class Levels:
    """A generator that needs no training: each class's mean map, times a random level."""

    name = "levels"
    options = LevelsOptions

    def fit(self, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
        import torch
        from torch import Tensor, nn

        all_maps = features.batch(np.arange(len(features)))
        means = torch.from_numpy(np.stack([all_maps[features.labels == label].mean(axis=0) for label in (0, 1)]))

        class Generator(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("means", means)

            def forward(self, z: Tensor, label: Tensor) -> Tensor:
                maps: Tensor = self.means[label]  # type: ignore[index]
                return maps * torch.exp(options.spread * z)[:, :, None, None]

        class Critic(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("means", means)

            def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
                closeness = -(features[:, None] - self.means).square().mean(dim=(2, 3, 4))  # type: ignore[operator]
                return closeness.amax(dim=1), closeness

        return Fitted(1, Generator().eval(), Critic().eval(), [{"loss": 0.0}])


REGISTRY = Registry(generators={"levels": Levels()}, classifiers={"pooled": Pooled(), "cnn": CNN()})
