"""Faults strike while scans stream through real processes and a real RabbitMQ, and no scan may be lost.

    python tests/rabbitmq.py python tests/chaos --scans 1000 --faults 200 --seed 1

The seed determines the faults, their order and their targets. Their moments also depend on the machine. The exit code
is 1 if a scan was lost, was answered twice, or got another answer than in the quiet run. docs/faults.md describes what
gliaflow promises.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import scans as small_scans
from clients import Clients
from faults import DEFINITIONS, FAULTS, HEARTBEAT_S, World
from fleet import GLIAFLOW, SERVICES, Fleet, clean, peak_mb
from flood import Flood, flood
from gliaflow.scans import stem
from gliaflow_client.table import TABLE, read_table
from gliaflow_proto.routing import ALL_QUEUES
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.logs import configure_logging
from ledger import Answer, Ledger, Verdict, answer_of
from node import Node
from proxy import Proxy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import bundles

DISK = "64m"
STAGE_MB, NODE_MB, CLIENT_MB = 600, 4096, 400  # memory limits of one process
LENGTHS = {  # the queues' length limits
    policy["name"]: policy["definition"].get("max-length", 0)
    for policy in json.loads(DEFINITIONS.read_text())["policies"]
}
ENOUGH = 0.9  # this share of the faults must strike: the target of a fault may be gone
OVERSHOOT = 1.25  # messages that were in transit when a queue became full still enter it
console = Console(markup=False, highlight=False, width=160)


def main() -> int:
    options = _options()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    console.print(
        f"seed {options.seed}: {options.scans} scans, {options.faults} faults, {options.replicas} of each stage"
    )
    configure_logging("error", "json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # run the cleanup
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gliaflow-chaos-")))
        run = Run(options, work, stack)
        return run()


class Run:
    """One run of the suite: a quiet run that gives the right answers, the faults, and the table of results."""

    def __init__(self, options: argparse.Namespace, work: Path, stack: ExitStack) -> None:
        self.options, self.work, self.stack = options, work, stack
        self.peaks: Counter[str] = Counter()  # by queue: the most messages that waited
        self.struck: Counter[str] = Counter()
        self.over = threading.Event()
        self.done = 0  # scans that have a row
        self.node = Node(work)
        stack.callback(self.node.close)
        self.proxy = Proxy(self.node.address)
        parts = self.node.url.partition("@")
        self.url = f"{parts[0]}@127.0.0.1:{self.proxy.port}/?heartbeat={HEARTBEAT_S}"
        self.disk = _mount(work / "disk", stack)
        logs = self.disk or work / "disk"
        self.sources = small_scans.make(work / "scans", min(options.scans, options.distinct), options.seed)
        self.bundles = [bundles.make(work / f"bundle-{std}", f"tiny-{std}", std) for std in (1.0, 1.25)]
        settings = {
            "broker": self.url,
            "bundle": self.bundles[0],
            "threads": 1,
            "roots": json.dumps([str(work)]),
            "deadline_s": 20,
            "assembly_timeout_s": options.assembly_timeout,
            "log_format": "json",
        }
        self.ledger = Ledger(self.node.url)
        self.fleet = Fleet(options.replicas, logs, clean(**settings))
        stack.callback(self.fleet.kill)
        self.logs, self.outbox = logs, logs / "out"

    def __call__(self) -> int:
        clients = Clients(
            self.sources,
            self.work / "inbox",
            self.outbox,
            self.url,
            timeout_s=self.options.timeout,
            at_once=self.options.clients,
            seed=self.options.seed,
        )
        self.stack.callback(clients.end)
        world = World(self.fleet, clients, self.node, self.proxy, self.ledger, self.bundles, self.disk)
        names = _plan(self.options, world)
        quiet, quiet_rate = self.quiet(self.bundles if "swap-bundle" in names else self.bundles[:1])
        watcher = threading.Thread(target=self.watch, daemon=True)
        watcher.start()
        started = time.monotonic()
        clients.start(self.options.scans)
        self.strike(world, names, started)
        clients.stop()
        seconds = time.monotonic() - started
        flooded = flood(self.node.url, self.sources[0], self.options.flood) if self.options.flood else None
        self.settle()
        self.over.set()
        watcher.join()
        self.fleet.stop()
        verdict = self.ledger.judge(clients.batches, quiet)
        bounds = self.bounds(clients, flooded)
        self.report(clients, verdict, bounds, flooded, seconds, quiet_rate)
        return 1 if verdict.wrong or bounds else 0

    def quiet(self, bundles: list[Path]) -> tuple[dict[tuple[Path, str], Answer | str], float]:
        """The answer of each scan with each of the bundles, without faults, and the scans per second.

        The answers are by source and bundle id. The reasons of failures are by source and "".
        """
        answers: dict[tuple[Path, str], Answer | str] = {}
        rate = 0.0
        for number, bundle in enumerate(bundles):
            out = self.work / f"quiet-{number}"
            broker = self.node.url if number == 0 else "memory://"
            command = [*GLIAFLOW, "submit", self.sources[0].parent, "--out", out, "--broker", broker, "--timeout", 600]
            command += ["--threads", "1", "--bundle", bundle]
            warm_up = [*command[:3], self.sources[0], "--out", self.work / "warm", *command[6:]]
            started = time.monotonic()
            for each in (warm_up, command):
                started = time.monotonic()
                subprocess.run([str(a) for a in each], env=clean(state=self.work), capture_output=True, check=False)
            if number == 0:
                rate = len(self.sources) / (time.monotonic() - started)
            rows = read_table(out / TABLE)
            for source in self.sources:
                row = rows[stem(source)]
                key = (source, load_bundle(bundle).id if row.status != "failed" else "")
                answers[key] = answer_of(row, out / f"{row.scan}_seg.nii.gz") if row.status != "failed" else row.error
        console.print(f"quiet: {len(self.sources)} scans, {rate:.1f} a second")
        self.ledger.forget()
        return answers, rate

    def strike(self, world: World, names: list[str], started: float) -> None:
        """Inject the faults from several threads ("lanes"), so that they overlap, while scans stream."""
        todo = iter(enumerate(names))
        minutes = self.options.minutes
        lock = threading.Lock()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            scans = bar.add_task("scans", total=self.options.scans)
            faults = bar.add_task("faults", total=None if minutes else len(names))

            def lane() -> None:
                while True:
                    with lock:
                        number, name = next(todo, (-1, ""))
                    if number < 0 or (minutes and time.monotonic() - started > 60 * minutes):
                        return
                    while not minutes and self.done < number * self.options.scans / len(names):
                        time.sleep(0.1)  # spread the faults over the scans
                    rng = random.Random(f"{self.options.seed}/{number}")
                    time.sleep(rng.expovariate(1 / self.options.pause))
                    at = time.monotonic() - started
                    try:
                        target = FAULTS[name].strike(world, rng)
                    except Exception as error:
                        target = f"failed: {error!r}"[:150]
                    else:
                        self.struck[name] += 1
                    took = time.monotonic() - started - at
                    bar.console.print(f"{at:7.1f} s  {took:5.1f} s  {name:26} {target}", soft_wrap=True, markup=False)
                    bar.advance(faults)

            lanes = [threading.Thread(target=lane, daemon=True) for _ in range(self.options.lanes)]
            for each in lanes:
                each.start()
            while not world.clients.over():
                self.done = world.clients.done()
                bar.update(scans, completed=self.done, total=max(self.options.scans, world.clients.sent))
                if not any(each.is_alive() for each in lanes):
                    world.clients.stop()
                time.sleep(0.5)
            bar.update(scans, completed=world.clients.done())

    def settle(self) -> None:
        """Wait until the stages have finished the scans of killed clients.

        A scan whose parts were lost with a deleted queue takes as long as the assembler's timeout.
        """
        until = time.monotonic() + self.options.assembly_timeout + 30
        quiet_since = time.monotonic()
        quiet_s = self.options.assembly_timeout + 10 if self.struck["delete-queue"] else 3
        while time.monotonic() < until and time.monotonic() - quiet_since < quiet_s:
            if any(self.ledger.depth(queue.name) for queue in ALL_QUEUES):
                quiet_since = time.monotonic()
            time.sleep(0.5)

    def watch(self) -> None:
        """Record the peak length of each queue and the peak memory of the node."""
        while not self.over.wait(0.5):
            for queue in ALL_QUEUES:
                self.peaks[queue.name] = max(self.peaks[queue.name], self.ledger.depth(queue.name))
            if self.node.pid:
                self.fleet.peak_mb["RabbitMQ"] = max(self.fleet.peak_mb["RabbitMQ"], peak_mb(self.node.pid))

    def bounds(self, clients: Clients, flooded: Flood | None) -> list[str]:
        """The limits that were exceeded, as sentences."""
        limits = {**dict.fromkeys(SERVICES, STAGE_MB), "RabbitMQ": NODE_MB}
        exceeded = [f"{n} held {mb} MiB" for n, mb in self.fleet.peak_mb.items() if mb > limits[n]]
        exceeded += [
            f"{name} held {count} messages"
            for name, count in self.peaks.items()
            if LENGTHS.get(name) and count > OVERSHOOT * LENGTHS[name] + 8
        ]
        if clients.sent < self.options.scans:
            exceeded.append(f"only {clients.sent} scans were sent")
        if not self.options.minutes and self.struck.total() < ENOUGH * self.options.faults:
            exceeded.append(f"only {self.struck.total()} faults struck")
        if clients.peak_mb > CLIENT_MB:
            exceeded.append(f"a client held {clients.peak_mb} MiB")
        if flooded:
            wrong = {scan for scan in flooded.accepted if flooded.answers.get(scan) != 1}
            exceeded += [f"{len(wrong)} of {len(flooded.accepted)} flooded scans not answered once"] if wrong else []
            if flooded.offered < 10 * flooded.seconds * flooded.served_a_second:
                exceeded.append("the producer was not ten times too fast")
        return exceeded

    def report(
        self,
        clients: Clients,
        verdict: Verdict,
        bounds: list[str],
        flooded: Flood | None,
        seconds: float,
        quiet_rate: float,
    ) -> None:
        table = Table(title=f"seed {self.options.seed}", show_header=False, title_justify="left")

        def row(name: str, value: object) -> None:
            table.add_row(name, str(value))

        counts = Counter({kind: len(cases) for kind, cases in verdict.wrong.items()})
        row("faults", f"{self.struck.total()}: " + ", ".join(f"{n} {k}" for k, n in sorted(self.struck.items())))
        row("scans", clients.sent)
        row("answered as in the quiet run", verdict.ok - counts["different from the quiet run"])
        row("dead letters with a reason", verdict.dead.total())
        for reason, count in verdict.dead.most_common(12):
            row("", f"{count} × {reason}")
        for kind in ("lost", "double", "two different predictions", "different from the quiet run"):
            row(kind, counts.pop(kind, 0))
        for kind, count in counts.items():
            row(kind, count)
        row("the same answer again on the wire", verdict.redelivered)
        row("answered after the client sent the scan again", verdict.sent_again)
        row("dead letters, and copies of them", f"{verdict.letters}, {verdict.letter_copies}")
        row("invalid messages, each a dead letter", verdict.poison)
        row("sent again because they met two bundles", verdict.retried)
        row("clients killed, clients resumed", f"{clients.kills}, {clients.resumed}")
        row("processes that ended (exit code)", ", ".join(f"{n} × {e}" for e, n in sorted(self.fleet.ends.items())))
        row(
            "peak memory, MiB",
            ", ".join(f"{n} {mb}" for n, mb in self.fleet.peak_mb.items()) + f", client {clients.peak_mb}",
        )
        row(
            "peak queue length (its limit)",
            ", ".join(f"{n[9:]} {c} ({LENGTHS.get(n) or 'none'})" for n, c in self.peaks.items()),
        )
        row("scans a second, quiet and under faults", f"{quiet_rate:.1f}, {clients.sent / seconds:.1f}")
        if flooded:
            offered = flooded.offered / flooded.seconds
            row("flood", f"{offered:.0f} offered a second, {flooded.served_a_second:.1f} served: "
                f"{len(flooded.accepted)} accepted, {len(flooded.answers)} answered")  # fmt: skip
        for name in bounds:
            row("out of bounds", name)
        console.print(table)
        for kind, cases in verdict.wrong.items():
            for case in cases[:20]:
                console.print(f"{kind}: {case}", soft_wrap=True)
        if (verdict.wrong or bounds) and self.options.keep:
            shutil.copytree(self.logs, self.options.keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
            shutil.copytree(self.work / "inbox", self.options.keep / "inbox", dirs_exist_ok=True, symlinks=True)
        console.print("FAILED" if verdict.wrong or bounds else "nothing lost, nothing double")


def _plan(options: argparse.Namespace, world: World) -> list[str]:
    """The names of the faults in order: at least one of each available kind, and the rest drawn by weight."""
    kinds = options.only or [name for name, fault in FAULTS.items() if fault.quick or not options.quick]
    for name in [name for name in kinds if not FAULTS[name].needs(world)]:
        console.print(f"{name}: not available on this machine", style="yellow")
        kinds = [kind for kind in kinds if kind != name]
    rng = random.Random(options.seed)
    weights = [FAULTS[name].weight for name in kinds]
    count = 10_000 if options.minutes else options.faults
    names = rng.sample(kinds, len(kinds)) + rng.choices(kinds, weights, k=max(0, count - len(kinds)))
    names = names[:count]
    if options.minutes:
        return names
    rng.shuffle(names)
    return names


def _mount(folder: Path, stack: ExitStack) -> Path | None:
    """Mount a small file system at the folder. Returns None where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        return None
    stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=False)
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--scans", type=int, default=1000, help="the minimum; more are streamed until the last fault")
    add("--faults", type=int, default=200)
    add("--minutes", type=float, help="run for this time, with any number of scans and faults")
    add("--seed", type=int, help="for the choice of faults; printed, so that a run can be repeated")
    add("--only", action="append", choices=sorted(FAULTS), help="only faults of this kind; repeat for more")
    add("--quick", action="store_true", help="only faults that end within seconds")
    add("--replicas", type=int, default=2, help="number of processes of each stage")
    add("--clients", type=int, default=4, help="number of clients at a time")
    add("--distinct", type=int, default=60, help="number of different scans; each is sent many times under other names")
    add("--lanes", type=int, default=2, help="number of faults at a time")
    add("--pause", type=float, default=1.5, help="mean seconds between the faults of a lane")
    add("--timeout", type=float, default=600, help="seconds after which a client without any answer gives up")
    add("--assembly-timeout", type=float, default=120, help="GLIAFLOW_ASSEMBLY_TIMEOUT_S of the classifiers")
    add("--flood", type=float, default=20, help="seconds of a producer that is ten times too fast; 0: none")
    add("--keep", type=Path, help="a folder for the logs of a failed run")
    return parser.parse_args()
