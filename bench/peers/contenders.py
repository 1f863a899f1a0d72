"""What is compared: the bare loop, and gliaflow on both of its brokers. ``peers`` has the others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import nibabel as nib
import numpy as np
from bare_loop import BareLoop, Slices
from cpu_seconds import cpu_seconds
from gliaflow_runtime.bundle.load import Bundle
from numpy.typing import NDArray
from stage_processes import environment, stage_processes

HERE = Path(__file__).resolve().parent
END_S = 30  # the longest end of a process
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Work:
    """The same for all contenders of a row: a network, scans, and their slices. ``folder`` is for what they write."""

    bundle: Bundle
    scans: Path
    paths: list[Path]
    image: Slices
    folder: Path


@dataclass(frozen=True)
class Turn:
    """One turn: wall-clock and CPU seconds for all slices, and their masks, bool [n, 240, 240]."""

    seconds: float
    cpu_seconds: float
    masks: Masks


class Contender(ABC):
    """Something that segments all slices. Entering it starts its processes and warms it; neither is timed."""

    name: str

    def __init__(self, work: Work) -> None:
        self.work = work
        self.resources = ExitStack()

    @abstractmethod
    def turn(self) -> Turn:
        """Segment all slices."""

    @abstractmethod
    def start(self) -> None:
        """Start the processes, and leave their ends to ``resources``."""

    def __enter__(self) -> Self:
        with self.resources:
            self.start()
            self.turn()
            self.resources = self.resources.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.resources.close()


class Loop(Contender):
    """The bare loop, in this process."""

    name = "bare onnxruntime loop"

    def start(self) -> None:
        self._loop = BareLoop(self.work.bundle, self.work.image)
        self._masks = self._loop.masks()

    def turn(self) -> Turn:
        before = time.process_time()
        seconds = self._loop.seconds()
        return Turn(seconds, time.process_time() - before, self._masks)


class Int8Loop(Loop):
    """The bare loop with a bundle in int8."""

    name = "bare onnxruntime loop, int8"


class Gliaflow(Contender):
    """gliaflow, from scans in files to masks in files."""

    broker = "memory://"
    name = "gliaflow, `memory://`"

    def start(self) -> None:
        self._pids: list[int] = []
        self._out = self.work.folder / "masks"
        self._out.mkdir(exist_ok=True)
        arguments = [str(self.work.scans), self.broker, str(self.work.bundle.folder)]
        self._client = subprocess.Popen(
            [sys.executable, str(HERE / "flow_client.py"), *arguments],
            env=environment(self.work.folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.resources.callback(end, self._client)
        self._pids.append(self._client.pid)

    def turn(self) -> Turn:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        before = self._cpu_seconds()
        print(self._out, file=self._client.stdin, flush=True)
        line = self._client.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the client has ended")
        spent = self._cpu_seconds() - before
        masks = [nib.load(self._out / f"{path.name[:-7]}.nii.gz") for path in self.work.paths]
        return Turn(
            float(line), spent, np.concatenate([np.moveaxis(np.asarray(mask.dataobj), -1, 0) > 0 for mask in masks])
        )

    def _cpu_seconds(self) -> float:
        return cpu_seconds(self._pids)


class GliaflowOnRabbitMQ(Gliaflow):
    """The four services as processes on a RabbitMQ.

    Its CPU seconds count too if ``tests/rabbitmq.py`` started it without Docker: then that script is the parent of
    both the broker and this process.
    """

    name = "gliaflow, RabbitMQ, four processes"

    def start(self) -> None:
        self.broker = os.environ["GLIAFLOW_TEST_BROKER"]
        stages = stage_processes(self.broker, self.work.bundle.folder, self.work.folder)
        pids = self.resources.enter_context(stages)
        super().start()
        self._pids += pids

    def _cpu_seconds(self) -> float:
        if "GLIAFLOW_TEST_RABBITMQCTL" not in os.environ:  # the broker was there before
            return super()._cpu_seconds()
        return super()._cpu_seconds() + cpu_seconds([os.getppid()], but=os.getpid())


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, and kill it if it does not."""
    if process.stdin:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
