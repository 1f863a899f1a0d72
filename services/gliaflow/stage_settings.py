"""The settings of the stages that ``gliaflow.open`` and ``gliaflow.extract`` run in this process."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, TypedDict


class StageSettings(TypedDict, total=False):
    """What ``gliaflow.open`` and ``gliaflow.extract`` take by name for the stages in this process.

    One that is not given, or is None, comes from ``GLIAFLOW_*`` in the environment, then from a settings file, as for
    the command.

    - ``bundle``: the model bundle, a folder or ``s3://bucket/path``. Default: the shipped demonstration, which is
      trained on drawings of scans.
    - ``device``: ``cpu``, ``cuda`` or another device of the installed onnxruntime.
    - ``threads``: onnxruntime's threads (0: one per core).
    """

    bundle: str | Path | None
    device: str | None
    threads: int | None


def as_flags(given: StageSettings, function: Callable[..., Any]) -> dict[str, Any]:
    """The settings that ``function`` was given, as flags for ``load_settings``.

    Raises
    ------
    TypeError: there is another name among them, which is no argument of ``function``.
    """
    known = tuple(StageSettings.__annotations__)
    if unknown := [name for name in given if name not in known]:
        *own, _ = signature(function).parameters
        raise TypeError(f"{function.__name__}() has no argument {unknown[0]!r}; it has {', '.join([*own, *known])}")
    bundle = given.get("bundle")
    return {**given, "bundle": bundle and str(bundle)}
