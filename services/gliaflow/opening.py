"""Opens a pipeline: connects to a broker, or starts the stages in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Unpack
from uuid import uuid4

import structlog
from gliaflow_plugins.contracts import PluginError
from gliaflow_proto.routing import STAGE_QUEUES
from gliaflow_runner.broker import open_broker
from gliaflow_runtime import tracing
from gliaflow_runtime.broker.connect import forget
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import Settings, load_settings

from gliaflow.flow import TIMEOUT_S, Flow
from gliaflow.sequences import wanted_sequences
from gliaflow.stage_settings import StageSettings, as_flags
from gliaflow.waiting import Waiting, warn


def open(
    broker: str | None = None,
    *,
    generator: str | None = None,
    sequences: Sequence[str] | None = None,
    timeout: float = TIMEOUT_S,
    waiting: Callable[[str], None] = warn,
    **settings: Unpack[StageSettings],
) -> Flow:
    """Open a pipeline.

    An argument that is not given comes from ``GLIAFLOW_*`` in the environment, then from a settings file, as for
    the command.

    Parameters
    ----------
    broker: ``memory://`` (the default) runs the stages in this process. ``amqp://user:password@host/vhost`` connects
        to a RabbitMQ on which stages run.
    generator: the bundle's generator that ``generate`` uses. Default: the bundle's own choice.
    sequences: the sequences to look for beside the FLAIR, and to send: ``t1``, ``t1ce``, ``t2``. Default: those of the
        bundle of stages in this process; none to stages on RabbitMQ.
    timeout: after so many seconds without any answer, open scans fail.
    waiting: called once whenever the pipeline begins to wait for something, with the reason and the remedy: RabbitMQ
        is away or refuses messages because of an alarm, a stage does not run, the stages are behind. Default: a Python
        warning.
    settings: ``bundle``, ``device`` and ``threads`` of stages in this process: ``gliaflow.StageSettings``. Stages on
        RabbitMQ have their own.

    Raises
    ------
    UsageError: a setting is wrong, or bundle, generator or device cannot be used. The text says what to do.
    BrokerError: the broker cannot be reached, or denies access.
    """
    asked = None if sequences is None else ",".join(sequences) or "none"
    flags = {"broker": broker, "generator": generator, "sequences": asked, **as_flags(settings, open)}
    return open_flow(load_settings(flags), timeout, waiting)


def open_flow(
    settings: Settings,
    timeout: float = TIMEOUT_S,
    waiting: Callable[[str], None] = warn,
    connect_timeout: float = 60,
    outage_timeout: float = 300,
) -> Flow:
    """``open`` with settings that are loaded already. ``connect_timeout``, ``outage_timeout``: as for ``connect``."""
    if not structlog.is_configured():
        level = settings.log_level if "log_level" in settings.model_fields_set else "error"
        configure_logging(level, settings.log_format)
    tracing.start("client")
    stages = None
    waits = Waiting(waiting)
    embedded = settings.broker.startswith("memory:")
    if embedded:  # a URL of its own, so that two flows in one process do not share their stages
        settings = settings.model_copy(update={"broker": f"memory://{uuid4().hex}"})
    with ExitStack() as resources:
        if embedded:
            resources.callback(forget, settings.broker)
        connection = resources.enter_context(
            open_broker(settings, connect_timeout=connect_timeout, outage_timeout=outage_timeout, waiting=waits.say)
        )
        if embedded:
            from gliaflow_runner.running import RunningStages
            from gliaflow_runner.services import PIPELINE

            for queue in STAGE_QUEUES:  # after the stages have stopped; scans of a loop that was left may still wait
                resources.callback(connection.delete, queue.name)
            try:
                stages = resources.enter_context(RunningStages(PIPELINE, settings))
            except PluginError as error:
                raise UsageError(str(error)) from error
        waits.over()
        flow = Flow(
            connection,
            stages=stages,
            generator=settings.generator,
            timeout=timeout,
            waiting=waits,
            sequences=wanted_sequences(settings, stages.bundle if stages else None),
        )
        flow._resources = resources.pop_all()
        return flow
