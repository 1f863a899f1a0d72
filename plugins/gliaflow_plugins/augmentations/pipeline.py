"""A pipeline of augmentations, chosen by name. Consecutive ones that move pixels share a single resampling."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from gliaflow_plugins.augmentations.geometry import CoordinateMap, Geometric, resample, shape_of
from gliaflow_plugins.contracts import Augmentation, Image, Mask, PluginError, parse_options
from gliaflow_plugins.registry import Registry

PAPER_AUGMENTATIONS: tuple[tuple[str, Mapping[str, Any]], ...] = tuple(
    (name, {}) for name in ("mirror-front-back", "mirror-left-right", "elastic", "rotation", "shift", "shear", "zoom")
)
SCANNER_AUGMENTATIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("gamma", {"probability": 0.3}),
    ("histogram", {"probability": 0.1, "spread": 0.4}),
    ("bias-field", {"probability": 0.3}),
    ("motion", {"probability": 0.05, "movements": 2}),
    ("ghosting", {"probability": 0.05}),
    ("low-resolution", {"probability": 0.15, "factor": 2.5}),
    ("blur", {"probability": 0.15, "sigma": 1.2}),
    ("rician-noise", {"probability": 0.3}),
    ("spikes", {"probability": 0.03, "strength": 0.2}),
)
"""What a scanner does, in its order: tissue, coil, patient, k-space, receiver. Seldom and mild, to train with."""
SETS = {"paper": PAPER_AUGMENTATIONS, "scanner": SCANNER_AUGMENTATIONS}
"""Names for several augmentations at once. No augmentation may have one of them."""
EARLIER_NAMES = {"hflip": "mirror-front-back", "vflip": "mirror-left-right"}
"""Names in older files and bundles. They suggested the opposite of what the augmentations do."""


class AugmentationPipeline:
    """Augmentations by name, in order: a callable (image [H, W] or [C, H, W], mask [H, W], rng) → (image, mask).

    The sequences [C, H, W] of a slice move alike. What changes pixels' values is drawn for each of them.

    Parameters
    ----------
    registry: where names are looked up. A name of EARLIER_NAMES gives today's augmentation, with the same numbers.
    named: (name, options) pairs, as in a configuration file.

    Raises
    ------
    PluginError: an augmentation is unknown or broken, or one of its options is unknown or out of range.
    """

    def __init__(self, registry: Registry, named: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        self.augmentations: list[tuple[Augmentation, BaseModel]] = []
        for name, values in named:
            known = name in registry.augmentations  # a plugin may have one of these names today
            augmentation = registry.augmentation(name if known else EARLIER_NAMES.get(name, name))
            self.augmentations.append((augmentation, parse_options(augmentation, values)))

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Augment a slice.

        Raises
        ------
        ValueError: image and mask are not planes of one shape.
        PluginError: an augmentation raised an error, or returned another shape, or pixels that are integers or not
            finite.
        """
        if image.ndim not in (2, 3) or image.shape[-2:] != mask.shape:
            raise ValueError(f"image {image.shape} and mask {mask.shape} must be planes of one shape [H, W]")
        planes = [image] if image.ndim == 2 else list(image)
        planes, mask = self._augmented(planes, mask, rng)
        return (planes[0] if image.ndim == 2 else np.stack(planes)), mask

    def _augmented(self, planes: list[Image], mask: Mask, rng: np.random.Generator) -> tuple[list[Image], Mask]:
        pending: list[tuple[str, CoordinateMap]] = []  # maps that are not applied yet
        for augmentation, options in self.augmentations:
            if pending and not isinstance(augmentation, Geometric):
                planes, mask = _move(planes, mask, pending)
                pending = []
            try:  # it may be third-party code
                if isinstance(augmentation, Geometric):
                    pending.append((augmentation.name, augmentation.draw(shape_of(planes[0]), rng, options)))
                    continue
                results = [augmentation(plane, mask, rng, options) for plane in planes]
                for result, plane in zip(results, planes, strict=True):
                    _check(result, plane)
            except Exception as error:
                raise PluginError(f"augmentation {augmentation.name!r}: {type(error).__name__}: {error}") from error
            planes, mask = [plane for plane, _ in results], results[0][1]
        return _move(planes, mask, pending) if pending else (planes, mask)


def _check(result: tuple[Image, Mask], image: Image) -> None:
    """Raise ValueError if an augmentation may not return this for ``image``. Any kind of float is accepted."""
    if [part.shape for part in result] != [image.shape] * 2 or not np.isfinite(result[0]).all():
        raise ValueError(f"it returned {[part.shape for part in result]} for {image.shape}, or NaN")
    if not np.issubdtype(result[0].dtype, np.floating):
        raise ValueError(f"it returned an image of {result[0].dtype}: return the type of the given one, {image.dtype}")


def _move(
    planes: Sequence[Image], mask: Mask, pending: Sequence[tuple[str, CoordinateMap]]
) -> tuple[list[Image], Mask]:
    names, maps = zip(*pending, strict=True)
    try:  # a map may be third-party code
        moved = [resample(plane, mask, maps) for plane in planes]
    except Exception as error:
        raise PluginError(f"augmentation {' + '.join(names)!r}: {type(error).__name__}: {error}") from error
    return [plane for plane, _ in moved], moved[0][1]


def parse_named(text: str) -> tuple[str, dict[str, str]]:
    """Parse ``name`` or ``name:option=value,option=value`` into (name, options).

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


def parse_augmentations(texts: Iterable[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The steps of ``--augmentation``, in order: each text is a name of SETS, a TOML file, or as for ``parse_named``.

    Raises
    ------
    PluginError: a text cannot be read; or a name of SETS has options.
    """
    steps: list[tuple[str, Mapping[str, Any]]] = []
    for text in texts:
        name = text.partition(":")[0]
        if name in SETS:
            if name != text:
                raise PluginError(
                    f"--augmentation {text}: {name} is a set and has no options; name one of its own, {_names(name)}"
                )
            steps += SETS[name]
        elif text.endswith(".toml"):
            steps += read_augmentations(Path(text))
        else:
            steps.append(parse_named(text))
    return steps


def _names(of: str) -> str:
    return ", ".join(name for name, _ in SETS[of])


def read_augmentations(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a TOML file as (name, options) pairs: a table ``[[augmentation]]`` for each, with ``name`` and its options.

    Raises
    ------
    PluginError: the file cannot be read, or has other content. The text names the file.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{path}: {error}") from None
    tables = document.get("augmentation")
    if set(document) != {"augmentation"} or not isinstance(tables, list):
        raise PluginError(f"{path}: the file must contain only tables [[augmentation]], one for each")
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise PluginError(f"{path}: augmentation {number} has no name")
    return [(table["name"], {key: value for key, value in table.items() if key != "name"}) for table in tables]
