"""Run a bundle's ONNX networks on the chosen device, with the graph cut to the outputs that are needed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import structlog
from numpy.typing import NDArray

from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import available_cores

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: no telemetry from a hospital's machine
import onnxruntime as ort

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'gliaflow[serve-gpu]'"
INSTALL = {  # by device
    "cuda": GPU,
    "tensorrt": f"{GPU} and NVIDIA's TensorRT",
    "openvino": "pip uninstall -y onnxruntime, then pip install onnxruntime-openvino",
    "dml": "pip uninstall -y onnxruntime, then pip install onnxruntime-directml (Windows)",
    "coreml": "it is in onnxruntime for macOS",
}
HEAVY = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}
"""The operators that take nearly all of a network's time."""

log = structlog.get_logger()


class DeviceError(UsageError):
    """The requested device is not available, or does not run the network."""


def devices() -> dict[str, str]:
    """The devices of the installed onnxruntime: its execution providers by name, as ``cuda``: CUDAExecutionProvider."""
    return {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}


def require_device(device: str) -> str:
    """The execution provider of a device. Raises DeviceError if onnxruntime has none of this name."""
    if device not in (known := devices()):
        remedy = INSTALL.get(device, "install the onnxruntime that has it (onnxruntime.ai, Execution Providers)")
        raise DeviceError(
            f"device {device}: this onnxruntime has only {', '.join(sorted(known))}. For {device}: {remedy}; "
            "or use --device cpu"
        )
    return known[device]


class Network:
    """One network of a bundle, ready to run.

    Parameters
    ----------
    name: the network: ``unet``, ``classifier``, ``generator-NAME`` or ``critic-NAME``.
    outputs: the outputs to compute. The graph is cut to them, since onnxruntime would compute all.
    device: one of ``devices()``.
    threads: of one run. 0: one for each core that this process may use (onnxruntime's own default ignores cgroups).

    Raises
    ------
    BundleError: the file is not a valid ONNX model, refers to other files, or lacks an output.
    DeviceError: onnxruntime cannot use the device, or would run the network's convolutions or matrix products on the
        CPU instead (it does both without an error).
    """

    def __init__(
        self, bundle: Bundle, name: str, outputs: Sequence[str], *, device: str = "cpu", threads: int = 0
    ) -> None:
        path = bundle.folder / f"{name}.onnx"
        self.outputs = list(outputs)
        provider = require_device(device)
        if provider in (CUDA, TENSORRT):
            ort.preload_dlls()  # CUDA and cuDNN, if they are installed as wheels
        model = _cut(bundle.model(name), self.outputs, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # stages share the cores
        options.add_session_config_entry("session.record_ep_graph_assignment_info", str(int(provider != CPU)))
        options.log_severity_level = 3
        self._path = path
        # TensorRT leaves to CUDA what it cannot run
        providers = [provider, CUDA] if provider == TENSORRT and CUDA in devices().values() else [provider]
        try:
            self._session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise BundleError(f"{path}: onnxruntime cannot load it: {str(error)[:500]}") from None
        if self._session.get_providers()[0] != provider:
            raise DeviceError(f"device {device}: onnxruntime fell back to {self._session.get_providers()[0]}")
        if provider != CPU:
            self._require_placed(device)

    def __call__(self, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Run the network; the outputs are in the order of ``outputs``."""
        results: list[NDArray[Any]] = self._session.run(self.outputs, inputs)
        return results

    def _require_placed(self, device: str) -> None:
        """Raise DeviceError if the network's heavy nodes, or all, are on the CPU; log the light ones that are.

        onnxruntime gives the nodes that a provider does not take to the CPU. Older versions of it do not say where each
        node is; they are believed.
        """
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return
        placed = self._session.get_provider_graph_assignment_info()
        on_cpu = Counter(node.op_type for part in placed if part.ep_name == CPU for node in part.get_nodes())
        if not on_cpu:
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in on_cpu.most_common(10))
        if HEAVY & on_cpu.keys() or all(part.ep_name == CPU for part in placed):
            raise DeviceError(f"device {device}: onnxruntime runs a part of {self._path.name} on the CPU: {kinds}")
        log.warning("nodes on the CPU", device=device, network=self._path.name, nodes=kinds)

    def warm(self, **shapes: tuple[int, ...]) -> None:
        """Run once on zeros, so that the first message is not slow and a wrong shape is reported at the start.

        Raises
        ------
        BundleError: the network has other inputs, or does not run on these.
        """
        kinds: Mapping[str, type] = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        inputs = {i.name: i.type for i in self._session.get_inputs()}
        if inputs.keys() != shapes.keys() or not {*inputs.values()} <= kinds.keys():
            raise BundleError(f"{self._path}: takes {inputs}, expected {', '.join(shapes)}")
        try:
            self(**{name: np.zeros(shapes[name], kinds[kind]) for name, kind in inputs.items()})
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise BundleError(f"{self._path}: does not run on {shapes}: {str(error)[:500]}") from None


def _cut(data: bytes, outputs: list[str], path: object) -> bytes:
    try:
        model = onnx.load_model_from_string(data)
        if _refers_to_files(model):
            raise BundleError(f"{path}: keeps weights in other files, which a bundle must not")
        have = [output.name for output in model.graph.output]
        if missing := set(outputs) - set(have):
            raise BundleError(f"{path}: has no output {', '.join(sorted(missing))}, only {', '.join(have)[:300]}")
        if sorted(have) == sorted(outputs):
            return data
        cut = onnx.utils.Extractor(model).extract_model([i.name for i in model.graph.input], outputs)
        cut_bytes: bytes = cut.SerializeToString()
        return cut_bytes
    except BundleError:
        raise
    except Exception as error:  # protobuf's DecodeError, onnx's checker errors
        raise BundleError(f"{path}: not a valid ONNX model: {type(error).__name__} {str(error)[:300]}") from None


def _refers_to_files(message: Any) -> bool:
    """Whether a tensor in a model (branches, functions and attributes included) has external data.

    External data are in a file that the model names or, for onnxruntime, at an address in memory.
    """
    if isinstance(message, onnx.TensorProto):
        return message.data_location != onnx.TensorProto.DEFAULT or len(message.external_data) > 0
    for field, value in message.ListFields():
        if field.message_type is not None:
            inner = [value] if hasattr(value, "ListFields") else value
            if any(_refers_to_files(one) for one in inner):
                return True
    return False
