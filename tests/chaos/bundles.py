"""Bundles of tiny networks, since the suite tests messages and not networks.

Two bundles differ in the statistics of their input, so that a scan that met both would get a different answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from gliaflow_runtime.bundle.load import write_manifest
from onnx import TensorProto, helper, numpy_helper

SIDE, CHANNELS, TAP = 32, 4, [4, 16, 16]
NOISE = 4


def make(folder: Path, name: str, std: float) -> Path:
    """Write a bundle. Its mask is the bright part of the image, and the grade depends on the brightness."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.5, (CHANNELS, 1, 3, 3)).astype(np.float32)
    image, features = ("image", ["b", 1, SIDE, SIDE]), ("features", ["b", *TAP])
    _network(
        folder / "unet.onnx",
        [
            helper.make_node("Conv", ["image", "kernel"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["enc5"]),
            helper.make_node("Sub", ["image", "bright"], ["over"]),
            helper.make_node("Sigmoid", ["over"], ["mask"]),
        ],
        [image],
        [("enc5", ["b", *TAP]), ("mask", image[1])],
        {"kernel": kernel, "bright": np.float32([1.2])},
    )
    pooled = [
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
    ]
    _network(
        folder / "classifier.onnx",
        [
            *pooled,
            helper.make_node("MatMul", ["flat", "weights"], ["score"]),
            helper.make_node("Squeeze", ["score", "axis"], ["logit"]),
        ],
        [features],
        [("logit", ["b"])],
        {"weights": rng.normal(0, 2, (CHANNELS, 1)).astype(np.float32), "axis": np.int64([1])},
    )
    maps = np.zeros((2, *TAP), np.float32)
    maps[0, 0] = maps[1, 1] = 1
    _network(
        folder / "generator-tiny.onnx",
        [
            helper.make_node("Gather", ["maps", "label"], ["map"]),
            helper.make_node("ReduceMean", ["z"], ["level"], axes=[1]),
            helper.make_node("Unsqueeze", ["level", "axes"], ["noise"]),
            helper.make_node("Add", ["map", "noise"], ["features"]),
        ],
        [("z", ["b", NOISE]), ("label", ["b"])],
        [features],
        {"maps": maps, "axes": np.int64([2, 3])},
    )
    _network(
        folder / "critic-tiny.onnx",
        [
            *pooled,
            helper.make_node("MatMul", ["flat", "two"], ["class_logits"]),
            helper.make_node("MatMul", ["flat", "one"], ["source_logit"]),
        ],
        [features],
        [("class_logits", ["b", 2]), ("source_logit", ["b", 1])],
        {"two": np.eye(CHANNELS, 2, dtype=np.float32), "one": np.ones((CHANNELS, 1), np.float32)},
    )
    about = {
        "name": name,
        "notice": "Random networks. Not a clinical model.",
        "input": {"size": [SIDE, SIDE], "spacing": [6, 6], "std": std},
        "classes": ["HGG", "LGG"],
        "taps": {"enc5": TAP},
        "tap": "enc5",
        "generator": "tiny",
        "generators": {"tiny": {"options": {}, "noise": NOISE}},
        "training": {},
        "metrics": {},
        "versions": {},
    }
    write_manifest(folder, about)
    return folder


def _network(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, list[object]]],
    outputs: list[tuple[str, list[object]]],
    constants: dict[str, np.ndarray],
) -> None:
    def value(name: str, shape: list[object]) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name == "label" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, path.stem, [value(*i) for i in inputs], [value(*o) for o in outputs], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
