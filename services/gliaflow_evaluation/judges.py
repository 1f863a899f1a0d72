"""The judges of synthetic features: which share of features each puts into the right class.

JUDGEMENTS is the one table of these shares; ``generator_arms``, the schema of ``metrics.json`` and the report read it.
The generator's own *critic* judges, and two classifiers that never saw a synthetic feature. That of the *same* patients
is fitted on the generator's patients (the arm ``weights``): it also agrees with the generator on what differs between
them by chance. That of *other* patients is fitted on validation and test patients: it can agree on signal alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Judge = Literal["critic", "same", "other"]


@dataclass(frozen=True)
class Judgement:
    """One share. ``of``: which features are judged: ``synthetic``, or real ones of ``test`` or ``train`` patients."""

    title: str
    judge: Judge
    of: Literal["synthetic", "test", "train"]
    description: str


_ACCEPTED = "of the synthetic features that the critic accepted, by a classifier of"
JUDGEMENTS = {
    "critic": Judgement(
        "right by its critic", "critic", "synthetic", "of synthetic features, by their critic (paper 4.2.3)"
    ),
    "same_patients": Judgement(
        "right by a classifier of the same patients", "same", "synthetic", f"{_ACCEPTED} the same patients: `weights`"
    ),
    "same_patients_real": Judgement(
        "real test slices right by that one", "same", "test", "of real features of test patients, by that classifier"
    ),
    "other_patients": Judgement(
        "right by a classifier of other patients",
        "other",
        "synthetic",
        f"{_ACCEPTED} others, whom the generator never saw",
    ),
    "other_patients_real": Judgement(
        "real training slices right by that one",
        "other",
        "train",
        "of the real features that the generator was fitted on, by that classifier: what to compare with",
    ),
}


def share_right(logits: NDArray[Any], label: int) -> float:
    """The share of logits of one class on its side; NaN where there are none, or where there is no judge (NaN)."""
    return float(((logits < 0) == bool(label)).mean()) if len(logits) and not np.isnan(logits).all() else float("nan")
