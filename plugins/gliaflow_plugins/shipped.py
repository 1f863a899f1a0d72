"""What ships, registered as anybody's plugin is. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from gliaflow_plugins.acgan import ACGAN, PaperACGAN
from gliaflow_plugins.acgan_image import ACGANImage
from gliaflow_plugins.adcgan import ADCGAN
from gliaflow_plugins.augmentations import (
    Augmentation,
    Elastic,
    HorizontalFlip,
    Rotation,
    Shear,
    Shift,
    VerticalFlip,
    Zoom,
)
from gliaflow_plugins.classifiers import CNN, ClassifierVariant, Pooled
from gliaflow_plugins.generators import GeneratorVariant
from gliaflow_plugins.hookspecs import hookimpl
from gliaflow_plugins.infogan import InfoGAN
from gliaflow_plugins.layouts import SHIPPED
from gliaflow_plugins.plain import SMOTE, Gaussian, Mixup
from gliaflow_plugins.reacgan import ReACGAN
from gliaflow_plugins.readers import Reader
from gliaflow_plugins.sngan_projection import SNGANProjection
from gliaflow_plugins.steps import N4, SkullStrip, Step
from gliaflow_plugins.wgan_gp import WGANGP


@hookimpl
def register_augmentations(register: Callable[[Augmentation], None]) -> None:
    for augmentation in (HorizontalFlip, VerticalFlip, Elastic, Rotation, Shift, Shear, Zoom):
        register(augmentation())


@hookimpl
def register_generators(register: Callable[[GeneratorVariant], None]) -> None:
    gans = (InfoGAN, ACGAN, PaperACGAN, SNGANProjection, ReACGAN, ADCGAN, WGANGP, ACGANImage)
    for variant in (*gans, Gaussian, SMOTE, Mixup):
        register(variant())


@hookimpl
def register_classifiers(register: Callable[[ClassifierVariant], None]) -> None:
    for variant in (Pooled, CNN):
        register(variant())


@hookimpl
def register_steps(register: Callable[[Step], None]) -> None:
    for step in (N4, SkullStrip):
        register(step())


@hookimpl
def register_readers(register: Callable[[Reader], None]) -> None:
    for reader in SHIPPED:
        register(reader())
