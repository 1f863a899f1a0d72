"""Everything about an accelerator in one run of under eight minutes: inference, the whole pipeline, and training.

    python bench/gpu.py --out gpu.json              # a GPU: torch with CUDA, and gliaflow[serve-gpu] for onnxruntime
    python bench/gpu.py --small --device cpu        # the same code in seconds, on a CPU

It prints a table and writes JSON. Each section runs in a process of its own for at most its seconds (BOXES). A section
that fails, or takes longer, gives its reason, keeps its rows so far, and the next one goes on.

The share of the peak: floating-point operations of the U-Net's graph (two for each multiplication and addition) a
second, divided by those of a large matrix product in torch, at the same precision in the same run. "on the device"
leaves input and outputs in the device's memory; "with copies" is ``session.run``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gliaflow
import numpy as np
import onnx
import onnxruntime as ort
import torch
from boxed import Row, run
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline
from gliaflow_plugins.contracts import FitContext, Indices
from gliaflow_plugins.generators.acgan import ACGAN, PaperACGAN
from gliaflow_plugins.registry import load_registry
from gliaflow_proto import Geometry, Scan, SlicesMessage, decode, encode
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.inference import require_device
from gliaflow_runtime.version import versions
from gliaflow_trainer.profiles import PROFILES
from gliaflow_trainer.slices import CutScan, Slices
from gliaflow_trainer.unet_bundle import UNetRecipe
from gliaflow_trainer.unet_fit import Augment, UNetOptions, fit_unet
from numpy.typing import NDArray
from random_network import random_bundle, write_scans

TOTAL_S = 460
BOXES = {  # seconds
    "machine": 15,
    "bundle": 90,
    "peak": 25,
    "extractor": 110,
    "serving": 35,
    "pipeline": 55,
    "U-Net training": 65,
    "ACGAN training": 65,
}


@dataclass(frozen=True)
class Size:
    """What is measured: ``FULL`` is the paper's size; ``SMALL`` runs in seconds on a CPU."""

    width: int  # of the U-Net; 0: the shipped bundle
    batches: tuple[int, ...]
    matrix: int
    scans: int
    slices: int  # of a scan, and of the training set
    side: int  # of a training slice
    shape: tuple[int, int, int]  # of a feature
    kernels: int  # ngf and ndf
    seconds: float  # of one measurement


FULL = Size(64, (4, 16, 64), 8192, 6, 48, 240, (1024, 15, 15), 512, 5.0)
SMALL = Size(0, (2,), 256, 1, 4, 32, (8, 15, 15), 8, 0.01)


@dataclass(frozen=True)
class Setting:
    """The device, the sizes, and the folder that the sections share."""

    device: str
    size: Size
    folder: Path

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device in ("cuda", "tensorrt") else "cpu"

    def bundle(self) -> Bundle:
        return load_bundle(self.folder / "bundle" if self.size.width else None)


class _Enough(Exception):
    """Ends a fit that has been measured for long enough."""


def machine(setting: Setting) -> Iterator[Row]:
    yield "versions", versions(), ""
    yield "processor", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", ""
    if torch.cuda.is_available():
        of = torch.cuda.get_device_properties(0)
        yield "device", of.name, ""
        yield "memory", of.total_memory / 2**30, "GiB"
    yield "execution provider", require_device(setting.device), ""


def bundle(setting: Setting) -> Iterator[Row]:
    if setting.size.width:
        random_bundle(setting.folder / "bundle", setting.size.width)
    made = setting.bundle()
    yield "U-Net", made.id, ""
    yield "operations of a slice", flops(made) / 1e9, "GFLOP"


def peak(setting: Setting) -> Iterator[Row]:
    for precision in ("fp32", "tf32", "fp16"):
        if precision == "tf32" and setting.torch_device == "cpu":
            continue
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        kind = torch.float16 if precision == "fp16" else torch.float32
        n = setting.size.matrix
        a, b = (torch.randn(n, n, device=setting.torch_device).to(kind) for _ in range(2))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(4):
                torch.mm(a, b)
            if setting.torch_device == "cuda":
                torch.cuda.synchronize()

        yield f"{precision} matrix product", 4 * 2 * n**3 / seconds_of(multiply, setting) / 1e12, "TFLOP/s"


def extractor(setting: Setting) -> Iterator[Row]:
    made = setting.bundle()
    operations, outputs = flops(made), [made.tap, "mask"]
    rng = np.random.default_rng(0)
    for precision in ("fp32", "tf32", "fp16"):
        if precision == "tf32" and setting.device != "cuda":
            continue
        try:
            session = session_of(made, precision, setting.device)
        except Exception as error:
            yield f"{precision}: failed", str(error)[:200], ""
            continue
        for batch in setting.size.batches:
            image = rng.standard_normal((batch, 1, *made.manifest.input.size), np.float32)
            copied = seconds_of(partial(session.run, outputs, {"image": image}), setting)
            binding = session.io_binding()
            place = "cuda" if setting.device in ("cuda", "tensorrt") else "cpu"
            binding.bind_ortvalue_input("image", ort.OrtValue.ortvalue_from_numpy(image, place, 0))
            for output in outputs:
                binding.bind_output(output, place)
            inside = seconds_of(partial(session.run_with_iobinding, binding), setting)
            yield f"{precision}, batch {batch}, with copies", batch / copied, "slices/s"
            yield f"{precision}, batch {batch}, on the device", batch / inside, "slices/s"
            yield f"{precision}, batch {batch}, operations", operations * batch / inside / 1e12, "TFLOP/s"
        yield f"{precision}: memory", memory_gib(setting), "GiB"
        del session


def serving(setting: Setting) -> Iterator[Row]:
    """The stage as it runs: messages of a part each are decoded, computed and encoded."""
    made = setting.bundle()
    stage = Extractor(made, UNetSession(made, device=setting.device))
    count, size = made.slices_per_part(8 * 2**20), list(made.manifest.input.size)
    geometry = geometry_of(size, count)
    image = np.random.default_rng(0).standard_normal((count, 1, *size), np.float32).astype(np.float16)
    body = encode(SlicesMessage(id="s", scan=Scan(id="s"), geometry=geometry, image=image), "lz4")

    def one() -> None:
        for result in stage.handle(decode(body), Delivery("q", "slices", body)).publish:
            encode(result, "lz4")

    yield f"extractor stage, {count} slices a part", count / seconds_of(one, setting), "slices/s"
    yield "memory", memory_gib(setting), "GiB"


def pipeline(setting: Setting) -> Iterator[Row]:
    """``memory://`` in this process, from the first scan read to the last mask."""
    made = setting.bundle()
    paths = write_scans(setting.folder / "scans", setting.size.scans, setting.size.slices)
    with gliaflow.open(bundle=made.folder, device=setting.device) as flow:
        flow.submit(paths[0])  # warms the device for this batch
        started = time.perf_counter()
        answers = list(flow.submit_all(paths))
        took = time.perf_counter() - started
    if bad := [answer.reason for answer in answers if answer.status == "failed"]:
        raise RuntimeError(bad[0])
    yield f"{len(paths)} scans", sum(answer.slices or 0 for answer in answers) / took, "slices/s"
    yield "memory", memory_gib(setting), "GiB"


def unet_training(setting: Setting) -> Iterator[Row]:
    size = setting.size
    options = UNetRecipe("bench", PROFILES["paper"]).options
    if not size.width:
        options = UNetOptions(width=2, batch=2, epochs=100)
    rng = np.random.default_rng(0)
    image = rng.random((size.slices, 1, size.side, size.side)).astype(np.float16)
    mask = (rng.random(image[:, 0].shape) > 0.9).astype(np.uint8)
    geometry = geometry_of([size.side, size.side], size.slices)
    slices = Slices([CutScan("s", "s", "p", "HGG", geometry, image, mask, "")])
    paper = AugmentationPipeline(load_registry(), PROFILES["paper"].augmentations)
    ways: dict[str, Augment | None] = {"no augmentation": None, "Table 1 on one core": paper}
    for name, augment in ways.items():

        def fit(context: FitContext, augment: Augment | None = augment) -> None:
            none = np.zeros(0, np.int64)
            fit_unet(slices, np.arange(size.slices), none, options, context, augment=augment)

        yield f"width {options.width}, batch {options.batch}, {name}", size.slices * rate(fit, setting), "samples/s"
    yield "memory", peak_gib(setting), "GiB"


def acgan_training(setting: Setting) -> Iterator[Row]:
    size = setting.size
    features, steps = RandomFeatures(size.shape), 400 if size.width else 40
    for variant, more, per_report in (
        (PaperACGAN(), {"epochs": 10_000}, len(features)),
        (ACGAN(), {"steps": steps}, steps // 20 * 16),
    ):
        options = variant.options(ngf=size.kernels, ndf=size.kernels, **more)

        def fit(context: FitContext, variant: Any = variant, options: Any = options) -> None:
            variant.fit(features, options, context)

        name = f"{variant.name}, ndf {size.kernels}, {'×'.join(map(str, size.shape))}"
        yield name, per_report * rate(fit, setting), "samples/s"
        yield f"{variant.name}: memory", peak_gib(setting), "GiB"


class RandomFeatures:
    """Features ≥ 0 of two classes, as a ``FeatureSource``."""

    classes = ("HGG", "LGG")

    def __init__(self, shape: tuple[int, int, int], count: int = 64) -> None:
        self.shape = shape
        self.labels = np.arange(count, dtype=np.int64) % 2
        self._all = np.random.default_rng(0).standard_normal((count, *shape), np.float32).clip(0)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices) -> NDArray[np.float32]:
        return self._all[indices]


def geometry_of(size: list[int], count: int) -> Geometry:
    """Slices of voxels of 1 mm, as they lie in the scan."""
    return Geometry(
        affine=np.eye(4).ravel().tolist(),
        shape=[*size, count],
        orientation=[0, 1, 1, 1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=size,
        slices=list(range(count)),
    )


def rate(fit: Callable[[FitContext], None], setting: Setting) -> float:
    """Reports of progress a second, without the first, which warms. The fit is ended when it was long enough."""
    times: list[float] = []

    def progress(*_: object) -> None:
        times.append(time.perf_counter())
        if len(times) > 2 and times[-1] - times[0] > 2 * setting.size.seconds:
            raise _Enough

    with contextlib.suppress(_Enough):
        fit(FitContext(0, setting.torch_device, progress))
    return (len(times) - 1) / (times[-1] - times[0])


def seconds_of(call: Callable[[], object], setting: Setting) -> float:
    """Seconds of a call: the mean over ``size.seconds``, after two calls that warm."""
    call(), call()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < setting.size.seconds:
        call()
        count += 1
    return (time.perf_counter() - started) / count


def memory_gib(setting: Setting) -> float:
    """Memory in use: all of the GPU's, by whatever library; on a CPU, this process's largest."""
    if setting.torch_device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_gib(setting: Setting) -> float:
    """The most that torch has used since the last call; on a CPU, this process's largest."""
    if setting.torch_device != "cuda":
        return memory_gib(setting)
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return most


def session_of(made: Bundle, precision: str, device: str) -> ort.InferenceSession:
    """The U-Net as onnxruntime runs it at a precision; outputs and input stay float32."""
    model = onnx.load_model_from_string(made.model("unet"))
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    provider = require_device(device)
    settings = {"use_tf32": str(int(precision == "tf32"))} if device == "cuda" else {}
    if device in ("cuda", "tensorrt"):
        ort.preload_dlls()
    session = ort.InferenceSession(model.SerializeToString(), providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"onnxruntime fell back to {session.get_providers()[0]}")
    return session


def flops(made: Bundle) -> float:
    """Floating-point operations of the U-Net for one slice, of its convolutions alone, from the graph's shapes."""
    model = onnx.load_model_from_string(made.model("unet"))
    image = model.graph.input[0].type.tensor_type.shape.dim
    image[0].dim_value = 1
    for dimension, side in zip(image[2:], made.manifest.input.size, strict=True):
        dimension.dim_value = side
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    shape = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in values}
    weight = {w.name: list(w.dims) for w in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            of = weight[node.input[1]]  # each place of a Conv's output, or of a ConvTranspose's input, has its products
            place = shape[node.output[0] if node.op_type == "Conv" else node.input[0]]
            total += 2 * math.prod(place) * math.prod(of[1:])
    return float(total)


SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "machine": machine,
    "bundle": bundle,
    "peak": peak,
    "extractor": extractor,
    "serving": serving,
    "pipeline": pipeline,
    "U-Net training": unet_training,
    "ACGAN training": acgan_training,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="of onnxruntime: cuda, tensorrt, cpu, …; torch: cuda or cpu")
    parser.add_argument("--small", action="store_true", help="small sizes, seconds on a CPU: to test this program")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the figures as JSON")
    options = parser.parse_args()
    ends = time.monotonic() + TOTAL_S
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(options.device, SMALL if options.small else FULL, Path(name))
        for section, seconds in BOXES.items():
            rows, reason = run(partial(SECTIONS[section], setting), min(seconds, max(1.0, ends - time.monotonic())))
            found[section] = {"rows": rows, "failed": reason}
            print(section)
            for what, value, unit in rows:
                print(f"    {what:48} {value if isinstance(value, str) else format(value, '12.3f')} {unit}")
            if reason:
                print(f"    failed: {reason}")
            options.out.write_text(json.dumps(found, indent=2) + "\n")  # a run that is cut off has this much
    for precision, share in shares(found).items():
        print(f"{precision}: the U-Net reaches {share:.2f} of a matrix product's operations a second")


def shares(found: dict[str, Any]) -> dict[str, float]:
    """The U-Net's best operations a second over the matrix product's, for each precision that has both."""
    of = {what.split(" ")[0]: value for what, value, _ in found["peak"]["rows"]}
    best: dict[str, float] = {}
    for what, value, unit in found["extractor"]["rows"]:
        precision = what.split(",")[0]
        if unit == "TFLOP/s" and precision in of:
            best[precision] = max(best.get(precision, 0), value / of[precision])
    return best


if __name__ == "__main__":
    main()
