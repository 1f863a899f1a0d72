"""The network with random weights and the scans that the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import InputSpec

SIDE = 240  # pixels of a slice


def random_bundle(folder: Path, width: int) -> Bundle:
    """A bundle with the paper's shapes, a U-Net of some width, and random weights."""
    import torch
    from gliaflow_plugins.networks.cnn import CNNClassifier
    from gliaflow_plugins.networks.export import export
    from gliaflow_runtime.bundle.manifest import TAPS
    from gliaflow_trainer.unet import UNet, UNetOutput
    from torch import nn

    class Generator(nn.Module):
        def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return (z[:, :1, None, None] + label[:, None, None, None]).expand(-1, *shape).relu()

    class Critic(nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            level = features.mean(dim=(1, 2, 3))
            return level, torch.stack([1 - level, level], dim=1)

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    unet = UNet(width).eval()
    image = torch.randn(2, 1, 240, 240)
    with torch.no_grad():
        taps = {tap: list(getattr(unet(image), tap).shape[1:]) for tap in TAPS}
    shape = taps["enc5"]
    features = torch.rand(2, *shape)
    export(unet, [image], folder / "unet.onnx", ["image"], UNetOutput._fields)
    label = torch.tensor([0, 1])
    export(Generator(), [torch.randn(2, 8), label], folder / "generator-random.onnx", ["z", "label"], ["features"])
    export(Critic(), [features], folder / "critic-random.onnx", ["features"], ["source_logit", "class_logits"])
    classifier = CNNClassifier((shape[0], shape[1], shape[2]))
    export(classifier, [features], folder / "classifier.onnx", ["features"], ["logit"])
    manifest = {
        "name": f"random-{width}",
        "notice": "random weights",
        "input": InputSpec().model_dump(),
        "classes": ["HGG", "LGG"],
        "taps": taps,
        "tap": "enc5",
        "generator": "random",
        "generators": {"random": {"options": {}, "noise": 8}},
        "training": {},
        "metrics": {},
        "versions": {},
    }
    return write_manifest(folder, manifest)


def write_scans(folder: Path, scans: int, slices: int) -> list[Path]:
    """Write scans of 240×240 voxels at 1 mm with a head in every slice."""
    folder.mkdir()
    x, y = np.ogrid[-1:1:240j, -1:1:240j]
    paths = []
    for number in range(scans):
        rng = np.random.default_rng(number)
        scan = ((x / 0.6) ** 2 + (y / 0.75) ** 2 < 1)[..., None] * rng.integers(200, 400, (240, 240, slices))
        paths.append(folder / f"s{number}.nii.gz")
        nib.save(nib.Nifti1Image(scan.astype(np.int16), np.diag([1.0, 1, 3, 1])), paths[-1])
    return paths
