"""What a console with open pages costs a pipeline on RabbitMQ.

    python tests/rabbitmq.py python bench/console.py [--scans 1000] [--rounds 3] [--stop-s 60] [--pages 3]

The same four stages answer the same scans of one client, alternately without a console and with one that pages in
Chromium show. In the midst of each round with a console, SIGSTOP stops it for a while. After the round, all pages must
show the scan that was answered last, and the same numbers as the HTTP API. Then SIGTERM ends the console while the
pages are open. Chromium runs on the same cores as the stages here, unlike the browser of an operator, so its CPU
seconds are printed apart. The scans are phantoms of a quarter of the resolution and twelve slices. Needs Linux,
playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gliaflow
import nibabel as nib
import numpy as np
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_phantoms.phantom import make_patient
from gliaflow_proto import CLASSES
from gliaflow_runtime.settings import available_cores
from playwright.sync_api import Page, sync_playwright

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from browser import SWITCHES, ConsoleProcess
from processes import Stage, as_user

STAGES = ("preprocessor", "extractor", "classifier", "generator")
FILES = 8  # different scans; each is sent many times, by other names
SLICES = 12
WARM_UP = 32  # scans before the first round
AGREE_S = 15  # the longest wait until the pages show the end of the round
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What a console and its pages took in one round.

    ``cpu_ms``, ``chromium_ms``: CPU milliseconds a scan. ``listed``: scans that the console lists at the end: it
    keeps 500, and loses answers while it is stopped. ``problem``: where the pages differ from the truth.
    """

    cpu_ms: float
    chromium_ms: float
    rss_mb: float
    end_s: float
    listed: int
    problem: str


def write_scans(folder: Path) -> list[Path]:
    """Write phantoms of a quarter of the resolution, cut to the slices around the tumour."""
    paths = []
    for number in range(FILES):
        phantom = make_patient(CLASSES[number % 2], np.random.default_rng([18, number]))
        scan, mask = (
            nib.as_closest_canonical(nib.Nifti1Image(voxels, phantom.affine))
            for voxels in (phantom.flair, phantom.mask)
        )
        first = max(0, int(np.asanyarray(mask.dataobj).sum(axis=(0, 1)).argmax()) - SLICES // 2)
        paths.append(folder / f"{number}.nii.gz")
        nib.save(scan.slicer[::4, ::4, first : first + SLICES], paths[-1])
    return paths


class Client:
    """Sends scans and counts the answers."""

    def __init__(self, flow: Flow, paths: list[Path]) -> None:
        self._flow, self._paths = flow, paths
        self.last = ""  # name of the scan that was answered last

    def round(self, count: int, midst: threading.Event | None = None) -> float:
        """Scans a second, from the first that is sent to the last that is answered. ``midst`` is set after a third."""
        items = [
            Input(self._paths[number % FILES], name := f"scan-{number:05}", name, relative=name)
            for number in range(count)
        ]
        started = time.perf_counter()
        for number, answer in enumerate(self._flow.submit_all(items)):
            assert answer.status != "failed", answer.reason
            self.last = answer.scan
            if midst and number == count // 3:
                midst.set()
        return count / (time.perf_counter() - started)


def with_console(client: Client, folder: Path, broker: str, options: argparse.Namespace) -> tuple[float, Cost]:
    """A round with a console and its pages."""
    management = os.environ.get("GLIAFLOW_TEST_MANAGEMENT", "").rpartition("@")[2]
    arguments = ("--management", f"http://{management}") if management else ()
    console = ConsoleProcess(folder, arguments, as_user("console", broker), broker)
    with ExitStack() as stack:
        console.start()
        assert console.process is not None
        process = console.process
        stack.callback(process.kill)
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=SWITCHES
        )
        stack.callback(browser.close)
        pages = [browser.new_context().new_page() for _ in range(options.pages)]
        for page in pages:
            page.goto(console.address)
            page.locator("#link-state[data-state=live]").wait_for()
        midst, resumed = threading.Event(), threading.Event()

        def stop_a_while() -> None:
            midst.wait()
            process.send_signal(signal.SIGSTOP)
            time.sleep(options.stop_s)
            process.send_signal(signal.SIGCONT)
            resumed.set()

        threading.Thread(target=stop_a_while, daemon=True).start()
        before = cpu_s(process.pid), chromium_cpu_s()
        rate = client.round(options.scans, midst)
        console_s, chromium_s = cpu_s(process.pid) - before[0], chromium_cpu_s() - before[1]
        if not resumed.is_set():
            print("the round ended before the console was resumed: take more --scans", file=sys.stderr)
        resumed.wait()
        problem = disagreement(console, pages, client.last)
        listed = int(console.get("api/scans?limit=1")["total"])
        memory = int(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        started = time.perf_counter()
        code = console.stop()
        end_s = time.perf_counter() - started
        assert code == 0, console.log
    per_scan = 1000 / options.scans
    return rate, Cost(console_s * per_scan, chromium_s * per_scan, memory, end_s, listed, problem)


def disagreement(console: ConsoleProcess, pages: list[Page], last: str) -> str:
    """What differs between pages, HTTP API and client, once all had time to settle; empty if nothing does."""
    deadline = time.monotonic() + AGREE_S
    while True:
        scans, status = console.get("api/scans?limit=1"), console.get("api/status")
        truth = {
            "newest": last,
            "total": scans["total"],
            "stages": {stage["name"]: [stage["waiting"], stage["dead"]] for stage in status["stages"]},
        }
        views = [{**truth, "newest": scans["scans"][0]["name"]}, *(shown(page) for page in pages)]
        differs = next((f"{view}, expected {truth}" for view in views if view != truth), "")
        if not differs or time.monotonic() > deadline:
            return differs
        time.sleep(0.5)


def shown(page: Page) -> dict[str, Any]:
    """What a page shows, as numbers."""
    stages = {}
    for card in page.locator(".stage").all():
        numbers = card.locator("dd").all_text_contents()
        stages[str(card.get_attribute("data-stage"))] = [int(numbers[0]), int(numbers[4])]
    return {
        "newest": page.locator("table.scans tbody tr a").first.text_content(),
        "total": int(re.findall(r"\d+", page.locator(".head:has(#scans-title) .muted").inner_text())[-1]),
        "stages": stages,
    }


def cpu_s(pid: int) -> float:
    """User and system CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def chromium_cpu_s() -> float:
    """CPU seconds of all Chromium processes that this process started."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, fields = stat.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid], names[pid] = int(fields.split()[1]), head.partition("(")[2]
    total = 0.0
    for pid, name in names.items():
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid() and name.startswith("chrom"):
            total += cpu_s(pid)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1000, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="without and with the console, each")
    parser.add_argument("--stop-s", type=float, default=60, help="how long the console is stopped in each round")
    parser.add_argument("--pages", type=int, default=3)
    options = parser.parse_args()
    broker = os.environ["GLIAFLOW_TEST_BROKER"]
    without: list[float] = []
    beside: list[float] = []
    costs: list[Cost] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = write_scans(folder)
        stages = [Stage(name, broker, folder, {}) for name in STAGES]
        for stage in stages:
            stack.callback(stage.stop)
        for stage in stages:
            stage.wait_ready()
        client = Client(stack.enter_context(gliaflow.open(broker)), paths)
        client.round(WARM_UP)
        for _ in range(options.rounds):
            without.append(client.round(options.scans))
            print(f"without a console {without[-1]:7.2f} scans/s", flush=True)
            rate, cost = with_console(client, folder, broker, options)
            beside.append(rate)
            costs.append(cost)
            print(
                f"with a console    {rate:7.2f} scans/s   ratio {rate / without[-1]:.3f}   CPU ms a scan: console "
                f"{cost.cpu_ms:.2f}, Chromium {cost.chromium_ms:.2f}   {cost.rss_mb:.0f} MB   "
                f"ended in {cost.end_s:.1f} s   {cost.listed} scans listed   {cost.problem or 'all numbers agree'}",
                flush=True,
            )
    ratios = [rate / alone for rate, alone in zip(beside, without, strict=True)]
    for text, values in (("console", [c.cpu_ms for c in costs]), ("Chromium", [c.chromium_ms for c in costs])):
        print(f"{text}: {statistics.median(values):.2f} CPU ms a scan ({min(values):.2f}–{max(values):.2f})")
    print(
        f"{options.scans} scans, {options.rounds} rounds, {options.pages} pages, stopped for {options.stop_s:g} s, "
        f"{available_cores()} cores: ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    )
    print(json.dumps({"without": without, "with": beside, "ratios": ratios, "costs": [asdict(c) for c in costs]}))


if __name__ == "__main__":
    main()
