"""A U-Net in 8-bit integers (onnxruntime's static quantisation, QDQ).

Convolutions, poolings and joins compute with integers: activations of 8 bits without sign, weights of 7 bits with a
scale for each output channel. With weights of 8 bits, sums overflow in the instruction with which x86 processors
without VNNI multiply (onnxruntime's documentation, "Quantize ONNX models"). With 7 they cannot. An activation's range
is that of its values on the calibration slices.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import BundleError
from numpy.typing import NDArray

from gliaflow_quantizer.upsampling import without_transposed

INTEGER_NODES = ("Conv", "MaxPool", "Concat", "DepthToSpace")
METHOD = {
    "format": "QDQ",
    "activations": "uint8, a scale for each tensor",
    "weights": "int8 of 7 bits, a scale for each output channel",
    "ranges": "minimum and maximum",
    "nodes": ", ".join(INTEGER_NODES),
}
"""As the manifest records it."""


def read_unet(bundle: Bundle) -> onnx.ModelProto:
    """The bundle's U-Net. Its network must have run (``UNetSession``), which checks the file.

    Raises
    ------
    BundleError: it is int8 already.
    """
    model = onnx.load_model_from_string(bundle.model("unet"))
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        made = bundle.manifest.quantization
        source = f" (from {made.source})" if made is not None else ""
        raise BundleError(f"{bundle.folder}: its U-Net is int8 already{source}: serve it, or name the bundle in fp32")
    return model


def quantized(model: onnx.ModelProto, images: Iterator[NDArray[Any]]) -> bytes:
    """The ONNX file of the U-Net in int8.

    Parameters
    ----------
    model: the U-Net in fp32.
    images: float32 [n, C, rows, columns], from which the ranges of activations are taken. They are read one by one:
        memory holds one, with all its activations.
    """
    # gliaflow_runtime.inference, which is loaded by now, has switched telemetry off
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process, quantize_static

    with tempfile.TemporaryDirectory(prefix="gliaflow-") as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(without_transposed(model), fp32, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            fp32,
            int8,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(INTEGER_NODES),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return int8.read_bytes()


class _Reader:
    """Hands the slices to onnxruntime, as its ``CalibrationDataReader`` does."""

    def __init__(self, images: Iterator[NDArray[Any]]) -> None:
        self._images = images

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next image; None: there is no more."""
        image = next(self._images, None)
        return None if image is None else {"image": image}
