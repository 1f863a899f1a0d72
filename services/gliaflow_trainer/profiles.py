"""The three sizes of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gliaflow_plugins.augmentations.pipeline import PAPER_AUGMENTATIONS
from gliaflow_runtime.bundle.manifest import InputSpec


@dataclass(frozen=True)
class Profile:
    """A size of slices and networks, and the options with which each network is fitted.

    ``unet`` and ``fine_tune`` (over ``unet``, with ``--init``) are arguments of ``fit_unet``; ``generators`` and
    ``classifiers`` have options by variant, over the variant's defaults.
    """

    width: int  # of the U-Net's first block; 64 in the paper
    norm: bool  # batch normalisation in the U-Net; the paper has none
    input: InputSpec
    unet: Mapping[str, Any]
    fine_tune: Mapping[str, Any]
    tap: str = "dec3"  # where features are read: the paper's 120×120×128, for which it had no memory
    cropped: bool = True  # to the mask: the paper's last suggestion
    classifier: str = "pooled"  # the paper's is "cnn"
    augmentations: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    mirror: bool = False  # the mask is the mean of the slice's and its mirror image's: twice the work, about +0.01 Dice
    generators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classifiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# 192 mm about the middle of the head, at the pixels that two cores can train on
SMALL_INPUT = InputSpec(size=(128, 128), spacing=(1.5, 1.5))
GANS = ("infogan", "acgan", "sngan-projection", "reacgan", "adcgan", "wgan-gp", "acgan-image")
# ``randomise`` moves whole batches, in a fraction of the time of the paper's augmentations
QUICK = {"batch": 16, "cosine": True, "loss": "dice+bce", "randomise": True, "regions": 1.0}

PROFILES = {
    "demo": Profile(
        width=8,
        norm=True,
        input=SMALL_INPUT,
        unet={**QUICK, "epochs": 7, "epoch_slices": 1000, "learning_rate": 4e-3},
        fine_tune={"epochs": 4, "learning_rate": 2e-3},
        generators={key: {"steps": 700} for key in GANS},
    ),
    "small": Profile(
        width=16,
        norm=True,
        input=SMALL_INPUT,
        unet={**QUICK, "epochs": 24, "epoch_slices": 1500, "learning_rate": 3e-3},
        fine_tune={"epochs": 20},
        mirror=True,
    ),
    "paper": Profile(
        width=64,
        norm=False,
        input=InputSpec(),
        unet={"epochs": 100, "batch": 10, "learning_rate": 1e-4, "betas": (0.9, 0.999)},  # pre-training
        fine_tune={"epochs": 30, "learning_rate": 1e-5},
        tap="enc5",
        cropped=False,
        classifier="cnn",
        augmentations=PAPER_AUGMENTATIONS,
        generators={key: {"ngf": 512, "ndf": 512} for key in (*GANS, "acgan-paper")},
        classifiers={"cnn": {"epochs": 50}},
    ),
}
