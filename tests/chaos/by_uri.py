"""A client that shares storage with the stages: it sends paths, and each scan twice, like a client that retries."""

from __future__ import annotations

import sys
from pathlib import Path

import gliaflow.flow
from gliaflow.scans import Input, find_inputs
from gliaflow.submission import Submission
from gliaflow_cli.client.table import TABLE, read_table, save_answers
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.logs import configure_logging


class Twice(Submission):
    def __init__(self, broker: Broker, *, by_uri: bool, patience_s: float) -> None:
        super().__init__(broker, by_uri=True, patience_s=patience_s)

    def submit(self, item: Input, *again: int) -> str:
        super().submit(item, *again)
        return super().submit(item, *again)


if __name__ == "__main__":
    folder, out, url, timeout = sys.argv[1:]
    configure_logging("error", "auto")
    known = {n: r for n, r in read_table(Path(out) / TABLE).items() if r.status == "ok"}
    todo = [item for item in find_inputs([folder]).inputs if item.name not in known]
    gliaflow.flow.Submission = Twice  # type: ignore[misc]
    with connect(url) as broker:
        save_answers(gliaflow.flow.Flow(broker, timeout=float(timeout)), todo, Path(out), known=known)
