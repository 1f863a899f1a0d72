"""The steps that a bundle asks for before a scan is cut: plugins, so what they leave is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import PluginError, Step, parse_options
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.manifest import StepSpec
from numpy.typing import NDArray
from pydantic import BaseModel

from gliaflow_preprocessor.slices import UnusableScan

WARM = 32  # voxels: a ball in the middle of so large a cube is what a step is tried on


class Steps:
    """The steps of a bundle, one after another.

    Each is run once at the start, so that what lacks is told then.

    Raises
    ------
    PluginError: a step is not installed, an option is not known, or it fails on a ball, and not for what a ball is.
    """

    def __init__(self, wanted: Sequence[StepSpec]) -> None:
        self._steps: list[tuple[Step, BaseModel]] = []
        if not wanted:
            return
        registry = load_registry()
        for spec in wanted:
            step = registry.step(spec.name)
            self._steps.append((step, parse_options(step, spec.options)))
        away = np.indices((WARM,) * 3) - (WARM - 1) / 2
        try:
            self(np.maximum(0, 100 - np.square(away).sum(axis=0)).astype(np.float32), np.eye(4))
        except UnusableScan as error:
            if not isinstance(error.__cause__, ValueError):  # which only says that a ball is no head
                raise PluginError(str(error)) from None

    def __call__(self, volume: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
        """A scan [i, j, k] with its affine [4, 4] → what the steps make of it.

        Raises
        ------
        UnusableScan: a step raised something, or left another shape, or values that are not finite.
        """
        if not self._steps:
            return volume
        volume = volume.astype(np.float32)
        finite = np.isfinite(volume)
        if not finite.any():
            raise UnusableScan("it holds no finite number")
        volume[~finite] = volume[finite].min()
        for step, options in self._steps:
            try:
                found = np.asarray(step(volume, affine, options), dtype=np.float32)
            except PluginError:
                raise
            except Exception as error:  # anybody's code, on anybody's scan: the next scan may do
                raise UnusableScan(f"step {step.name!r}: {type(error).__name__}: {error}") from error
            if found.shape != volume.shape or not np.isfinite(found).all():
                raise UnusableScan(f"step {step.name!r} made {list(found.shape)} of {list(volume.shape)}, or NaN")
            volume = found
        return volume
