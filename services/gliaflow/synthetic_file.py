"""Synthetic features in a file: what ``gliaflow generate`` and the console write."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from gliaflow_proto import CLASSES
from numpy.typing import NDArray


def about(grade: str, bundle: str, generator: str, tap: str, seed: int) -> dict[str, str]:
    """The texts of the file: where its features come from."""
    return {
        "class": grade,
        "classes": ",".join(CLASSES),
        "bundle": bundle,
        "generator": generator,
        "tap": tap,
        "seed": str(seed),
    }


def labels(count: int, grade: str) -> NDArray[np.int64]:
    """The label of each feature."""
    return np.full(count, CLASSES.index(grade), dtype=np.int64)


def write_npz(file: IO[bytes], features: NDArray[Any], grade: str, texts: dict[str, str]) -> None:
    """Write the arrays features and label, and the texts."""
    arrays: dict[str, Any] = {name: np.array(text) for name, text in texts.items()}
    np.savez_compressed(file, features=features, label=labels(len(features), grade), **arrays)
