"""The four services as processes on a RabbitMQ, as a deployment runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVICES = ("preprocessor", "extractor", "generator", "classifier")


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """An environment without the settings of whoever runs the benchmark. ``folder`` holds the state."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GLIAFLOW_")}
    chosen = {f"GLIAFLOW_{name.upper()}": value for name, value in settings.items()}
    return {**kept, **chosen, "XDG_STATE_HOME": str(folder / "state")}


@contextmanager
def stage_processes(broker: str, bundle: Path, folder: Path) -> Iterator[list[int]]:
    """Start the processes and give their ids; the first scan that is sent waits until they are ready.

    Their logs are in ``folder``.
    """
    processes = []
    try:
        for service in SERVICES:
            with (folder / f"{service}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "gliaflow_cli", "serve", service],
                        env=environment(folder, broker=broker, bundle=str(bundle)),
                        stdout=log,
                        stderr=log,
                    )
                )
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)
