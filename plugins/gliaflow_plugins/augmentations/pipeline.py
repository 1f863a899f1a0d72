"""Augmentations by name, one after another, with a single resampling for all that move pixels."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from gliaflow_plugins.augmentations.geometry import CoordinateMap, Geometric, resample, shape_of
from gliaflow_plugins.contracts import Augmentation, Image, Mask, PluginError, parse_options
from gliaflow_plugins.registry import Registry

PAPER_AUGMENTATIONS: tuple[tuple[str, Mapping[str, Any]], ...] = tuple(
    (name, {}) for name in ("hflip", "vflip", "elastic", "rotation", "shift", "shear", "zoom")
)


class AugmentationPipeline:
    """Augmentations by name, in order: a callable (image [H, W], mask [H, W], rng) → (image, mask).

    Parameters
    ----------
    registry: where names are looked up.
    named: (name, options) pairs, as they stand in config.

    Raises
    ------
    PluginError: a name is unknown or broken, or an option is not one.
    """

    def __init__(self, registry: Registry, named: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        self.augmentations: list[tuple[Augmentation, BaseModel]] = []
        for name, values in named:
            augmentation = registry.augmentation(name)
            self.augmentations.append((augmentation, parse_options(augmentation, values)))

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Augment a slice.

        Raises
        ------
        ValueError: image and mask are not two planes of one shape.
        PluginError: an augmentation raised something, or left another shape, or pixels that are not finite.
        """
        if image.ndim != 2 or image.shape != mask.shape:
            raise ValueError(f"image {image.shape} and mask {mask.shape} must be two planes of one shape [H, W]")
        pending: list[CoordinateMap] = []  # geometric ones in a row, not resampled yet
        for augmentation, options in self.augmentations:
            if pending and not isinstance(augmentation, Geometric):
                image, mask = resample(image, mask, pending)
                pending = []
            try:  # it may be anybody's code
                if isinstance(augmentation, Geometric):
                    pending.append(augmentation.draw(shape_of(image), rng, options))
                    continue
                left = augmentation(image, mask, rng, options)
                if [part.shape for part in left] != [image.shape] * 2 or not np.isfinite(left[0]).all():
                    raise ValueError(f"it left {[part.shape for part in left]} of {image.shape}, or NaN")
            except Exception as error:
                raise PluginError(f"augmentation {augmentation.name!r}: {type(error).__name__}: {error}") from error
            image, mask = left
        return resample(image, mask, pending) if pending else (image, mask)


def parse_named(text: str) -> tuple[str, dict[str, str]]:
    """``name`` or ``name:option=value,option=value``, as a person writes it, as (name, options).

    Raises
    ------
    PluginError: an option has no value.
    """
    name, _, rest = text.partition(":")
    options = {}
    for option in rest.split(",") if rest else []:
        key, equals, value = option.partition("=")
        if not equals:
            raise PluginError(f"{text!r}: {option!r} is not option=value")
        options[key.strip()] = value.strip()
    return name, options


def read_augmentations(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """A TOML file as (name, options) pairs: a table ``[[augmentation]]`` each, with ``name`` and its options.

    Raises
    ------
    PluginError: it cannot be read, or holds something else. The text names the file.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{path}: {error}") from None
    tables = found.get("augmentation")
    if set(found) != {"augmentation"} or not isinstance(tables, list):
        raise PluginError(f"{path}: a table [[augmentation]] for each is all that may stand there")
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise PluginError(f"{path}: augmentation {number} has no name")
    return [(table["name"], {key: value for key, value in table.items() if key != "name"}) for table in tables]
