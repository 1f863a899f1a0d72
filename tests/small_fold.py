"""A fold of an evaluation as small as can be: a plan, a feature store of 13 patients, and their samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import small
from gliaflow_evaluation.protocol import Design, Fold, Plan, PlannedVariant, split_into_folds
from gliaflow_proto import Scan
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, StoredPart, write_part

COHORT = {**{f"H{n}": "HGG" for n in range(8)}, **{f"L{n}": "LGG" for n in range(5)}}
FOLD = split_into_folds(COHORT, Design(folds=2))[0]
LEVELS = PlannedVariant("levels", {})
ORIGIN = FeatureOrigin("b@1", "dec3", (4, 6, 6))


def patients_in(fold: Fold, part: str) -> set[str]:
    return {patient for patient, its in fold.split.items() if its == part}


def store_of(folder: Path, spoilt: str = "", prefix: str = "") -> FeatureStore:
    """Six slices a patient, tumour in the middle four. Patients in ``spoilt`` have wild features and a wrong label.

    ``prefix``: of the patients' names in the store.
    """
    folder.mkdir(parents=True)
    for number, (patient, label) in enumerate(COHORT.items()):
        rng = np.random.default_rng(number)
        features = rng.random((6, 4, 6, 6)) + (0.6 if label == "HGG" else 0) * np.array([1, 0, 0, 0])[:, None, None]
        mask = np.zeros((6, 48, 48), np.uint8)
        mask[1:5, 20:30, 20:30] = 1
        if patient in spoilt.split():
            features, label = 1000 * rng.random((6, 4, 6, 6)), {"HGG": "LGG", "LGG": "HGG"}[label]
            mask[1:5] = 1
        scan = Scan(id=f"s{patient}", name=patient, patient=prefix + patient, label=label)
        write_part(folder, StoredPart(scan, [0, 1], ORIGIN, features.astype(np.float16), mask, list(range(6))))
    return FeatureStore(folder)


def plan_of(work: Path, **changes: Any) -> Plan:
    """A plan with the generator ``levels``; ``changes`` are of the plan or of its design."""
    design = {name: changes.pop(name) for name in list(changes) if name in Design.__dataclass_fields__}
    plan = Plan(
        work=work,
        profile=replace(small.PROFILE, cropped=False),
        design=replace(Design(counts=(5, 10), scarce=(2,)), **design),
        rare=1,
        generators=(LEVELS,),
        classifier=PlannedVariant("pooled", {}),
        deadline_s=60,
    )
    return replace(plan, **changes)
