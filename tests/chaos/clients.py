"""Clients that stream scans: real ``gliaflow submit`` processes. A killed client is started again with ``--resume``."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet import GLIAFLOW, clean, peak_mb
from gliaflow.scans import stem
from gliaflow_client.table import TABLE, ScanRow, read_table

BATCH = 20
MAX_RUNS = 40  # of one client: a scan without a row is lost then
MASK_MISSING = "mask not written"  # the disk was full when the answer arrived: the scan is submitted again


@dataclass
class Batch:
    """The scans of one client. They are copies with unique names of files that several batches share."""

    number: int
    folder: Path
    out: Path
    sources: dict[str, Path]  # by name of the scan

    def rows(self) -> dict[str, ScanRow]:
        return read_table(self.out / TABLE)

    def complete(self) -> bool:
        rows = self.rows()
        return rows.keys() == self.sources.keys() and not any(MASK_MISSING in row.error for row in rows.values())


class Clients:
    """Runs ``at_once`` clients at a time, each with a batch, until ``stop``.

    Parameters
    ----------
    sources: the scans.
    url: the address of the broker for the clients.
    timeout_s: as for ``gliaflow submit``.
    """

    def __init__(
        self, sources: Sequence[Path], inbox: Path, outbox: Path, url: str, *, timeout_s: float, at_once: int, seed: int
    ) -> None:
        self.batches: list[Batch] = []
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.kills = self.resumed = self.peak_mb = 0
        self._sources, self._inbox, self._outbox = sources, inbox, outbox
        self._url, self._timeout_s = url, timeout_s
        self._rng = random.Random(f"{seed}/clients")
        self._order = itertools.cycle(range(len(sources)))
        self._lock = threading.Lock()
        self._enough = threading.Event()
        self._wanted = 0
        self._ending = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(at_once)]

    def start(self, scans: int) -> None:
        """Start to stream at least ``scans`` scans, and more until ``stop``."""
        self._wanted = scans
        for thread in self._threads:
            thread.start()

    @property
    def sent(self) -> int:
        return sum(len(batch.sources) for batch in self.batches)

    def done(self) -> int:
        return sum(len(batch.rows()) for batch in list(self.batches))

    def stop(self) -> None:
        """Start no batch beyond the required number of scans. Returns when all batches are answered."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def over(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        """Kill the running clients, because the suite ends."""
        with self._lock:
            self._ending = True
            for client in self.running.values():
                client.kill()

    def kill(self, rng: random.Random, signal_number: int = signal.SIGKILL) -> str:
        """Send a signal to one of the running clients, and return its name."""
        with self._lock:
            number = rng.choice(sorted(self.running) or [-1])
            if number < 0:
                return "no client"
            self.running[number].send_signal(signal_number)
            self.kills += signal_number == signal.SIGKILL
        return f"client {number}"

    def _work(self) -> None:
        while batch := self._next():
            for _ in range(MAX_RUNS):
                if self._ending or batch.complete():
                    break
                self._run(batch)

    def _next(self) -> Batch | None:
        with self._lock:
            if self._ending or (self._enough.is_set() and self.sent >= self._wanted):
                return None
            number = len(self.batches)
            size = min(BATCH, self._wanted - self.sent) if self.sent < self._wanted else BATCH
            batch = Batch(number, self._inbox / f"{number:04d}", self._outbox / f"{number:04d}", {})
            batch.folder.mkdir(parents=True)
            for place in range(size):
                source = self._sources[next(self._order)]
                scan = batch.folder / f"b{number:04d}-{place:02d}-{source.name}"
                shutil.copyfile(source, scan)  # of links to one file, a client sends one
                batch.sources[stem(scan)] = source
            self.batches.append(batch)
            return batch

    def _run(self, batch: Batch) -> None:
        if batch.number % 4 == 3:
            by_uri = str(Path(__file__).with_name("by_uri.py"))
            command = [sys.executable, by_uri, batch.folder, batch.out, self._url, self._timeout_s]
        else:
            command = [*GLIAFLOW, "submit", batch.folder, "--out", batch.out, "--broker", self._url, "--resume"]
            command += ["--timeout", self._timeout_s]
        with (self._inbox / f"{batch.number:04d}.log").open("ab") as log:
            client = subprocess.Popen([str(part) for part in command], env=clean(), stdout=log, stderr=log)
        with self._lock:
            self.running[batch.number] = client
        while client.poll() is None:
            self.peak_mb = max(self.peak_mb, peak_mb(client.pid))
            time.sleep(0.25)
        with self._lock:
            del self.running[batch.number]
        if not batch.complete():
            self.resumed += 1
            time.sleep(1)
