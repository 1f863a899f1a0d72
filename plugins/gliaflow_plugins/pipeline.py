"""Augmentations by name, one after another, with a single resampling for all that move pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from gliaflow_plugins.augmentations import Augmentation, CoordinateMap, Geometric, Image, Mask, resample, shape_of
from gliaflow_plugins.base import parse_options
from gliaflow_plugins.registry import Registry

PAPER_STEPS: tuple[tuple[str, Mapping[str, Any]], ...] = tuple(
    (name, {}) for name in ("hflip", "vflip", "elastic", "rotation", "shift", "shear", "zoom")
)


class Pipeline:
    """Augmentations by name, in order: a callable (image [H, W], mask [H, W], rng) → (image, mask).

    Parameters
    ----------
    registry: where names are looked up.
    steps: (name, options) pairs, as they stand in config.

    Raises
    ------
    PluginError: a name is unknown or broken, or an option is not one.
    """

    def __init__(self, registry: Registry, steps: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        self.steps: list[tuple[Augmentation, BaseModel]] = []
        for name, values in steps:
            augmentation = registry.augmentation(name)
            self.steps.append((augmentation, parse_options(augmentation, values)))

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Raises ValueError where image and mask are not two planes of one shape."""
        if image.ndim != 2 or image.shape != mask.shape:
            raise ValueError(f"image {image.shape} and mask {mask.shape} must be two planes of one shape [H, W]")
        pending: list[CoordinateMap] = []  # geometric ones in a row, not resampled yet
        for augmentation, options in self.steps:
            if isinstance(augmentation, Geometric):
                pending.append(augmentation.draw(shape_of(image), rng, options))
                continue
            if pending:
                image, mask = resample(image, mask, pending)
                pending = []
            image, mask = augmentation(image, mask, rng, options)
        return resample(image, mask, pending) if pending else (image, mask)


def paper_pipeline(registry: Registry) -> Pipeline:
    """The paper's Table 1, with its parameters and in its order."""
    return Pipeline(registry, PAPER_STEPS)
