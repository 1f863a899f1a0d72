"""A Dask scheduler and workers on this machine, as an operator starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from distributed import Client
from gliaflow_evaluation.on_worker import TaskCancelled
from gliaflow_evaluation.progress import report

T = TypeVar("T")
DASK = "import sys; from dask.__main__ import main; sys.argv[0] = 'dask'; main()"
LOCAL = ("--host", "127.0.0.1", "--no-dashboard")


@dataclass
class DaskCluster:
    """``workers``: their processes by address."""

    address: str
    workers: dict[str, int]

    def worker_of(self, task: str) -> str:
        """The worker that has a task whose key begins so; waits for one."""
        with Client(self.address, set_as_default=False) as client:
            return wait_for(
                lambda: next(
                    (w for w, keys in client.processing().items() if any(key.startswith(task) for key in keys)), ""
                )
            )


@contextmanager
def dask_cluster(folder: Path, count: int) -> Iterator[DaskCluster]:
    """``count`` workers of one thread each. Their logs are in ``folder``."""
    processes: list[subprocess.Popen[bytes]] = []
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}  # they run functions of this module too

    def start(*arguments: str) -> None:
        with (folder / f"{len(processes)}.log").open("w") as log:
            command = [sys.executable, "-W", "ignore", "-c", DASK, *arguments, *LOCAL]
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))

    start("scheduler", "--port", "0")
    try:
        address = wait_for(lambda: re.findall(r"Scheduler at: +(tcp://\S+)", (folder / "0.log").read_text()))[0]
        for _ in range(count):
            start("worker", address, "--nthreads", "1", "--no-nanny")
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
            workers = client.run(os.getpid)
        yield DaskCluster(address, workers)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(found: Callable[[], T], seconds: float = 120) -> T:
    """What ``found`` returns once it is true."""
    until = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return result


def report_until_cancelled(file: Path) -> None:
    """A fit without an end. Writes what ended it to ``file``."""
    try:
        while True:
            report("fold 9", "epochs", 1, None)
            time.sleep(0.02)
    except BaseException as ended:
        file.write_text(type(ended).__name__)
        raise


def cancelled_at_first(file: Path, times: int) -> str:
    """A fit whose worker is stopped, so many times. ``file`` counts them."""
    with file.open("a") as runs:
        runs.write(".")
    if file.stat().st_size <= times:
        raise TaskCancelled("fit")
    return "done"
