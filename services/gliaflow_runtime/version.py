"""The version of gliaflow, and those of what it runs on."""

import platform
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("gliaflow")
except PackageNotFoundError:  # a checkout that is not installed
    VERSION = "unknown"


def installed(*names: str) -> list[str]:
    """Those of these distributions that are installed, each with its version."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def versions() -> str:
    """One line for a bug report: gliaflow, Python, the libraries that compute, and the platform."""
    runtime = installed("onnxruntime", "onnxruntime-gpu") or ["no onnxruntime"]
    libraries = ", ".join([*runtime, *installed("torch")])
    return f"gliaflow {VERSION}, Python {platform.python_version()}, {libraries}, {platform.platform()}"
