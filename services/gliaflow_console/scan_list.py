"""The list of scans, with a version that counts its changes, and the scans of other clients in it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from gliaflow_proto import PredictionMessage, decode

from gliaflow_console.stored_scan import StoredScan

REMOVED = 10_000  # ids of removed scans that are remembered


@dataclass(frozen=True)
class Changes:
    """What changed in the list after a version: the scans, and the ids of those that were removed."""

    version: int
    rows: list[StoredScan]
    removed: list[str]


class ScanList:
    """The scans by id, the oldest first. ``lock``: hold it over several calls that belong together."""

    def __init__(self, scans: Iterable[StoredScan]) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self._scans: dict[str, StoredScan] = {}
        self._unanswered: dict[str, StoredScan] = {}
        self._versions: dict[str, int] = {}  # in which each scan changed last
        self._removed: OrderedDict[str, int] = OrderedDict()
        for scan in sorted(scans, key=lambda each: each.created):
            self.put(scan)

    def __len__(self) -> int:
        return len(self._scans)

    def get(self, id: str) -> StoredScan | None:
        """The scan with this id; None: there is none."""
        return self._scans.get(id)

    def all(self) -> list[StoredScan]:
        """All scans, the oldest first."""
        with self.lock:
            return list(self._scans.values())

    def unanswered(self) -> list[StoredScan]:
        """The scans that have not ended, the oldest first."""
        with self.lock:
            return list(self._unanswered.values())

    def put(self, scan: StoredScan) -> None:
        """Add a scan, or replace the one with its id."""
        with self.lock:
            if scan.ended:
                self._unanswered.pop(scan.id, None)
            else:
                self._unanswered[scan.id] = scan
            self.version += 1
            self._scans[scan.id] = scan
            self._versions[scan.id] = self.version

    def remove(self, id: str) -> None:
        """Remove the scan with this id."""
        with self.lock:
            del self._scans[id], self._versions[id]
            self._unanswered.pop(id, None)
            self.version += 1
            self._removed[id] = self.version
            while len(self._removed) > REMOVED:
                self._removed.popitem(last=False)

    def newest(self, limit: int, before: str = "") -> list[StoredScan]:
        """The newest scans, the newest first; with ``before``, those older than the scan with that id."""
        scans = self.all()[::-1]
        if before:
            number = next((number for number, scan in enumerate(scans) if scan.id == before), len(scans))
            scans = scans[number + 1 :]
        return scans[:limit]

    def changes(self, since: int) -> Changes:
        """What changed after version ``since``, the oldest scan first. With 0: all scans that are there."""
        with self.lock:
            rows = [scan for id, scan in self._scans.items() if self._versions[id] > since]
            return Changes(self.version, rows, [id for id, version in self._removed.items() if version > since])


class PackedAnswers:
    """Other clients' predictions as they came, at most ``size`` bytes: the oldest are dropped."""

    def __init__(self, size: int) -> None:
        self._size, self._bytes = size, 0
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, id: object) -> bool:
        return id in self._bodies

    def put(self, id: str, body: bytes) -> None:
        """Keep the prediction of the scan with this id, instead of the one it has."""
        self.drop(id)
        with self._lock:
            self._bodies[id] = body
            self._bytes += len(body)
            while self._bytes > self._size:
                self._bytes -= len(self._bodies.popitem(last=False)[1])

    def drop(self, id: str) -> None:
        """Drop the prediction of the scan with this id, if it has one."""
        with self._lock:
            self._bytes -= len(self._bodies.pop(id, b""))

    def message(self, id: str) -> PredictionMessage | None:
        """The prediction of the scan with this id; None: it is not kept."""
        body = self._bodies.get(id)
        return prediction(body) if body is not None else None


def prediction(body: bytes) -> PredictionMessage | None:
    """The prediction in a message, with its mask; None: it is another message."""
    message = decode(body)
    return message if isinstance(message, PredictionMessage) else None
