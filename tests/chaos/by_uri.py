"""A client that shares storage with the stages: it sends paths, and each scan twice, like a client that retries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gliaflow.flow
from gliaflow.scans import Input, find_inputs
from gliaflow.submission import Submission
from gliaflow_client.out_folder import OutFolder
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.logs import configure_logging


class Twice(Submission):
    def __init__(self, broker: Broker, *, by_uri: bool, patience_s: float, waiting: Callable[[float], str]) -> None:
        super().__init__(broker, by_uri=True, patience_s=patience_s, waiting=waiting)

    def submit(self, item: Input, *again: int) -> str:
        super().submit(item, *again)
        return super().submit(item, *again)


if __name__ == "__main__":
    folder, out, url, timeout = sys.argv[1:]
    configure_logging("error", "auto")
    gliaflow.flow.Submission = Twice  # type: ignore[misc]
    with OutFolder(Path(out)) as answers, connect(url) as broker:
        todo = [each for each in answers.assign(find_inputs([folder]).inputs) if not answers.is_answered(each)]
        answers.answer(gliaflow.flow.Flow(broker, timeout=float(timeout)), todo)
