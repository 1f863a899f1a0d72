"""Scans in a console's store, with answers that no pipeline gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from gliaflow.answer import Answer
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan
from gliaflow_proto import PredictionMessage, Scan


def send(store: ScanStore, path: Path, drawn: str = "") -> StoredScan:
    """Upload a file as a browser does. ``drawn``: as a phantom that the console drew with this class."""
    upload = store.new_upload()
    upload.place(path.name).write_bytes(path.read_bytes())
    (id,) = store.take(upload, alone=True, drawn=drawn).ids
    return stored(store, id)


def answer(store: ScanStore, scan: StoredScan, bundle: str, **changes: Any) -> StoredScan:
    """Answer a scan: HGG, with tumour in the slices 4 to 6, of which slice 5 says most. ``changes``: of the message."""
    item = store.item(scan.id)
    assert item is not None
    image = nib.load(item.path)
    mask = np.zeros(image.shape[:3], np.uint8)
    mask[24:28, 16:20, 4:7] = 1
    message = PredictionMessage(
        **{
            "id": scan.id,
            "scan": Scan(id=scan.id),
            "bundle": bundle,
            "grade": "HGG",
            "p_hgg": 0.8,
            "tumour_ml": 1.0,
            "slices": 10,
            "tumour_slices": 3,
            "affine": [float(number) for number in image.affine.ravel()],
            "mask": mask,
            "slice_numbers": [4, 5, 6],
            "slice_p_hgg": [0.7, 0.9, 0.6],
            **changes,
        }
    )
    store.answered(scan.id, Answer.of_prediction(item, message, 1.0))
    return stored(store, scan.id)


def stored(store: ScanStore, id: str) -> StoredScan:
    """The scan as it is now."""
    scan = store.get(id)
    assert scan is not None
    return scan
