"""A client that shares storage with the stages: it sends paths, and each scan twice, as one that retries does."""

from __future__ import annotations

import sys
from pathlib import Path

import gliaflow_cli.client.table
from gliaflow.scans import find_inputs
from gliaflow.submission import Input, Submission
from gliaflow_cli.client.table import TABLE, read_table, submit
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.logs import configure_logging


class Twice(Submission):
    def submit(self, item: Input, *again: int) -> str:
        super().submit(item, *again)
        return super().submit(item, *again)


if __name__ == "__main__":
    folder, out, url, timeout = sys.argv[1:]
    configure_logging("error", "auto")
    known = {n: r for n, r in read_table(Path(out) / TABLE).items() if r.status == "ok"}
    todo = [item for item in find_inputs([folder]) if item.name not in known]
    gliaflow_cli.client.table.Submission = Twice  # type: ignore[misc]
    with connect(url) as broker:
        submit(todo, Path(out), broker, by_uri=True, timeout_s=float(timeout), known=known)
