"""The trainer's image is built and fed, its bundle is served, and it is a Dask worker. Run by ``make test-compose``.

Where torch for CPUs cannot be had from its own index, ``GLIAFLOW_TORCH_INDEX=`` (empty) takes torch from the same index
as all else. PyPI's includes CUDA: the build then takes several GB of disk and, on a slow line, many minutes.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose.stack import PORT, Stack, clone
from gliaflow_phantoms.cohort import write_cohort
from gliaflow_runtime.bundle.load import Bundle
from sample_scans import good_scan

pytestmark = [pytest.mark.compose, pytest.mark.timeout(5400)]
AMQP = f"localhost:{PORT + 51}/"
SCANS = 8
BUILD_S = 3600.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(
        clone(tmp_path_factory),
        COMPOSE_PROJECT_NAME=f"gliaflow-trainer-test-{PORT}",
        GLIAFLOW_CONSOLE_PORT=str(PORT + 50),
        GLIAFLOW_AMQP_PORT=str(PORT + 51),
        GLIAFLOW_MANAGEMENT_PORT=str(PORT + 52),
        GLIAFLOW_TRAIN_AFTER_S="10",
        GLIAFLOW_TRAIN_OPTIONS="steps=20,ngf=8,ndf=8",
        GLIAFLOW_USER=f"{os.getuid()}:{os.getgid()}",
    )
    try:
        stack.compose("--profile", "train", "up", "--build", "--wait", "--detach", seconds=BUILD_S)
        yield stack
    finally:
        stack.compose("--profile", "*", "down", "--volumes", "--timeout", "20")


@pytest.fixture(scope="module")
def cohort(stack: Stack) -> Path:
    """Four phantoms of each class, where the containers of Dask find them too."""
    folder = stack.folder / "cohorts" / "phantoms"
    write_cohort(folder, SCANS, seed=5, hgg_share=0.5)
    return folder


def submit(scans: Path, out: Path, user: str, *more: str) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(out)]
    command += ["--broker", f"amqp://{user}@{AMQP}", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_labelled_scans_become_a_bundle_that_the_stages_serve(stack: Stack, cohort: Path, tmp_path: Path) -> None:
    password = (stack.folder / "secrets/annotator/password").read_text().strip()
    answered = submit(cohort, tmp_path / "labelled", f"annotator:{password}", "--labelled")
    assert [row["status"] for row in answered] == ["ok"] * SCANS
    new = stack.folder / "bundles" / "gliaflow-demo-1"
    until = time.monotonic() + 1800
    while not (new / "manifest.json").exists():
        assert time.monotonic() < until, stack.compose("logs", "trainer")
        time.sleep(2)
    bundle = Bundle(new)
    assert bundle.manifest.training["profile"]
    assert new.stat().st_uid == (stack.folder / "bundles").stat().st_uid, "it belongs to the folder's owner"

    stack.compose("up", "--wait", "--detach", GLIAFLOW_BUNDLE="gliaflow-demo-1")
    (tmp_path / "scans").mkdir()
    good_scan(tmp_path / "scans/new.nii.gz")
    (row,) = submit(tmp_path / "scans", tmp_path / "served", "gliaflow:gliaflow")
    assert (row["status"], row["bundle"]) == ("ok", bundle.id)


def test_an_evaluation_runs_on_two_workers_of_the_image(stack: Stack, cohort: Path) -> None:
    """The workers reach nobody but their scheduler, and write into reports/ as its owner."""
    stack.compose(
        *("--profile", "dask", "up", "--build", "--wait", "--detach", "--scale", "dask-worker=2", "dask-worker"),
        seconds=BUILD_S,
    )
    flags = ["--out", "/reports/phantoms", "--unet", "demo", "--folds", "2", "--seeds", "1", "--counts", "20"]
    flags += ["--generators", "gaussian", "--no-shuffle-labels"]
    printed = stack.compose("run", "--rm", "-T", "evaluate", f"/cohorts/{cohort.name}", *flags, seconds=1800)
    assert "/reports/phantoms/report.html" in printed
    metrics = json.loads((stack.folder / "reports/phantoms/metrics.json").read_text())
    assert (metrics["made"]["generators"], metrics["made"]["threads"]) == (["gaussian"], 1)
    worker = ("exec", "-T", "--index", "1", "dask-worker", "python3", "-c")
    assert "Network is unreachable" in stack.compose(
        *worker,
        "import socket\ntry: socket.create_connection(('1.1.1.1', 53), 3)\nexcept OSError as error: print(error)",
    )
