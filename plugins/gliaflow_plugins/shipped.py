"""What ships, registered as anybody's plugin is. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from gliaflow_plugins.acgan import ACGAN, PaperACGAN
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
from gliaflow_plugins.generators import GeneratorVariant
from gliaflow_plugins.hookspecs import hookimpl
from gliaflow_plugins.layouts import SHIPPED
from gliaflow_plugins.readers import Reader


@hookimpl
def register_augmentations(register: Callable[[Augmentation], None]) -> None:
    for augmentation in (HorizontalFlip, VerticalFlip, Elastic, Rotation, Shift, Shear, Zoom):
        register(augmentation())


@hookimpl
def register_generators(register: Callable[[GeneratorVariant], None]) -> None:
    register(ACGAN())
    register(PaperACGAN())


@hookimpl
def register_readers(register: Callable[[Reader], None]) -> None:
    for reader in SHIPPED:
        register(reader())
