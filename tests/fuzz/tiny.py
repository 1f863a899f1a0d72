"""A bundle of the smallest possible networks, with real files and digests. A run takes microseconds."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from onnx import TensorProto, helper, numpy_helper

SIZE = (8, 8)
TAP = (2, 4, 4)
FLOAT = TensorProto.FLOAT


def network(nodes: list[onnx.NodeProto], inputs: dict[str, list], outputs: dict[str, list], **weights) -> bytes:
    """An ONNX model. The shapes in ``inputs`` begin with the element type."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(k, v[0], v[1:]) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, FLOAT, v) for k, v in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


def networks() -> dict[str, bytes]:
    node = helper.make_node
    return {
        "unet": network(
            [
                node("Conv", ["image", "w"], ["tap"], strides=[2, 2], kernel_shape=[2, 2]),
                node("Sigmoid", ["image"], ["mask"]),
            ],
            {"image": [FLOAT, "n", 1, *SIZE]},
            {"tap": ["n", *TAP], "mask": ["n", 1, *SIZE]},
            w=np.ones((TAP[0], 1, 2, 2), np.float32),
        ),
        "classifier": network(
            [node("Flatten", ["features"], ["flat"]), node("MatMul", ["flat", "w"], ["logit"])],
            {"features": [FLOAT, "n", *TAP]},
            {"logit": ["n", 1]},
            w=np.full((np.prod(TAP), 1), 0.1, np.float32),
        ),
        "generator-g": network(
            [node("MatMul", ["z", "w"], ["flat"]), node("Reshape", ["flat", "shape"], ["features"]),
             node("Cast", ["label"], ["used"], to=FLOAT)],
            {"z": [FLOAT, "n", 3], "label": [TensorProto.INT64, "n"]},
            {"features": ["n", *TAP]},
            w=np.ones((3, np.prod(TAP)), np.float32),
            shape=np.array([-1, *TAP], np.int64),
        ),
        "critic-g": network(
            [node("Flatten", ["features"], ["flat"]), node("MatMul", ["flat", "w"], ["class_logits"])],
            {"features": [FLOAT, "n", *TAP]},
            {"class_logits": ["n", 2]},
            w=np.stack([np.ones(np.prod(TAP)), -np.ones(np.prod(TAP))], 1).astype(np.float32),
        ),
    }  # fmt: skip


def write_bundle(folder: Path, channels: tuple[str, ...] = ("flair",)) -> Bundle:
    for name, data in networks().items():
        (folder / f"{name}.onnx").write_bytes(data)
    manifest = {
        "name": "tiny",
        "notice": "a test",
        "input": {"size": SIZE, "spacing": (20.0, 20.0), "mean": 0.5, "std": 0.5, "channels": channels},
        "classes": ("HGG", "LGG"),
        "taps": {"tap": TAP},
        "tap": "tap",
        "generator": "g",
        "generators": {"g": {"options": {}, "noise": 3}},
        "training": {},
        "metrics": {},
        "versions": {},
    }
    return write_manifest(folder, manifest)


def scratch() -> Path:
    """A temporary folder, in memory if possible, which is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="gliaflow-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
