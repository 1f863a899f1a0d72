"""The profiles of a training: demo, small, paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gliaflow_plugins.augmentations.pipeline import PAPER_AUGMENTATIONS
from gliaflow_runtime.bundle.manifest import InputSpec


@dataclass(frozen=True)
class Profile:
    """The size of slices and networks, and the options with which each network is fitted.

    ``unet`` has values for ``UNetOptions``; ``fine_tune`` overrides them in a fit that starts from a bundle's U-Net.
    ``generators`` and ``classifiers`` have options by variant, which override the variant's defaults.
    """

    width: int  # channels of the U-Net's first block; 64 in the paper
    norm: bool  # batch normalisation in the U-Net; none in the paper
    input: InputSpec
    unet: Mapping[str, Any]
    fine_tune: Mapping[str, Any]
    tap: str = "dec3"  # the tap that features are read from: the paper's 120×120×128, for which it lacked the memory
    cropped: bool = True  # crop features to the mask: the paper's last suggestion
    classifier: str = "pooled"  # "cnn" in the paper
    augmentations: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    folds: int = 0  # in which ``gliaflow train`` measures every patient before a last fit on all; 0: one split
    init: str = ""  # the bundle whose U-Net a fit starts from, unless ``--init`` names another: demo, the shipped one
    mirror: bool = False  # the mask is the mean of the slice's and its mirror image's: twice the work, about +0.01 Dice
    generators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classifiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


DROP = 0.2
"""The probability with which a training sample lacks a sequence, for each but the FLAIR."""


def with_sequences(profile: Profile, channels: tuple[str, ...], drop: float) -> Profile:
    """The profile for these sequences (see ``InputSpec.channels``).

    Those beside the FLAIR are dropped at random in training, and so may be missing in serving. With ``drop`` 0, none
    may.

    Raises
    ------
    ValidationError: they do not begin with flair, or are not in the order of SEQUENCES.
    """
    optional = channels[1:] if drop else ()
    fields = profile.input.model_dump() | {"channels": channels, "optional": optional}
    unet = {**profile.unet, "drop": drop} if optional else profile.unet
    return replace(profile, input=InputSpec.model_validate(fields), unet=unet)


# 192 mm around the middle of the head, in as many pixels as two cores can train on
DEMO_INPUT = InputSpec(size=(128, 128), spacing=(1.5, 1.5))
# the same field of view, as fine as scanners have it: +0.01 Dice over 1.5 mm on real scans, at twice the work (ADR 31)
SMALL_INPUT = InputSpec(size=(192, 192), spacing=(1.0, 1.0))
GANS = ("infogan", "acgan", "sngan-projection", "reacgan", "adcgan", "wgan-gp", "acgan-image")
# ``randomise`` changes whole batches, in a fraction of the time of the paper's augmentations
QUICK = {"batch": 16, "cosine": True, "loss": "dice+bce", "randomise": True, "regions": 1.0, "average": 0.998}

PROFILES = {
    "demo": Profile(
        width=8,
        norm=True,
        input=DEMO_INPUT,
        unet={**QUICK, "epochs": 7, "epoch_slices": 1000, "learning_rate": 4e-3},
        fine_tune={"epochs": 4, "learning_rate": 2e-3},
        generators={key: {"steps": 700} for key in GANS},
    ),
    "small": Profile(
        width=8,
        norm=True,
        input=SMALL_INPUT,
        unet={**QUICK, "epochs": 20, "epoch_slices": 1500, "learning_rate": 3e-3},
        fine_tune={"learning_rate": 2e-3},
        init="demo",
        folds=5,
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
