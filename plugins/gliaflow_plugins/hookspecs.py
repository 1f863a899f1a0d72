"""The hooks of gliaflow, one for each kind of plugin. A hook calls ``register`` once for each thing that it adds."""

from __future__ import annotations

from collections.abc import Callable

import pluggy

from gliaflow_plugins.contracts import Augmentation, ClassifierVariant, GeneratorVariant, Reader, Step

GROUP = "gliaflow"  # the entry-point group, and pluggy's project name

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def register_augmentations(register: Callable[[Augmentation], None]) -> None:
    """Add augmentations of a slice and its mask (``contracts.Augmentation``)."""


@hookspec
def register_generators(register: Callable[[GeneratorVariant], None]) -> None:
    """Add generators of synthetic features (``contracts.GeneratorVariant``)."""


@hookspec
def register_classifiers(register: Callable[[ClassifierVariant], None]) -> None:
    """Add classifiers of features (``contracts.ClassifierVariant``)."""


@hookspec
def register_steps(register: Callable[[Step], None]) -> None:
    """Add preprocessing steps, which run before a scan is cut into slices (``contracts.Step``)."""


@hookspec
def register_readers(register: Callable[[Reader], None]) -> None:
    """Add readers of cohort folders (``contracts.Reader``)."""
