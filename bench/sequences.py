"""Do more sequences help? Two runs of ``gliaflow evaluate`` on the same patients and folds, compared by patient.

    python bench/sequences.py links COHORT SEQUENCE OUT    # a cohort of the patients that have the sequence
    python bench/sequences.py compare ONE TWO              # Dice and AUC of run TWO less those of run ONE
    python bench/sequences.py without RUN SEQUENCE         # Dice of a run's U-Nets with the sequence, and without it

ONE, TWO and RUN are folders that ``--out`` named. AUC is over pairs of a fold.
Intervals: 95 %, by bootstrap over patients, paired.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
Floats = NDArray[np.float64]


def main() -> None:
    commands: dict[str, Callable[..., Any]] = {"links": links, "compare": compare, "without": without}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])


def links(cohort: str, sequence: str, out: str) -> None:
    """A folder of links to the cases that have the sequence, each a folder of the cohort, and its tables."""
    from gliaflow_plugins.cohorts.read import CohortRequest
    from gliaflow_plugins.registry import load_registry

    Path(out).mkdir(parents=True)
    for case in CohortRequest(Path(cohort)).read(load_registry()).cases:
        if sequence in case.sequences:
            place = Path(str(case.scan)).parent
            link = Path(out) / place.relative_to(cohort)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():  # two scans in one folder
                link.symlink_to(place.resolve())
    for table in (*Path(cohort).glob("*.tsv"), *Path(cohort).glob("*.csv")):
        shutil.copy(table, out)


def compare(one: str, two: str) -> None:
    runs = [json.loads((Path(run) / "metrics.json").read_text()) for run in (one, two)]
    dice = [{p["patient"]: p["dice"] for p in run["table2"]["test_patients"]["per_patient"]} for run in runs]
    _print_dice(*dice)
    found = [{p["patient"]: p for p in run["patients"]} for run in runs]
    both = sorted({*found[0]} & {*found[1]})
    truth = np.array([found[0][patient]["label"] == "HGG" for patient in both])
    folds = [np.array([each[patient]["fold"] for patient in both]) for each in found]
    # null: no tumour was found, so there is no logit
    arms = [np.array([each[p]["answers"]["real"]["logit"] for p in both], np.float64) for each in found]
    rng = np.random.default_rng(0)
    drawn: list[list[float]] = []
    while len(drawn) < DRAWS:
        some = rng.integers(0, len(both), len(both))
        if all(len(set(truth[some][fold[some] == number])) == 2 for fold in folds for number in set(fold)):
            drawn.append([_auc(arm[some], truth[some], fold[some]) for arm, fold in zip(arms, folds, strict=True)])
    seeds = [len(run["made"]["protocol"]["seeds"]) for run in runs]
    print(f"AUC of features, {truth.sum()} patients against {(~truth).sum()}; logits are means over {seeds} seeds")
    _print_pair([_auc(arm, truth, fold) for arm, fold in zip(arms, folds, strict=True)], np.array(drawn))


def without(run: str, sequence: str) -> None:
    """On the network's grid, over all slices of a patient."""
    from gliaflow_extractor.extractor import UNetSession
    from gliaflow_runtime.bundle.load import Bundle
    from gliaflow_trainer.slices import kept_scans
    from gliaflow_trainer.unet_fit import dice_by_patient

    metrics = json.loads((Path(run) / "metrics.json").read_text())
    fold_of = {p["patient"]: p["fold"] for p in metrics["table2"]["test_patients"]["per_patient"]}
    scans = kept_scans(Path(run) / "work/slices")
    nets: dict[int, UNetSession] = {}

    def masks(lacking: bool) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]]:
        for scan in scans:
            fold = fold_of[scan.patient]
            if fold not in nets:
                nets[fold] = UNetSession(Bundle(Path(run) / f"work/fold-{fold}/unet"), cropped=False)
            image = np.array(scan.image)
            if lacking:
                image[:, metrics["made"]["profile"]["input"]["channels"].index(sequence)] = 0
            yield scan.patient, np.asarray(scan.mask) > 0, nets[fold](image)[1] > 0

    _print_dice(dice_by_patient(masks(lacking=False)), dice_by_patient(masks(lacking=True)))


def _auc(logits: Floats, truth: NDArray[np.bool_], fold: NDArray[np.int64]) -> float:
    """Over the pairs within a fold, since the logits of two networks have two scales. Without a logit: a coin toss."""
    higher = logits[truth][:, None] - logits[~truth]
    won = (higher > 0) + (np.isnan(higher) | (higher == 0)) / 2
    return float(won[fold[truth][:, None] == fold[~truth]].mean())


def _print_dice(one: Mapping[str, float], two: Mapping[str, float]) -> None:
    both = sorted({*one} & {*two})
    if only := {*one} ^ {*two}:
        print(f"{len(only)} patients are in one of the two alone: the networks did not learn from the same patients")
    values = np.array([[one[patient], two[patient]] for patient in both])
    index = np.random.default_rng(0).integers(0, len(both), (DRAWS, len(both)))
    print(f"Dice, {len(both)} patients; better in {int((values[:, 1] > values[:, 0]).sum())}")
    _print_pair(values.mean(axis=0).tolist(), values[index].mean(axis=1))


def _print_pair(means: list[float], drawn: Floats) -> None:
    """Means of both, and the difference, each with its interval. ``drawn``: of each draw [draws, 2]."""
    for name, mean, values in (
        ("one", means[0], drawn[:, 0]),
        ("two", means[1], drawn[:, 1]),
        ("two − one", means[1] - means[0], drawn[:, 1] - drawn[:, 0]),
    ):
        low, high = np.percentile(values, [2.5, 97.5])
        print(f"  {name:<9}  {mean:+.4f}  ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
