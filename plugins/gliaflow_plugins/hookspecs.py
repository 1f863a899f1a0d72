"""The hooks of gliaflow: all a plugin can add. Each hook is given ``register`` and calls it once a thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gliaflow_plugins.contracts import Augmentation, ClassifierVariant, GeneratorVariant, Reader, Step

GROUP = "gliaflow"  # the entry-point group, and pluggy's project name

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def register_augmentations(register: Callable[[Augmentation], None]) -> None:
    """Add augmentations of a slice and its mask (see ``augmentations.Augmentation``)."""


@hookspec
def register_generators(register: Callable[[GeneratorVariant], None]) -> None:
    """Add generators of synthetic features (see ``generators.GeneratorVariant``)."""


@hookspec
def register_classifiers(register: Callable[[ClassifierVariant], None]) -> None:
    """Add classifiers of features (see ``classifiers.ClassifierVariant``)."""


@hookspec
def register_steps(register: Callable[[Step], None]) -> None:
    """Add steps of preprocessing, before a scan is cut into slices (see ``steps.Step``)."""


@hookspec
def register_readers(register: Callable[[Reader], None]) -> None:
    """Add readers of cohort folders (see ``readers.Reader``)."""
