"""Structured logs on stderr: JSON lines for machines, coloured text on a terminal.

The text of an unexpected exception is not logged, since it may have a path with a patient's name in it. Its type and
the place where it was raised are enough to fix it.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

from gliaflow_runtime.visible import visible


def configure_logging(level: str, form: str) -> None:
    """Set up structlog for this process. ``form``: ``auto``, ``json`` or ``text``."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderers: list[structlog.typing.Processor] = (
        [_visible, structlog.dev.ConsoleRenderer()] if text else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _trace,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # gliaflow reports connection errors itself


def where(error: BaseException) -> str:
    """The type of an exception and the place where it was raised, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"


def _trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog: replace ``exc_info`` by ``exception``: the tracebacks of the error and its causes, without texts."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    lines: list[str] = []
    while isinstance(error, BaseException):
        lines[:0] = [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}\n"]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if lines:
        event["exception"] = "".join(lines).rstrip()
    return event


def _visible(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog: make each text visible. The exception's lines, which have no texts of messages, stay lines."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = "\n".join(map(visible, value.split("\n"))) if name == "exception" else visible(value)
    return event


class _Stderr(io.TextIOBase):
    """The log's output. A full disk or a closed pipe must not stop the work."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()
