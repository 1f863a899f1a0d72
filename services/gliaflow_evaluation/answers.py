"""The answers of one fold and seed on disk: a file for each comparator and each generator.

Keys: ``index`` [n], the numbers of the test samples in the store; ``arm/NAME`` [n], logits of the test samples;
``scarce/N/NAME``, with N patients of the rare class; ``control/NAME``, on shuffled labels; ``figures/NAME/…``, feature
maps; ``about``, JSON by generator: its ``quality``, or why it ``failed``. A failed generator's file ends in
``.failed.npz`` and is not used the next time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_runtime.files import whole_file
from numpy.typing import NDArray

from gliaflow_evaluation.comparators import Comparator
from gliaflow_evaluation.protocol import Fold, Plan, PlannedVariant

ANSWERS = 6  # counts up when the answers of generators, or the keys, come to mean something else


def answers_file(plan: Plan, fold: Fold, seed: int, entrant: Comparator | PlannedVariant) -> Path:
    """The file's name has a digest of all that the answers depend on. (A work folder belongs to one U-Net.)"""
    design, classifier = plan.design, plan.classifier
    whole = [
        *(ANSWERS, seed, fold.split, asdict(plan.profile), classifier.name, classifier.options, classifier.code),
        *(design.task, design.seed, design.counts, design.scarce, design.shuffle, plan.rare, entrant.name),
        *_version(plan, entrant),
    ]
    digest = hashlib.sha256(json.dumps(whole, default=str, sort_keys=True).encode()).hexdigest()
    return fold.folder(plan) / f"seed-{seed}-{entrant.name}-{digest[:12]}.npz"


def _version(plan: Plan, entrant: Comparator | PlannedVariant) -> list[Any]:
    if isinstance(entrant, Comparator):
        with_scans = [*([plan.unlabelled] if entrant.unlabelled else []), *([plan.source] if entrant.source else [])]
        return [entrant.version, plan.comparator_code.get(entrant.name, ""), *with_scans]
    return [entrant.options, entrant.code, *([plan.source] if entrant.source else [])]


def failed_file(file: Path) -> Path:
    """The file of a generator that failed, beside its answers' file."""
    return file.with_suffix(".failed.npz")


def save_answers(file: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write the file whole."""
    with whole_file(file, ending=".npz") as part:
        np.savez_compressed(part, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]


def load_answers(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays by key, and ``about``."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    return arrays, json.loads(str(arrays.pop("about")))
