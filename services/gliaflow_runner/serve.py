"""One service as a process."""

from __future__ import annotations

import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import structlog
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime import metrics, tracing
from gliaflow_runtime.ending import SIGNALS, end_soon
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import private_folder
from gliaflow_runtime.folders import become_owner, existing, why_unreadable, why_unwritable
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import VERSION

from gliaflow_runner.running import RunningStages
from gliaflow_runner.services import PREPROCESSOR, RUN_PLUGINS, TRAINER

FOLDERS_S = 1.0  # a service that cannot use its folders checks again after so long

log = structlog.get_logger()


def serve(service: str, settings: Settings, killed: str = "") -> None:
    """Run one service until SIGTERM or SIGINT. Then it finishes the messages in work and ends.

    Whatever does not answer then, the broker or a store, it ends within seconds after the messages in work.

    Raises
    ------
    BundleError, DeviceError, BrokerError: the service cannot start, or the broker is lost for good.
    PluginError, UsageError: the trainer lacks torch, its profile or a plugin.
    """
    stages: RunningStages | None = None
    stop, started = threading.Event(), False

    def stop_once(*_: object) -> None:
        if stop.is_set():
            return
        stop.set()
        end_soon(0, lambda: stages is not None and stages.busy())
        if not started:
            sys.exit(0)  # no message is in work yet: leave the download or the connection

    for number in SIGNALS:
        signal.signal(number, stop_once)
    if service == TRAINER:
        if find_spec("torch") is None:
            raise UsageError("the trainer needs torch: pip install 'gliaflow[serve,train]'")
        prepare_folders(settings)
    if service in RUN_PLUGINS:
        for problem in load_registry().problems:
            log.warning("plugin not loaded", problem=str(problem))

    def ready() -> dict[str, bool]:
        folders = {"folders": not unusable_folders(service, settings)}
        return {**(stages.ready() if stages else {"bundle": False}), **folders}

    with serve_health(settings, ready):
        known: list[str] = []
        while (problems := unusable_folders(service, settings)) and not stop.wait(FOLDERS_S):
            for reason in problems if problems != known else []:
                log.error("cannot start, waits", service=service, reason=reason)
            known = problems
        stages = RunningStages([service], settings, deadline=True, killed=killed)
        trainer = None
        if service == TRAINER:
            from gliaflow_trainer.service import Trainer

            trainer = Trainer(stages.bundle, settings)
        metrics.BUILD.labels(VERSION, stages.bundle.id).set(1)
        tracing.start(service, stages.bundle.id)
        log.info("starting", service=service, bundle=stages.bundle.id, broker=settings.broker.split("@")[-1])
        with stages:
            started = True
            while not stop.wait(0.2) and not stages.failed.is_set():
                if trainer is not None:
                    trainer.poll()
            if trainer is not None:
                trainer.abandon()
        stages.check()


def prepare_folders(settings: Settings) -> None:
    """For the trainer: continue as the owner of ``bundles``, and close store and bundles if they are the default ones.

    Folders that the operator named keep their mode: other services may read them.
    """
    become_owner(existing(settings.bundles))
    for name, folder in {"store": settings.store, "bundles": settings.bundles}.items():
        if folder == settings.state / name:
            private_folder(folder)


def unusable_folders(service: str, settings: Settings) -> list[str]:
    """Why the trainer cannot write its folders, or the preprocessor cannot read its roots, with the remedy."""
    if service == TRAINER:
        problems = [why_unwritable(existing(folder), 0) for folder in (settings.store, settings.bundles)]
    elif service == PREPROCESSOR:
        problems = [why_unreadable(Path(root)) for root in settings.roots if "://" not in root]
    else:
        problems = []
    return [problem for problem in problems if problem]
