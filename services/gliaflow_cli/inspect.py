"""The commands that look and tell: plugins, doctor. Each returns the exit code."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from gliaflow_plugins.registry import load_registry
from gliaflow_proto.routing import STAGE_QUEUES
from gliaflow_runtime.bundle import BundleError, load_bundle
from gliaflow_runtime.inference import DeviceError
from gliaflow_runtime.settings import Settings
from rich.console import Console
from rich.table import Table

from gliaflow_cli.pipeline import SERVICES, open_broker


def show_plugins(console: Console, verbose: bool = False) -> int:
    """``gliaflow plugins``: 1 if one failed to load."""
    registry = load_registry()
    table = Table("kind", "name", "from", "options", box=None)
    for kind, found in (
        ("augmentation", registry.augmentations),
        ("generator", registry.generators),
        ("classifier", registry.classifiers),
        ("step", registry.steps),
        ("reader", registry.readers),
    ):
        for name, plugin in found.items():
            origin = registry.origins[kind, name]
            options = getattr(plugin, "options", None)
            told = ", ".join(f"{k}={f.default}" for k, f in options.model_fields.items()) if options else ""
            table.add_row(kind, name, f"{origin.distribution} {origin.version}", "" if verbose else told)
            if verbose:
                table.add_row("", "", origin.file, "")
                for option, about in (options.model_fields if options else {}).items():
                    table.add_row("", f"  {option}", str(about.default), about.description or "")
    console.print(table)
    for problem in registry.problems:
        console.print(f"failed  {problem}", style="red", soft_wrap=True)
    return 1 if registry.problems else 0


def run_doctor(settings: Settings, console: Console) -> int:
    """``gliaflow doctor``: 0 when nothing is wrong."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("onnxruntime", _onnxruntime),
        ("bundle", lambda: _bundle(settings)),
        ("plugins", _plugins),
        ("broker", lambda: _broker(settings)),
    ]
    wrong = 0
    for name, check in checks:
        try:
            console.print(f"ok     {name}: {check()}", soft_wrap=True)
        except Exception as error:  # whatever it is, the doctor tells it and looks on
            wrong += 1
            console.print(f"wrong  {name}: {error}", style="red", soft_wrap=True)
    return 1 if wrong else 0


def _onnxruntime() -> str:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(found) == 2:
        raise DeviceError(f"{' and '.join(found)} break each other in one environment: uninstall both, install one")
    if not found:
        raise DeviceError("not installed: pip install 'gliaflow[serve]' or 'gliaflow[serve-gpu]'")
    return found[0]


def _bundle(settings: Settings) -> str:
    bundle = load_bundle(settings.bundle, state=settings.state)
    for make in SERVICES.values():
        make(bundle, settings)  # loads and warms every network on the device that was asked for
    return f"{bundle.id} on {settings.device}, all networks run"


def _plugins() -> str:
    registry = load_registry()
    if registry.problems:
        raise BundleError("; ".join(map(str, registry.problems)))
    return f"generators {', '.join(registry.generators)}"


def _broker(settings: Settings) -> str:
    where = settings.broker.split("@")[-1]
    with open_broker(settings) as broker:
        for queue in STAGE_QUEUES:
            broker.declare(queue)
        waiting = {queue.name.removeprefix("gliaflow."): broker.depth(queue.name) for queue in STAGE_QUEUES}
        dead = sum(broker.depth(queue.dead) for queue in STAGE_QUEUES)
    busy = ", ".join(f"{name} {count}" for name, count in waiting.items() if count) or "none"
    return f"{where} answers; messages waiting: {busy}; dead letters: {dead}"
