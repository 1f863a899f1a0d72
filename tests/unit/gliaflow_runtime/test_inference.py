"""Devices: the execution providers of the installed onnxruntime, asked for or failed."""

from __future__ import annotations

import onnxruntime
import pytest
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.inference import DeviceError, Network, devices

AZURE = "AzureExecutionProvider"


def test_a_device_is_named_after_its_execution_provider() -> None:
    assert devices()["cpu"] == "CPUExecutionProvider"
    assert set(devices().values()) == set(onnxruntime.get_available_providers())


@pytest.mark.parametrize(
    ("device", "remedy"),
    [("cuda", r"gliaflow\[serve-gpu\]"), ("openvino", "onnxruntime-openvino"), ("tpu", "Execution Providers")],
)
def test_a_missing_device_is_an_error_that_lists_what_there_is(device: str, remedy: str) -> None:
    if device in devices():
        pytest.skip(f"this machine has {device}")
    with pytest.raises(DeviceError, match=rf"^device {device}: .*has only .*cpu.*{remedy}.*--device cpu"):
        Network(load_bundle(None), "unet", ["mask"], device=device)


@pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason="onnxruntime without Azure")
def test_a_device_that_leaves_the_network_to_the_cpu_is_an_error() -> None:
    """The Azure provider takes no ordinary node: onnxruntime loads the network and computes it on the CPU."""
    with pytest.raises(DeviceError, match=r"^device azure: .*part of unet.onnx on the CPU: .*Conv"):
        Network(load_bundle(None), "unet", ["mask"], device="azure")
