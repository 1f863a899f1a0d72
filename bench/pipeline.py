"""Speed of the whole pipeline, compared with a bare onnxruntime loop over the same slices.

    python tests/rabbitmq.py python bench/pipeline.py [--width 64] [--slices 24]

Both run alternately on the same cores, several times, and their ratio is reported. The loop gets prepared slices and
discards its results, so all other work of the pipeline (reading, resampling, messages, grading, restoring masks)
counts as overhead. The weights are random, because the speed of a network does not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime as ort
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_preprocessor.slices import prepare
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_runtime.settings import available_cores

STAGES = ("preprocessor", "extractor", "generator", "classifier")


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


def bare_loop(bundle: Bundle, paths: list[Path], batch: int) -> float:
    """Slices per second of onnxruntime alone, tap and mask, on prepared slices."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = ort.InferenceSession(str(bundle.folder / "unet.onnx"), options, providers=["CPUExecutionProvider"])
    image = np.concatenate([prepare(*read_nifti(p.read_bytes()), bundle.manifest.input).image for p in paths])[:, None]
    session.run(["enc5", "mask"], {"image": image[:1]})
    started = time.perf_counter()
    for start in range(0, len(image), batch):
        session.run(["enc5", "mask"], {"image": image[start : start + batch]})
    return len(image) / (time.perf_counter() - started)


def pipeline(bundle: Bundle, scans: Path, out: Path, broker: str) -> float:
    """Slices per second of ``gliaflow submit``, from the first scan sent to the last one answered."""
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(out)]
    command += ["--bundle", str(bundle.folder)]
    started = time.time()
    subprocess.run([*command, "--broker", broker], check=True, capture_output=True)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    seconds = sum(float(row["seconds"]) for row in rows)  # starting Python is not counted
    assert seconds <= time.time() - started
    return sum(int(row["slices"]) for row in rows) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of the U-Net; the paper's is 64")
    parser.add_argument("--slices", type=int, default=24, help="of each scan")
    parser.add_argument("--scans", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="of the bare loop; the pipeline's default is 4")
    options = parser.parse_args()
    amqp = os.environ.get("GLIAFLOW_TEST_BROKER", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = random_bundle(folder / "bundle", options.width)
        paths = write_scans(folder / "scans", options.scans, options.slices)
        rates: dict[str, list[float]] = {"bare onnxruntime loop": [], "memory://": []}
        processes = []
        if amqp:
            rates["RabbitMQ, four processes"] = []
            environment = {**os.environ, "GLIAFLOW_BROKER": amqp, "GLIAFLOW_BUNDLE": str(bundle.folder)}
            for stage in STAGES:
                command = [sys.executable, "-m", "gliaflow_cli", "serve", stage]
                processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            time.sleep(10)
        try:
            for number in range(options.rounds):
                rates["bare onnxruntime loop"].append(bare_loop(bundle, paths, options.batch))
                rates["memory://"].append(pipeline(bundle, folder / "scans", folder / f"m{number}", "memory://"))
                if amqp:
                    out = folder / f"a{number}"
                    rates["RabbitMQ, four processes"].append(pipeline(bundle, folder / "scans", out, amqp))
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait()
    slices = options.scans * options.slices
    print(f"U-Net of width {options.width}, {slices} slices, {options.rounds} rounds, {available_cores()} cores")
    loop = rates["bare onnxruntime loop"]
    result = {}
    for name, speeds in rates.items():
        ratios = [rate / bare for rate, bare in zip(speeds, loop, strict=True)]
        result[name] = {"slices_per_second": statistics.median(speeds), "ratio": statistics.median(ratios)}
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{name:26} {statistics.median(speeds):8.2f} slices/s   ratio {statistics.median(ratios):.3f} ({spread})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
