"""The work folder of a run: it belongs to one set of settings. And the versions that a result depends on."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import lock, write_whole

LIBRARIES = ("gliaflow", "torch", "onnx", "onnxruntime", "numpy", "scipy", "nibabel", "scikit-learn")

SHOWN = 3  # of the differences between two runs


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
        differences = list(_differences(json.loads(before), json.loads(text)))
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise PluginError(
            f"{folder}: holds the work of another run: {', '.join(differences[:SHOWN])}{more}; remove it, or name "
            "another --out"
        )


@contextmanager
def only_command(folder: Path) -> Iterator[None]:
    """No other command uses the work folder during the block. The folder is created.

    Raises
    ------
    UsageError: another command uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".in-use").open("ab") as file:
        try:
            lock(file)
        except BlockingIOError:
            raise UsageError(
                f"{folder}: another gliaflow command uses this folder; wait for its end, or choose another --out"
            ) from None
        yield


def settings_of(cases: Iterable[Case], channels: Collection[str] = ()) -> dict[str, dict[str, str | None]]:
    """What a run with these sequences depends on of each scan, beside its files."""
    return {
        case.id: {"patient": case.patient, "grade": case.grade, "class": case.label, "channel": case.channel}
        | {f"channel of {name}": file.channel for name, file in case.sequences.items() if name in channels}
        for case in cases
    }


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """One text for each difference: ``scan P7 is new``, ``scan P1 grade was II and is now IV``, ``seed was 0 …``."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        if before != now:
            yield f"{name} was {_text(before)} and is now {_text(now)}"
        return
    for key in sorted({*before, *now}):
        each = f"{name} {key}".strip()
        if key not in before:
            yield f"{each} is new"
        elif key not in now:
            yield f"{each} is gone"
        else:
            yield from _differences(before[key], now[key], each)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None or value is False else json.dumps(value)


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    return {library: version(library) for library in LIBRARIES} | {"python": platform.python_version()}
