"""``gliaflow watch``: a scan dropped into a folder is answered in another."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import structlog
from gliaflow_proto import PredictionMessage
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.settings import Settings

from gliaflow_cli.client import Input
from gliaflow_cli.inputs import UsageError, find_inputs
from gliaflow_cli.pipeline import become_owner, open_broker
from gliaflow_cli.run import embedded
from gliaflow_cli.submit import TABLE, Row, read_table, submit

POLL_S = 1.0
SETTLED_S = 2.0  # a file that has not changed for so long has been copied whole
TIMEOUT_S = 1800.0

log = structlog.get_logger()


def watch(inbox: Path, out: Path, settings: Settings) -> None:
    """Answer each scan that appears in ``inbox`` with a mask, a ``<scan>.json`` and a row of ``predictions.csv``.

    A scan whose ``.json`` is newer than itself has been answered, so a restart answers nothing twice, and a scan
    that is dropped again under the same name is answered again. Returns on SIGTERM or SIGINT.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    out.mkdir(parents=True, exist_ok=True)
    become_owner(out)
    log.info("watching", inbox=str(inbox), out=str(out))
    with (
        embedded(settings, []) as alive,
        open_broker(settings) as broker,
        serve_health(settings, lambda: {"broker": broker.connected}),
    ):
        while not stop.wait(POLL_S):
            new = _new(inbox, out)
            if not new:
                continue
            known = read_table(out / TABLE)

            def answered(item: Input, row: Row, _: PredictionMessage | None) -> None:
                log.info("answered", status=row.status, seconds=row.seconds)
                _write_answer(out, item, row)

            submit(new, out, broker, by_uri=False, timeout_s=TIMEOUT_S, known=known, alive=alive, answered=answered)


def _write_answer(out: Path, item: Input, row: Row) -> None:
    """The answer to a scan, with the scan's time and not ours: the clock may be set back meanwhile."""
    answer = out / f"{item.name}.json"
    answer.write_text(json.dumps(asdict(row), indent=2) + "\n", encoding="utf-8")
    with suppress(OSError):  # the scan has gone
        os.utime(answer, ns=(_changed(item.path), _changed(item.path)))


def _new(inbox: Path, out: Path) -> list[Input]:
    try:
        found = find_inputs([str(inbox)])
    except UsageError:  # nothing there yet
        return []
    fresh = []
    for item in found:
        try:
            changed = _changed(item.path)
        except OSError:
            continue  # it went again
        answer = out / f"{item.name}.json"
        answered = answer.exists() and answer.stat().st_mtime_ns >= changed
        if not answered and abs(time.time_ns() - changed) > SETTLED_S * 1e9:  # abs: the clock may have been set back
            fresh.append(item)
    return fresh


def _changed(path: Path) -> int:
    """When a file was last written or moved into place."""
    found = path.stat()
    return max(found.st_mtime_ns, found.st_ctime_ns)
