"""The loop that all speed is compared with: onnxruntime alone, as a user would write it.

One session with as many threads as cores, and onnxruntime's other defaults (its threads spin while they wait). It is
called with batches of four prepared slices, and its results are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_preprocessor.slices import prepare
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.settings import available_cores
from numpy.typing import NDArray

BATCH = 4  # slices in one run, as a user would choose; gliaflow's extractor gives each core one at a time
OUTPUTS = ["enc5", "mask"]
Slices = NDArray[np.float32]


def prepared_slices(bundle: Bundle, paths: Iterable[Path]) -> Slices:
    """What the extractor gets of these scans: float32 [n, 1, 240, 240], rounded to float16 as in its messages."""
    images = [prepare(*read_nifti(path.read_bytes()), bundle.manifest.input).image for path in paths]
    return np.concatenate(images)[:, None].astype(np.float16).astype(np.float32)


def batches(image: Slices) -> list[Slices]:
    """The slices in batches."""
    return [image[start : start + BATCH] for start in range(0, len(image), BATCH)]


class BareLoop:
    """onnxruntime with the U-Net of a bundle; it is warm."""

    def __init__(self, bundle: Bundle, image: Slices) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = available_cores()
        path = str(bundle.folder / "unet.onnx")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._batches = batches(image)
        self._run(self._batches[0])

    def masks(self) -> NDArray[np.bool_]:
        """The mask of each slice, bool [n, 240, 240]."""
        return np.concatenate([self._run(batch)[1][:, 0] > 0.5 for batch in self._batches])

    def seconds(self) -> float:
        """Wall-clock seconds for all slices."""
        started = time.perf_counter()
        for batch in self._batches:
            self._run(batch)
        return time.perf_counter() - started

    def _run(self, batch: Slices) -> list[Any]:
        results: list[Any] = self._session.run(OUTPUTS, {"image": batch})
        return results
