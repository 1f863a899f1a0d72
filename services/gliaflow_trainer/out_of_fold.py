"""Scores of patients by networks that did not learn from them: their summary with intervals, and their table.

The intervals (percentile bootstrap over patients, 95 %) are about other patients like these, not about other training
sets. The rules of grading are those of ``gliaflow evaluate``: the AUC compares patients within a fold only, since the
logits of two networks have two scales, and a patient in whom no tumour was found counts as a coin toss. Nothing is
gained by not answering.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_proto import CLASSES
from gliaflow_runtime.files import whole_file
from gliaflow_runtime.formulas import quoted, unquoted
from numpy.typing import NDArray
from scipy.special import expit

from gliaflow_trainer.bootstrap import bootstrap
from gliaflow_trainer.graders import rounded

TABLE_FILE = "out_of_fold.csv"
COLUMNS = ("patient", "fold", "grade", "dice", "p_hgg")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OutOfFold:
    """A patient's scores by the networks of its fold, which learned from the other folds' patients.

    Parameters
    ----------
    fold: from 1.
    grade: HGG or LGG; None: not known.
    dice: over all voxels of the patient's scans, on their own grids.
    logit: positive for HGG. None: no tumour was found, or the grade is not known.
    """

    patient: str
    fold: int
    grade: str | None
    dice: float
    logit: float | None


def metrics(scored: Sequence[OutOfFold]) -> dict[str, dict[str, Any]]:
    """For ``manifest.metrics``: ``segmentation``, and ``grading`` if grades are known. No patient is named."""
    folds = max(each.fold for each in scored)
    about = {
        "folds": folds,
        "scores_of": f"{folds} other networks, each fitted on {folds - 1}/{folds} of the patients and measured on the "
        "rest; this bundle's own networks learned from all patients, and were not measured",
    }
    dice = np.array([each.dice for each in scored])
    mean, ci95 = _with_interval(dice @ bootstrap(np.zeros(len(dice))) / len(dice))
    parts = {
        "segmentation": {
            "dice_mean": mean,
            "dice_ci95": ci95,
            "dice_median": rounded(np.median(dice)),
            "dice": sorted(round(float(each), 4) for each in dice),
            "patients": len(dice),
            **about,
        }
    }
    if graded := [each for each in scored if each.grade is not None]:
        parts["grading"] = {**_grading(graded), **about}
    return parts


def _grading(graded: Sequence[OutOfFold]) -> dict[str, Any]:
    positive = np.array([each.grade == CLASSES[0] for each in graded])
    logit = np.array([np.nan if each.logit is None else each.logit for each in graded])
    fold = np.array([each.fold for each in graded])
    draws = bootstrap(positive)
    right = np.where(np.isnan(logit), 0.5, (logit > 0) == positive)
    recalls = [_divide(right[kind] @ draws[kind], draws[kind].sum(axis=0)) for kind in (positive, ~positive)]
    in_order, pairs = np.zeros((2, draws.shape[1]))
    for number in np.unique(fold):
        first, second = (np.flatnonzero((fold == number) & kind) for kind in (positive, ~positive))
        above = np.sign(logit[first, None] - logit[None, second])
        in_order += (draws[first] * (np.nan_to_num(above / 2 + 0.5, nan=0.5) @ draws[second])).sum(axis=0)
        pairs += draws[first].sum(axis=0) * draws[second].sum(axis=0)
    scores = {
        "auc": _with_interval(_divide(in_order, pairs)),
        "balanced_accuracy": _with_interval(np.mean(recalls, axis=0)),
    }
    values = {name: value for name, (value, _) in scores.items()}
    intervals = {f"{name}_ci95": interval for name, (_, interval) in scores.items()}
    return {**values, **intervals, "patients": len(graded), "without_answer": int(np.isnan(logit).sum())}


def _divide(above: Floats, below: Floats) -> Floats:
    """NaN where there is nothing to divide by: patients of one class have no AUC."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def _with_interval(values: Floats) -> tuple[float | None, list[float | None] | None]:
    """A measure and its interval, of its value for all patients and in each draw. None where there is none."""
    drawn = values[1:][np.isfinite(values[1:])]
    known = np.isfinite(values[0]) and len(drawn) > len(values[1:]) / 2
    return rounded(values[0]), [rounded(end) for end in np.percentile(drawn, [2.5, 97.5])] if known else None


def write_table(path: Path, scored: Sequence[OutOfFold]) -> None:
    """A CSV with a row for each patient, by Dice. ``p_hgg`` is empty where there is no answer or no grade."""
    # errors: a name that is not UTF-8 must not stop the run
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for each in sorted(scored, key=lambda each: (each.dice, each.patient)):
            p_hgg = "" if each.logit is None else f"{expit(each.logit):.4f}"
            writer.writerow([quoted(each.patient), each.fold, each.grade or "", f"{each.dice:.4f}", p_hgg])


def worst_patients(path: Path, count: int = 5) -> str:
    """The patients with the lowest Dice in such a table, by name: ``P7 0.31, P2 0.52``."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return ", ".join(f"{unquoted(row['patient'])} {float(row['dice']):.2f}" for row in rows[:count])
