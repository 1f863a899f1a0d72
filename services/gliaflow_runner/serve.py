"""One service as a process."""

from __future__ import annotations

import os
import signal
import threading
from importlib.util import find_spec
from pathlib import Path

import structlog
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime import metrics, tracing
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import VERSION

from gliaflow_runner.running import RunningStages
from gliaflow_runner.services import RUN_PLUGINS, TRAINER

log = structlog.get_logger()


def serve(service: str, settings: Settings) -> None:
    """Run one service until SIGTERM or SIGINT, which drain it.

    Raises
    ------
    BundleError, DeviceError, BrokerError: the service cannot start, or the broker is lost for good.
    PluginError, UsageError: the trainer lacks torch, its profile or a plugin.
    """
    if service == TRAINER:
        if find_spec("torch") is None:
            raise UsageError("the trainer needs torch: pip install 'gliaflow[serve,train]'")
        settings.bundles.mkdir(parents=True, exist_ok=True)
        become_owner(settings.bundles)
    if service in RUN_PLUGINS:
        for problem in load_registry().problems:
            log.warning("plugin not loaded", problem=str(problem))
    stop = stop_on_signals()
    stages: RunningStages | None = None

    def ready() -> dict[str, bool]:
        return stages.ready() if stages else {"bundle": False}

    with serve_health(settings, ready):
        stages = RunningStages([service], settings, deadline=True)
        trainer = None
        if service == TRAINER:
            from gliaflow_trainer.service import Trainer

            trainer = Trainer(stages.bundle, settings)
        metrics.BUILD.labels(VERSION, stages.bundle.id).set(1)
        tracing.start(service, stages.bundle.id)
        log.info("starting", service=service, bundle=stages.bundle.id, broker=settings.broker.split("@")[-1])
        with stages:
            while not stop.wait(0.2) and not stages.failed.is_set():
                if trainer is not None:
                    trainer.poll()
            if trainer is not None:
                trainer.abandon()
        stages.check()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set, instead of ending the process."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def become_owner(folder: Path) -> None:
    """If this process was started as root (in a container), continue as the folder's owner, who then owns the files."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
