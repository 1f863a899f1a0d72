"""Checks of this machine: onnxruntime, device, bundle, plugins, folders."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gliaflow_plugins.registry import load_registry
from gliaflow_runner.services import PIPELINE, SERVICES
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import installed

from gliaflow_cli.checks.outcome import Wrong

NEEDS_BYTES = 2**30  # with less free disk, something is about to fail


def check_onnxruntime() -> str:
    """Whether exactly one onnxruntime is installed."""
    found = installed("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
    if len(found) > 1:
        raise Wrong(f"{' and '.join(found)} break each other in one environment: uninstall both, install one")
    if not found:
        raise Wrong("not installed: pip install 'gliaflow[serve]' or 'gliaflow[serve-gpu]'")
    return found[0]


def check_device(device: str) -> str:
    """Whether the device is available. The check of the bundle then runs its networks on it."""
    from gliaflow_runtime.inference import DeviceError, require_device

    mistakes = []
    try:
        provider = require_device(device)
    except DeviceError as error:
        mistakes.append(str(error))
    if device not in ("cuda", "tensorrt"):
        if mistakes:
            raise Wrong(*mistakes)
        return f"{device}, {provider}"
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        output = (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        mistakes.append(
            f"no GPU is seen (nvidia-smi: {error}): install NVIDIA's driver; in a container use deploy/compose.gpu.yml "
            "and the NVIDIA Container Toolkit on the host"
        )
    else:
        if "mismatch" in output.lower():
            mistakes.append(f"nvidia-smi: {output}: the driver was updated under the running kernel module; reboot")
        elif done.returncode or "GPU" not in output:
            mistakes.append(
                f"no GPU is seen (nvidia-smi: {output or done.returncode}): is the driver loaded, the GPU passed in?"
            )
    if mistakes:
        raise Wrong(*mistakes)
    return f"{device}, {output.splitlines()[0]}"


def check_bundle(settings: Settings) -> str:
    """Whether all digests match and all networks run."""
    bundle = load_bundle(settings.bundle, "", settings.bundle_sha256, settings.state, settings.bundles)
    for name in bundle.manifest.files:
        bundle.read(name)
    for service in PIPELINE:
        SERVICES[service](bundle, settings)  # loads and warms its networks on the device
    precision = "" if bundle.manifest.quantization is None else ", U-Net in int8"
    channels = bundle.manifest.input.channels
    reads = f", reads {', '.join(channels)}" if channels[1:] else ""
    return f"{bundle.id} on {settings.device}{precision}{reads}, all digests match and all networks run"


def check_plugins() -> str:
    """Whether all installed plugins load."""
    registry = load_registry()
    if registry.problems:
        raise Wrong(*(f"{problem} (fix or uninstall it; gliaflow plugins -v)" for problem in registry.problems))
    return f"generators {', '.join(registry.generators)}"


def check_folders(settings: Settings, inbox: Path | None, out: Path | None) -> str:
    """Whether the folders that gliaflow writes can be written and have room, and whether the inbox can be read."""
    mistakes = []
    for folder in filter(None, (settings.state, settings.store, out)):
        standing = _existing(folder)
        if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
            mistakes.append(f"{standing} cannot be written by this user: chown or chmod it, or name another folder")
        elif (free := shutil.disk_usage(standing).free) < NEEDS_BYTES:
            mistakes.append(f"{standing}: only {free / 2**20:.0f} MiB free on its disk: make room")
    if inbox is not None:
        mistakes += _unreadable(inbox)
    if mistakes:
        raise Wrong(*dict.fromkeys(mistakes))
    return f"can be written, {shutil.disk_usage(_existing(settings.state)).free / 2**30:.0f} GiB free"


def _existing(folder: Path) -> Path:
    """The folder, or the first of its parents that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def _unreadable(inbox: Path) -> Iterator[str]:
    """The containers read an inbox as a user of their own, so other users must have access."""
    if not inbox.is_dir():
        yield f"{inbox}: no such folder: make it"
        return
    for path in (inbox, *sorted(inbox.rglob("*"))):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            yield f"{path}: the containers' user cannot read it: chmod -R o+rX {inbox}"
            return
