"""The services and the stages that each runs; a pipeline of them in this process, or one as a process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.grader import Grader
from gliaflow_extractor.extractor import Extractor, UNet
from gliaflow_generator.generator import Balancer, Generator
from gliaflow_generator.synthesis import Synthesizer
from gliaflow_plugins.registry import load_registry
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_runtime import metrics, tracing
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import Stage, Worker
from gliaflow_runtime.version import VERSION
from gliaflow_store.recorder import Recorder
from gliaflow_trainer.service import Trainer, require_own

log = structlog.get_logger()

MakeStage = Callable[[Broker], Stage]  # a stage that needs the broker (uploads) gets its worker's own


def _preprocessor(bundle: Bundle, s: Settings) -> list[MakeStage]:
    return [lambda broker: Preprocessor(bundle, broker, s.roots)]


def _extractor(bundle: Bundle, s: Settings) -> list[MakeStage]:
    unet = UNet(bundle, batch=s.batch, device=s.device, threads=s.threads)
    return [lambda _: Extractor(bundle, unet)]


def _generator(bundle: Bundle, s: Settings) -> list[MakeStage]:
    synthesizer = Synthesizer(bundle, s.generator, device=s.device, threads=s.threads)
    made: list[MakeStage] = [lambda _: Generator(bundle, synthesizer)]
    if s.balance_share:
        made.append(lambda _: Balancer(bundle, synthesizer, share=s.balance_share, seed=s.seed))
    return made


def _classifier(bundle: Bundle, s: Settings) -> list[MakeStage]:
    grader = Grader(bundle, device=s.device, threads=s.threads)
    return [lambda _: grader, lambda _: Assembler(bundle, timeout_s=s.assembly_timeout_s)]


def _trainer(bundle: Bundle, s: Settings) -> list[MakeStage]:
    require_own(bundle, s.store)
    return [lambda _: Recorder(s.store, bundle.manifest.classes)]


def open_broker(settings: Settings, bundle: str = "", connect_timeout: float = 60) -> Broker:
    """A connection to the broker of the settings. Raises ValueError or BrokerError, as ``connect`` does.

    ``bundle``: the id of the bundle that is served on it, for whoever looks at the broker's connections.
    """
    access = None
    if not settings.broker.startswith("memory:"):
        from gliaflow_runtime.broker.credentials import Access  # so that memory:// does not load pika

        access = Access(settings.broker_password_file, settings.broker_ca, settings.broker_cert, settings.broker_key)
    return connect(
        settings.broker,
        access=access,
        connect_timeout=connect_timeout,
        dead_letters=settings.state / "dead-letters",
        about={"product": "gliaflow", "version": VERSION, "bundle": bundle},
    )


SERVICES: dict[str, Callable[[Bundle, Settings], list[MakeStage]]] = {
    "preprocessor": _preprocessor,
    "extractor": _extractor,
    "generator": _generator,
    "classifier": _classifier,
}
PREPROCESSOR = "preprocessor"
TRAINER = "trainer"  # apart: it learns, and a scan is answered without it


def become_owner(folder: Path) -> None:
    """Started as root (in a container), go on as the folder's owner, so that what is written belongs to the person."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


class Pipeline:
    """Services running in threads of this process, each stage on a broker connection of its own.

    Entering warms the bundle's networks and returns once every stage consumes; leaving drains them.

    Parameters
    ----------
    services: names from ``SERVICES``, or ``TRAINER``.
    settings: as for the command.
    deadline: whether a message that is in work for too long ends this process.

    Raises
    ------
    BundleError, DeviceError, BrokerError: it cannot start.
    """

    def __init__(self, services: Sequence[str], settings: Settings, *, deadline: bool = False) -> None:
        self.bundle = load_bundle(settings.bundle, settings.tap, settings.bundle_sha256, settings.state)
        self.failed = threading.Event()
        self.error: BaseException | None = None
        self._settings = settings
        self._deadline_s = settings.deadline_s if deadline else None
        known = {**SERVICES, TRAINER: _trainer}
        self._makers = [make for service in services for make in known[service](self.bundle, settings)]
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []

    def ready(self) -> dict[str, bool]:
        """For each stage, whether it can work now. The bundle is warm once a pipeline exists."""
        state = {worker.stage.name: worker.ready() for worker in list(self._workers)}
        for name, ready in state.items():
            metrics.READY.labels(name).set(ready)
        return state if len(state) == len(self._makers) else {**state, "started": False}

    def check(self) -> None:
        """Raise what ended a stage, if one has ended."""
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        for make in self._makers:
            broker = open_broker(self._settings, self.bundle.id)
            worker = Worker(
                make(broker),
                broker,
                prefetch=self._settings.prefetch,
                max_attempts=self._settings.max_attempts,
                deadline_s=self._deadline_s,
            )
            broker.declare(worker.stage.queue)  # all queues stand before the first message can need one
            self._workers.append(worker)
        for worker in self._workers:
            thread = threading.Thread(target=self._run, args=[worker], name=worker.stage.name, daemon=True)
            thread.start()
            self._threads.append(thread)
        while not all(self.ready().values()) and not self.failed.wait(0.02):
            pass
        if self.error is not None:
            self.__exit__(None, None, None)
        self.check()
        return self

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            self.error = error
            self.failed.set()
        finally:
            worker.consuming = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.broker.close()


def serve(service: str, settings: Settings) -> None:
    """Run one service as a process until SIGTERM or SIGINT, which drain it.

    Raises
    ------
    BundleError, DeviceError, BrokerError: it cannot start, or the broker was lost for good.
    PluginError, UsageError: the trainer is asked for what is not there.
    """
    if service == TRAINER and find_spec("torch") is None:
        raise UsageError("the trainer needs torch: pip install 'gliaflow[serve,train]'")
    if service == TRAINER:
        settings.bundles.mkdir(parents=True, exist_ok=True)
        become_owner(settings.bundles)
    if service in (PREPROCESSOR, TRAINER):  # the ones that run plugins' code
        for problem in load_registry().problems:
            log.warning("plugin not loaded", problem=str(problem))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pipeline: Pipeline | None = None

    def ready() -> dict[str, bool]:
        return pipeline.ready() if pipeline else {"bundle": False}

    with serve_health(settings, ready):
        pipeline = Pipeline([service], settings, deadline=True)
        trainer = Trainer(pipeline.bundle, settings) if service == TRAINER else None
        metrics.BUILD.labels(VERSION, pipeline.bundle.id).set(1)
        tracing.start(service, pipeline.bundle.id)
        log.info("starting", service=service, bundle=pipeline.bundle.id, broker=settings.broker.split("@")[-1])
        with pipeline:
            while not stop.wait(0.2) and not pipeline.failed.is_set():
                if trainer is not None:
                    trainer.look()
            if trainer is not None:
                trainer.abandon()
        pipeline.check()
