"""Write the U-Net's transposed convolutions as convolutions, which onnxruntime computes with 8-bit integers.

A transposed convolution of stride 2 computes four pixels from each pixel and its neighbours. So does a convolution with
four times the channels, whose output ``DepthToSpace`` then arranges (Shi et al. 2016, "Is the deconvolution layer the
same as a convolutional layer?").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

DOUBLING = {
    "auto_pad": b"NOTSET",
    "kernel_shape": [3, 3],
    "strides": [2, 2],
    "pads": [1, 1, 1, 1],
    "output_padding": [1, 1],
    "dilations": [1, 1],
    "group": 1,
}
"""The only transposed convolution of the U-Net: it doubles height and width."""
PIXELS = {0: {0: 1}, 1: {0: 2, 1: 0}}
"""For the even (0) and odd (1) output pixels: the kernel's element of the input pixel (0) and of the next (1)."""


def without_transposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the transposed convolutions that double the size. Its results are the same but for rounding.

    Other transposed convolutions stay, and are computed in fp32.
    """
    graph = model.graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    nodes, added = [], []
    for number, node in enumerate(graph.node):
        if not _doubles(node, constants):
            nodes.append(node)
            continue
        weight, *bias = (constants[name] for name in node.input[1:])
        name = f"doubled_{number}"
        new = {f"{name}_weight": _kernel(weight)} | {f"{name}_bias": np.repeat(each, 4) for each in bias}
        added += [onnx.numpy_helper.from_array(array, key) for key, array in new.items()]
        nodes += [
            onnx.helper.make_node("Conv", [node.input[0], *new], [name], name, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
            onnx.helper.make_node("DepthToSpace", [name], node.output, f"{name}_pixels", blocksize=2, mode="CRD"),
        ]
    used = {name for node in nodes for name in node.input}
    kept = [each for each in (*graph.initializer, *added) if each.name in used]
    changed = onnx.helper.make_graph(nodes, graph.name, graph.input, graph.output, kept)
    return onnx.helper.make_model(changed, opset_imports=model.opset_import, ir_version=model.ir_version)


def _doubles(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> bool:
    if node.op_type != "ConvTranspose" or not all(name in constants for name in node.input[1:]):
        return False
    usual = {"auto_pad": b"NOTSET", "dilations": [1, 1], "group": 1, "output_padding": [0, 0]}
    shape = {"kernel_shape": list(constants[node.input[1]].shape[2:])}
    return usual | shape | {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute} == DOUBLING


def _kernel(weight: NDArray[Any]) -> NDArray[Any]:
    """The convolution's kernel [4 × out, in, 2, 2] from the transposed one's [in, out, 3, 3]."""
    channels_in, channels_out = weight.shape[:2]
    kernel = np.zeros((channels_out, 2, 2, channels_in, 2, 2), weight.dtype)
    for row, rows in PIXELS.items():
        for column, columns in PIXELS.items():
            for down, i in rows.items():
                for right, j in columns.items():
                    kernel[:, row, column, :, down, right] = weight[:, :, i, j].T
    return kernel.reshape(4 * channels_out, channels_in, 2, 2)
