"""The preprocessing steps of a bundle. They are plugins, so their output is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import PluginError, Step, parse_options
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.manifest import StepSpec
from numpy.typing import NDArray
from pydantic import BaseModel

from gliaflow_preprocessor.intensities import fit_float32
from gliaflow_preprocessor.scaling import UnusableScan, fill_not_finite

WARM = 32  # voxels: each step is tried on a ball in a cube with this side


class Steps:
    """The steps of a bundle, one after another.

    Each step is run once at the start, so that missing software is reported then.

    Raises
    ------
    PluginError: a step is not installed, an option is unknown, or the step fails (a ValueError counts as a step that
        rejects the ball as a scan, and is ignored).
    """

    def __init__(self, specs: Sequence[StepSpec]) -> None:
        self._steps: list[tuple[Step, BaseModel]] = []
        if not specs:
            return
        registry = load_registry()
        for spec in specs:
            step = registry.step(spec.name)
            self._steps.append((step, parse_options(step, spec.options)))
        away = np.indices((WARM,) * 3) - (WARM - 1) / 2
        try:
            self(np.maximum(0, 100 - np.square(away).sum(axis=0)).astype(np.float32), np.eye(4))
        except UnusableScan as error:
            if not isinstance(error.__cause__, ValueError):  # the step only rejects the ball as a scan
                raise PluginError(str(error)) from None

    def __call__(self, volume: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
        """Apply the steps to a scan [i, j, k] with its affine [4, 4].

        Raises
        ------
        UnusableScan: a step raised an error, or returned another shape or values that are not finite.
        """
        if not self._steps:
            return volume
        with np.errstate(over="ignore", invalid="ignore"):  # fill_not_finite treats values that are not finite
            volume = fit_float32(volume).astype(np.float32)
        fill_not_finite(volume)
        for step, options in self._steps:
            try:
                result = np.asarray(step(volume, affine, options), dtype=np.float32)
            except PluginError:
                raise
            except Exception as error:  # third-party code on an untrusted scan: the next scan may succeed
                raise UnusableScan(f"step {step.name!r}: {type(error).__name__}: {error}") from error
            if result.shape != volume.shape or not np.isfinite(result).all():
                raise UnusableScan(f"step {step.name!r} made {list(result.shape)} from {list(volume.shape)}, or NaN")
            volume = result
        return volume
