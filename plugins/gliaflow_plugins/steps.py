"""The preprocessing steps that ship. They change a whole scan before it is cut into slices, and wrap other tools.

A bundle names the steps that its networks were trained behind, and the preprocessor applies the same steps. So a step
that a bundle names must be installed where the preprocessor runs.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gliaflow_plugins.contracts import Options, PluginError, Voxels
from gliaflow_plugins.nibabel_alone import nib, voxel_sizes


class N4Options(Options):
    """Options of ``n4``."""

    shrink: int = Field(default=4, ge=1, le=16, description="the bias field is estimated on every so many voxels")
    iterations: int = Field(default=50, ge=1, le=1000, description="iterations at most, on each level")
    levels: int = Field(default=3, ge=1, le=6, description="levels of the field's resolution")


class N4:
    """Bias field correction by N4ITK (Tustison et al. 2010), with SimpleITK."""

    name = "n4"
    options = N4Options

    def __call__(self, volume: Voxels, affine: NDArray[np.float64], options: Any) -> Voxels:
        sitk = needed("SimpleITK", "n4")
        lowest = float(volume.min())
        image = sitk.GetImageFromArray(volume - lowest + 1)  # N4 computes logarithms
        image.SetSpacing([float(size) for size in reversed(voxel_sizes(affine))])
        small = sitk.Shrink(image, [min(options.shrink, max(1, size // 8)) for size in image.GetSize()])
        head = sitk.OtsuThreshold(small, 0, 1)
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([options.iterations] * options.levels)
        n4.Execute(small, head)
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
        corrected: Voxels = ((volume - lowest) / np.exp(field)).astype(np.float32)
        return corrected


class SkullStripOptions(Options):
    """Options of ``skull-strip``."""

    tool: Literal["mri_synthstrip", "nipreps-synthstrip", "hd-bet"] = Field(
        default="mri_synthstrip", description="the program, which must be on the PATH"
    )


class SkullStrip:
    """Sets all voxels outside the brain to 0, by SynthStrip (Hoopes et al. 2022) or HD-BET (Isensee et al. 2019)."""

    name = "skull-strip"
    options = SkullStripOptions

    def __call__(self, volume: Voxels, affine: NDArray[np.float64], options: Any) -> Voxels:
        program = shutil.which(options.tool)
        if program is None:
            raise PluginError(f"skull-strip: {options.tool} is not on the PATH; install it, or choose another tool")
        more = ["-device", "cpu", "--disable_tta"] if options.tool == "hd-bet" else []
        with tempfile.TemporaryDirectory() as folder:
            scan, stripped = Path(folder) / "scan.nii.gz", Path(folder) / "brain.nii.gz"
            nib.save(nib.Nifti1Image(volume - volume.min(), affine), scan)
            done = subprocess.run(
                [program, "-i", str(scan), "-o", str(stripped), *more], capture_output=True, text=True, cwd=folder
            )
            if done.returncode or not stripped.exists():
                output = (done.stderr or done.stdout).strip().splitlines()
                last = output[-1] if output else "without output"
                raise RuntimeError(f"{options.tool} ended with {done.returncode}: {last}")
            brain = np.asarray(nib.load(stripped).dataobj, dtype=np.float32)
        if not brain.any():
            raise ValueError("no brain was found")
        return brain


def needed(module: str, extra: str) -> Any:
    """Import a module of an optional library. Raises PluginError if it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise PluginError(f"this needs {error.name}: pip install 'gliaflow[{extra}]'") from None
