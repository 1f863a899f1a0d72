"""OpenTelemetry traces through the queues: a span for each message in a stage; the message has the parent's id.

Tracing is off, and OpenTelemetry not imported, unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` names a receiver. OpenTelemetry reads the other ``OTEL_*`` variables. Spans have
no patient data and no error text, since that may name a file; the dead letter has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from gliaflow_proto import Message

from gliaflow_runtime.version import VERSION

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = structlog.get_logger()
_tracer: Any = None  # None: off


def start(service: str, bundle: str = "") -> None:
    """Start tracing in this process if the environment names a receiver. ``service``: the stage or command."""
    global _tracer
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or _tracer is not None or not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces: install gliaflow[otel]", missing=error.name)
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or f"gliaflow-{service}"
    about = {"service.name": name, "service.version": VERSION, "gliaflow.bundle": bundle}
    provider = TracerProvider(resource=Resource.create(about))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # sends the rest when the process ends
    _tracer = provider.get_tracer("gliaflow", VERSION)


@contextmanager
def span(doing: str, message: Message, *, kind: str = "CONSUMER", attempt: int = 0) -> Iterator[str]:
    """A span for the work on ``message``; yields the traceparent for the messages that result from it.

    Without tracing, that is the message's own. An exception marks the span as failed and propagates.
    """
    if _tracer is None:
        yield message.trace
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = TraceContextTextMapPropagator()
    with _tracer.start_as_current_span(
        f"{doing} {message.kind}",
        context=carrier.extract({"traceparent": message.trace}),
        kind=SpanKind[kind],
        attributes=_attributes(doing, message, attempt),
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        headers: dict[str, str] = {}
        carrier.inject(headers)
        try:
            yield headers.get("traceparent", message.trace)
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(Status(StatusCode.ERROR))
            raise


def _attributes(doing: str, message: Message, attempt: int) -> dict[str, str | int]:
    about: dict[str, str | int] = {
        "gliaflow.stage": doing,
        "gliaflow.kind": message.kind,
        "gliaflow.part": message.part[0],
        "gliaflow.parts": message.part[1],
        "gliaflow.attempt": attempt + 1,
    }
    geometry = getattr(message, "geometry", None)
    slices = len(geometry.slices) if geometry else getattr(message, "slices", None)
    if slices is not None:
        about["gliaflow.slices"] = slices
    return about
