"""The work folder of a run: it belongs to one set of settings. And the versions that a result depends on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gliaflow_plugins.contracts import PluginError
from gliaflow_runtime.files import write_whole

LIBRARIES = ("gliaflow", "torch", "onnx", "onnxruntime", "numpy", "scipy", "nibabel", "scikit-learn")


def same_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` the work folder of the run with these settings, or check that it is.

    Raises
    ------
    PluginError: it holds the work of a run with other settings.
    """
    file = folder / "run.json"
    text = json.dumps(settings, indent=1, sort_keys=True, default=str)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
        return
    before = file.read_text(encoding="utf-8")
    if before != text:
        known, wanted = json.loads(before), json.loads(text)
        differ = sorted(key for key in {*known, *wanted} if known.get(key) != wanted.get(key))
        raise PluginError(
            f"{folder}: holds the work of a run that differs in {', '.join(differ)}; remove it, or name another --out"
        )


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    return {library: version(library) for library in LIBRARIES} | {"python": platform.python_version()}
