"""Preprocessing steps: what is done to a whole scan before it is cut into slices. The two that ship wrap other tools.

A bundle says which steps its networks were trained behind, and the preprocessor does the same; so a step that a bundle
names must be installed where the preprocessor runs.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import nibabel.affines
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gliaflow_plugins.contracts import Options, PluginError, Voxels


class N4Options(Options):
    """Of ``n4``."""

    shrink: int = Field(default=4, ge=1, le=16, description="the field is found on every so many voxels")
    iterations: int = Field(default=50, ge=1, le=1000, description="at most, on each of the levels")
    levels: int = Field(default=3, ge=1, le=6, description="of the field's resolution")


class N4:
    """Bias field correction, N4ITK (Tustison et al. 2010), by SimpleITK."""

    name = "n4"
    options = N4Options

    def __call__(self, volume: Voxels, affine: NDArray[np.float64], options: Any) -> Voxels:
        sitk = needed("SimpleITK", "n4")
        lowest = float(volume.min())
        image = sitk.GetImageFromArray(volume - lowest + 1)  # it takes logarithms
        image.SetSpacing([float(size) for size in reversed(nib.affines.voxel_sizes(affine))])
        small = sitk.Shrink(image, [min(options.shrink, max(1, size // 8)) for size in image.GetSize()])
        head = sitk.OtsuThreshold(small, 0, 1)
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([options.iterations] * options.levels)
        n4.Execute(small, head)
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
        found: Voxels = ((volume - lowest) / np.exp(field)).astype(np.float32)
        return found


class SkullStripOptions(Options):
    """Of ``skull-strip``."""

    tool: Literal["mri_synthstrip", "nipreps-synthstrip", "hd-bet"] = Field(
        default="mri_synthstrip", description="the program that does it, which must be on the PATH"
    )


class SkullStrip:
    """All but the brain made 0, by SynthStrip (Hoopes et al. 2022) or HD-BET (Isensee et al. 2019), as installed."""

    name = "skull-strip"
    options = SkullStripOptions

    def __call__(self, volume: Voxels, affine: NDArray[np.float64], options: Any) -> Voxels:
        program = shutil.which(options.tool)
        if program is None:
            raise PluginError(f"skull-strip: {options.tool} is not on the PATH; install it, or choose another tool")
        more = ["-device", "cpu", "--disable_tta"] if options.tool == "hd-bet" else []
        with tempfile.TemporaryDirectory() as folder:
            scan, left = Path(folder) / "scan.nii.gz", Path(folder) / "left.nii.gz"
            nib.save(nib.Nifti1Image(volume - volume.min(), affine), scan)
            done = subprocess.run(
                [program, "-i", str(scan), "-o", str(left), *more], capture_output=True, text=True, cwd=folder
            )
            if done.returncode or not left.exists():
                said = (done.stderr or done.stdout).strip().splitlines()
                raise RuntimeError(f"{options.tool} ended with {done.returncode}: {said[-1] if said else 'no word'}")
            brain = np.asarray(nib.load(left).dataobj, dtype=np.float32)
        if not brain.any():
            raise ValueError("no brain was found")
        return brain


def needed(module: str, extra: str) -> Any:
    """A module of an optional library. Raises PluginError: it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise PluginError(f"this needs {error.name}: pip install 'gliaflow[{extra}]'") from None
