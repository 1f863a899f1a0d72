"""What has changed, for streams of server-sent events. All streams share what one of them has read and serialised."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from gliaflow_console.context import Console

EVERY_S = 1.0  # between two readings
OTHERS = 9  # readings between two events of other clients' scans only: each event redraws the table in all browsers
COMMENT_S = 10.0  # between two signs of life, so that a client or proxy keeps a quiet stream open
NEWEST = 50  # scans at the start of a stream
FIRST = -1  # the version of a client that has nothing yet


class Events:
    """The source of all streams.

    Streams wake at the same moments. The first that wakes reads the store and the status; the others find the bytes.

    Parameters
    ----------
    read_status: the body of GET /api/status.
    """

    def __init__(self, console: Console, read_status: Callable[[], dict[str, Any]]) -> None:
        self.console, self._read_status = console, read_status
        self._reading = asyncio.Lock()
        self._moment = -1
        self._status = b""
        self._changes: dict[tuple[int, bool], tuple[int, bytes]] = {}  # by the arguments of _changes_since

    async def stream(self) -> AsyncIterator[bytes]:
        """Events for one client, until the console ends."""
        version, status, quiet_since, changed = FIRST, b"", time.monotonic(), -OTHERS
        while not self.console.stopping.is_set():
            async with self._reading:
                parts = []
                await self._read()
                if self._status != status:
                    parts.append(status := self._status)
                key = version, self._are_others_due(changed)
                if key not in self._changes:
                    self._changes[key] = await run_in_threadpool(self._changes_since, *key)
                version, event = self._changes[key]
                parts.append(event)
                changed = self._moment if event else changed
            if text := b"".join(parts):
                quiet_since = time.monotonic()
                yield text
            elif time.monotonic() - quiet_since >= COMMENT_S:
                quiet_since = time.monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(EVERY_S - time.monotonic() % EVERY_S)

    def _are_others_due(self, changed: int) -> bool:
        """Whether a stream gives other clients' scans now. ``changed``: the moment at which it gave scans last.

        Many of them come together, at the same moments in all streams. One after a pause comes at once.
        """
        return self._moment % OTHERS == 0 or self._moment - changed >= OTHERS

    async def _read(self) -> None:
        """Read the status anew, at most once in EVERY_S."""
        if self._moment != (moment := int(time.monotonic() / EVERY_S)):
            self._moment = moment
            self._changes.clear()
            self._status = event("status", await run_in_threadpool(self._read_status))

    def _changes_since(self, version: int, others: bool) -> tuple[int, bytes]:
        """The present version, and the event of what has changed since; no bytes if nothing has.

        ``others``: give other clients' scans also if no own scan has changed; otherwise they are left for later.

        ``version`` FIRST: the newest scans, which replace all that the client has.
        """
        store = self.console.store
        if version == store.version:
            return version, b""
        if version == FIRST:
            now, rows, removed = store.version, store.newest(NEWEST), []
        else:
            changes = store.changes(version)
            now, rows, removed = changes.version, changes.rows, changes.removed
            if rows and not others and not any(scan.own for scan in rows):
                return version, b""
        data = {"version": now, "rows": [scan.row() for scan in rows], "removed": removed, "total": len(store)}
        return now, event("scans", data | {"first": version == FIRST})


def event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
