"""gliaflow for notebooks and programs: scans in; grades, masks and features out.

>>> import gliaflow
>>> with gliaflow.open() as flow:                     # the stages run in this process
...     answer = flow.submit("scan.nii.gz")
...     features = flow.generate("LGG", 100)
>>> features = gliaflow.extract("scan.nii.gz", tap="enc5")

``import gliaflow`` loads neither the stages nor onnxruntime nor an AMQP client. The first use does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gliaflow_runtime.broker.interface import BrokerError
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.version import VERSION as __version__

    from gliaflow.answer import Answer
    from gliaflow.features import ScanFeatures, extract
    from gliaflow.flow import Flow
    from gliaflow.opening import open
    from gliaflow.stage_settings import StageSettings

__all__ = [
    "Answer",
    "BrokerError",
    "Flow",
    "ScanFeatures",
    "StageSettings",
    "UsageError",
    "__version__",
    "extract",
    "open",
]

_HOMES = {
    "Answer": "gliaflow.answer",
    "BrokerError": "gliaflow_runtime.broker.interface",
    "Flow": "gliaflow.flow",
    "ScanFeatures": "gliaflow.features",
    "StageSettings": "gliaflow.stage_settings",
    "UsageError": "gliaflow_runtime.errors",
    "extract": "gliaflow.features",
    "open": "gliaflow.opening",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("gliaflow_runtime.version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'gliaflow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
