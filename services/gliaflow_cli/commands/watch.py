"""``gliaflow watch``: a scan dropped into a folder is answered in another."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import structlog
from gliaflow.scans import find_inputs
from gliaflow.submission import Input
from gliaflow_proto import PredictionMessage
from gliaflow_runner.pipeline import become_owner, open_broker
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.settings import Settings

from gliaflow_cli.client.table import TABLE, Row, read_table, submit
from gliaflow_cli.commands.run import embedded

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
    changed: dict[str, int] = {}

    def answered(item: Input, row: Row, _: PredictionMessage | None) -> None:
        log.info("answered", status=row.status, seconds=row.seconds)
        _write_answer(out, item, row, changed[item.name])

    with (
        embedded(settings, []) as alive,
        open_broker(settings) as broker,
        serve_health(settings, lambda: {"broker": broker.connected}),
    ):
        while not stop.wait(POLL_S):
            new = _new(inbox, out)
            changed.clear()
            changed.update({item.name: time_ns for item, time_ns in new})
            if new:
                scans = [item for item, _ in new]
                known = read_table(out / TABLE)
                submit(
                    scans, out, broker, by_uri=False, timeout_s=TIMEOUT_S, known=known, alive=alive, answered=answered
                )


def _write_answer(out: Path, item: Input, row: Row, changed: int) -> None:
    """The answer to a scan: whole or not at all, and with the time of the scan as it was when it was sent.

    Not with ours, since the clock may be set back; nor with its time of now, since another may lie there meanwhile.
    """
    part = out / f".{item.name}.json.part"
    part.write_text(json.dumps(asdict(row), indent=2) + "\n", encoding="utf-8")
    os.utime(part, ns=(changed, changed))
    part.replace(out / f"{item.name}.json")


def _new(inbox: Path, out: Path) -> list[tuple[Input, int]]:
    """The scans that are to be answered, and when each was last changed."""
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
            fresh.append((item, changed))
    return fresh


def _changed(path: Path) -> int:
    """When a file was last written or moved into place."""
    found = path.stat()
    return max(found.st_mtime_ns, found.st_ctime_ns)
