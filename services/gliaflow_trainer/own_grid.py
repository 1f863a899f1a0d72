"""Masks on the scan's own grid, on which Dice is measured."""

from __future__ import annotations

import hashlib

import numpy as np
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_preprocessor.masks import read_mask
from gliaflow_proto import restore
from numpy.typing import NDArray

from gliaflow_trainer.slices import CutScan


def on_own_grid(
    scan: CutScan, case: Case, found: NDArray[np.uint8]
) -> tuple[str, NDArray[np.bool_], NDArray[np.bool_]]:
    """The patient, the true mask [i, j, k] and the found mask [i, j, k] of a scan, as ``dice_by_patient`` takes them.

    Parameters
    ----------
    found: of the scan's slices [n, H, W].

    Raises
    ------
    PluginError: the mask's file is not the one that was cut.
    """
    mask = case.mask
    assert mask is not None
    data = mask.read()
    if hashlib.sha256(data).hexdigest() != scan.mask_file:
        raise PluginError(f"{mask}: not the file that was cut into slices. Is this another copy of the cohort?")
    return scan.patient, read_mask(data)[0] > 0, restore(found, scan.geometry) > 0
