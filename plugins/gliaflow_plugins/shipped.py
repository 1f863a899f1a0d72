"""Registers the shipped plugins through the same hooks as third-party plugins. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from gliaflow_plugins.augmentations.kspace import Ghosting, LowResolution, Motion, Spikes
from gliaflow_plugins.augmentations.scanner import BiasField, Blur, Gamma, Histogram, RicianNoise
from gliaflow_plugins.augmentations.shipped import (
    Elastic,
    MirrorFrontBack,
    MirrorLeftRight,
    Rotation,
    Shear,
    Shift,
    Zoom,
)
from gliaflow_plugins.classifiers import CNN, Pooled, Shared
from gliaflow_plugins.cohorts.layouts import SHIPPED
from gliaflow_plugins.contracts import Augmentation, ClassifierVariant, GeneratorVariant, Reader, Step
from gliaflow_plugins.generators.acgan import ACGAN, PaperACGAN
from gliaflow_plugins.generators.acgan_image import ACGANImage
from gliaflow_plugins.generators.adapted import Adapted
from gliaflow_plugins.generators.adcgan import ADCGAN
from gliaflow_plugins.generators.baselines import SMOTE, Gaussian, Mixup, Transfer
from gliaflow_plugins.generators.infogan import InfoGAN
from gliaflow_plugins.generators.reacgan import ReACGAN
from gliaflow_plugins.generators.sngan_projection import SNGANProjection
from gliaflow_plugins.generators.wgan_gp import WGANGP
from gliaflow_plugins.hookspecs import hookimpl
from gliaflow_plugins.steps import N4, SkullStrip


@hookimpl
def register_augmentations(register: Callable[[Augmentation], None]) -> None:
    geometry = (MirrorFrontBack, MirrorLeftRight, Elastic, Rotation, Shift, Shear, Zoom)
    scanner = (Gamma, Histogram, BiasField, Motion, Ghosting, LowResolution, Blur, RicianNoise, Spikes)
    for augmentation in (*geometry, *scanner):
        register(augmentation())


@hookimpl
def register_generators(register: Callable[[GeneratorVariant], None]) -> None:
    gans = (InfoGAN, ACGAN, PaperACGAN, SNGANProjection, ReACGAN, ADCGAN, WGANGP, ACGANImage)
    for variant in (*gans, Gaussian, SMOTE, Transfer, Mixup, Adapted):
        register(variant())


@hookimpl
def register_classifiers(register: Callable[[ClassifierVariant], None]) -> None:
    for variant in (Pooled, Shared, CNN):
        register(variant())


@hookimpl
def register_steps(register: Callable[[Step], None]) -> None:
    for step in (N4, SkullStrip):
        register(step())


@hookimpl
def register_readers(register: Callable[[Reader], None]) -> None:
    for reader in SHIPPED:
        register(reader)
