"""Scans in a console's store without a pipeline: small bytes, and answers to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow.answer import Answer
from gliaflow_console.store import ScanStore
from gliaflow_proto import PredictionMessage, Scan, encode
from gliaflow_runtime.settings import Settings
from sample_messages import ONE_OF_EACH

[PREDICTION] = [
    replace(message, status="ok", mask=np.pad(np.ones((2, 2, 2), np.uint8), 1))
    for message in ONE_OF_EACH
    if isinstance(message, PredictionMessage)
]


def settings(folder: Path | None = None, **values: Any) -> Settings:
    return Settings(console_folder=folder, **values)


def send(store: ScanStore, name: str = "P1_flair.nii.gz", data: bytes = b"scan") -> str:
    upload = store.new_upload()
    upload.count(len(data))
    upload.place(name).write_bytes(data)
    [scan] = store.take(upload, alone=True).ids
    return scan


def answer(store: ScanStore, scan: str, message: PredictionMessage = PREDICTION) -> None:
    item = store.item(scan)
    assert item is not None
    store.answered(scan, Answer.of_prediction(item, message, 1.5))


def of_others(number: int, **changes: Any) -> tuple[PredictionMessage, bytes]:
    message = replace(PREDICTION, scan=Scan(id=f"s{number}", submission="theirs", name=f"their {number}"), **changes)
    return message, encode(message, "lz4")
