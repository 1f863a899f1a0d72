"""The whole pipeline beside what a user would write instead: a bare onnxruntime loop over the same slices.

    python tests/rabbitmq.py python bench/pipeline.py [--width 64] [--slices 24]

Both run in the same minutes on the same cores, in turn, several times; what counts is the ratio. The loop gets the
slices ready-made and keeps nothing: all that the pipeline does besides (reading, resampling, messages, grading,
putting masks back) is overhead by this measure. Random weights: the speed of a network does not depend on them.
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
    """A bundle of the paper's shapes at a width, with random weights."""
    import torch
    from gliaflow_plugins.networks.cnn import Classifier
    from gliaflow_plugins.networks.export import export
    from gliaflow_trainer.unet import TAPS, UNet, UNetOutput
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
    classifier = Classifier((shape[0], shape[1], shape[2]))
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
    """Scans of 240×240 at 1 mm, every slice with head in it."""
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
    """Slices a second of onnxruntime alone, tap and mask, on slices that are ready."""
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
    """Slices a second of ``gliaflow submit``, from the first scan sent to the last one answered."""
    command = [
        sys.executable,
        "-m",
        "gliaflow_cli",
        "submit",
        str(scans),
        "--out",
        str(out),
        "--bundle",
        str(bundle.folder),
    ]
    started = time.time()
    subprocess.run([*command, "--broker", broker], check=True, capture_output=True)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    # all scans are sent at once, so the slowest answer took as long as the whole; starting Python is not counted
    seconds = max(float(row["seconds"]) for row in rows)
    assert seconds <= time.time() - started
    return sum(int(row["slices"]) for row in rows) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of the U-Net (64: the paper's)")
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
    for name, found in rates.items():
        ratios = [rate / bare for rate, bare in zip(found, loop, strict=True)]
        result[name] = {"slices_per_second": statistics.median(found), "ratio": statistics.median(ratios)}
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{name:26} {statistics.median(found):8.2f} slices/s   ratio {statistics.median(ratios):.3f} ({spread})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
