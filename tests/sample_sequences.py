"""A bundle of several sequences, and scans whose lesion is in one of them alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
from gliaflow_runtime.bundle.load import demo_bundle
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sample_scans import good_scan

AFFINE = np.diag([5.0, 5, 6, 1])


def several_channels(folder: Path, channels: Sequence[str], *, sees: str, optional: Sequence[str] = ()) -> Path:
    """The shipped bundle as one of several ``channels``, whose U-Net sees only one of them, in the place of FLAIR."""
    shutil.copytree(demo_bundle(), folder)
    model = onnx.load(folder / "unet.onnx")
    (image,) = model.graph.input
    for node in model.graph.node:
        node.input[:] = ["seen" if name == image.name else name for name in node.input]
    model.graph.initializer.append(helper.make_tensor("which", TensorProto.INT64, [1], [list(channels).index(sees)]))
    model.graph.node.insert(0, helper.make_node("Gather", [image.name, "which"], ["seen"], axis=1))
    image.type.tensor_type.shape.dim[1].dim_value = len(channels)
    onnx.checker.check_model(model)
    (folder / "unet.onnx").write_bytes(model.SerializeToString())
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["unet.onnx"] = hashlib.sha256((folder / "unet.onnx").read_bytes()).hexdigest()
    manifest["input"] |= {"channels": list(channels), "optional": list(optional)}
    path.write_text(json.dumps(manifest))
    return folder


def lesion(seed: int = 0, folder: Path = Path()) -> NDArray[np.float32]:
    """A head with a lesion, that can be graded, as voxels."""
    path = good_scan(folder / f"lesion-{seed}.nii.gz", seed)
    voxels = np.asarray(nib.load(path).dataobj).astype(np.float32)
    path.unlink()
    return voxels


def without_lesion(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The head as a sequence shows it in which the lesion cannot be seen."""
    return np.minimum(voxels, 320.0)


def save(path: Path, voxels: NDArray[np.float32]) -> Path:
    """Write a NIfTI file, 3-D or 4-D, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path
