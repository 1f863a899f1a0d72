"""A folder in which scans appear, and the folder with their answers."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from gliaflow.answer import Answer
from gliaflow.scans import Input, find_inputs
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import whole_file

from gliaflow_cli.client.table import ScanRow

SETTLED_S = 2.0  # a file that has not changed for so long has been copied completely


def new_scans(inbox: Path, out: Path) -> list[tuple[Input, int]]:
    """The scans that have no answer yet, each with the time of its last change.

    A scan is answered if its ``<scan>.json`` is not older than the scan. So a restart answers nothing twice, and a
    scan that is dropped again under the same name is answered again.
    """
    try:
        found = find_inputs([inbox]).inputs
    except UsageError:  # nothing there yet
        return []
    fresh = []
    for item in found:
        try:
            status = item.path.stat()
        except OSError:
            continue  # it was removed
        changed = max(status.st_mtime_ns, status.st_ctime_ns)  # written, or moved into place
        answer = out / f"{item.name}.json"
        answered = answer.exists() and answer.stat().st_mtime_ns >= changed
        if not answered and abs(time.time_ns() - changed) > SETTLED_S * 1e9:  # abs: the clock may have been set back
            fresh.append((item, changed))
    return fresh


def write_answer(out: Path, answer: Answer, changed: int) -> None:
    """Write ``<scan>.json`` whole, with the time of the scan's last change before it was sent.

    Not the time of now, since the clock may be set back; nor the scan's present time, since another scan may have
    taken its place.
    """
    with whole_file(out / f"{answer.scan}.json") as part:
        part.write_text(json.dumps(asdict(ScanRow.of(answer)), indent=2) + "\n", encoding="utf-8")
        os.utime(part, ns=(changed, changed))
