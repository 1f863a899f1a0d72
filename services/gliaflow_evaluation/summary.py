"""The answers of all folds and seeds as one table (``metrics_schema``), and the figures for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import FeatureStore
from gliaflow_trainer.slices import CutScan, kept_scans
from numpy.typing import NDArray

from gliaflow_evaluation.fold import samples_of, shuffled
from gliaflow_evaluation.generator_quality import MEASURES as GAN_MEASURES
from gliaflow_evaluation.measures import (
    Draws,
    Measured,
    Units,
    calibration,
    chance_inside,
    mean_by_patient,
    measure,
    row,
)
from gliaflow_evaluation.protocol import CLASSES, Fold, Plan, features_of, folder_of

COMPARATORS = ("real", "weights", "threshold", "oversample", "smote", "gaussian", "mixup", "linear")
CONTROLS = ("size", "slices")  # they say what needs no feature
EQUATIONS = ("soft_dice_loss", "hard_dice", "iou")  # Eq. 3–5


def summarise(
    plan: Plan, dealt: Sequence[Fold], answers: Mapping[tuple[int, int], Sequence[Path]], scans: Sequence[CutScan]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The folds' answers as one table (``Metrics``, but for who made it how) and the figures for the report."""
    stores = {fold.number: FeatureStore(features_of(plan, fold)) for fold in dealt}
    seeds = sorted({seed for _, seed in answers})
    found: dict[tuple[int, int], dict[str, NDArray[Any]]] = {}
    about: dict[tuple[int, int], dict[str, Any]] = {}
    for key, paths in answers.items():
        of_paths = [dict(np.load(path, allow_pickle=False)) for path in paths]
        abouts = [json.loads(str(values.pop("about"))) for values in of_paths]
        found[key] = {name: logits for values in of_paths for name, logits in values.items()}
        about[key] = {
            part: {name: said for each in abouts for name, said in each.get(part, {}).items()}
            for part in ("gan", "chosen", "failed")
        }
    failed = {name: why for key in sorted(about, reverse=True) for name, why in about[key]["failed"].items()}
    table = _Table(plan, dealt, stores, found, seeds)
    names = [key.removeprefix("arm/") for key in found[dealt[0].number, seeds[0]] if key.startswith("arm/")]
    names = [name for name in names if name.partition("@")[0] not in failed]
    arms = {name: table.measured(f"arm/{name}") for name in names if not name.endswith(" alone")}
    generators = [name for name, _ in plan.generators if name not in failed]
    augmented, best = _judged(arms, generators)
    first = stores[dealt[0].number]
    figures: dict[str, NDArray[Any]] = {
        key.removeprefix("figures/"): maps
        for key, maps in found[dealt[0].number, seeds[0]].items()
        if key.startswith("figures/")
    }
    figures |= _overlays(dealt[0], scans, first)
    return {
        "made": {"tap": first.tap, "shape": first.shape, "generators": generators, "failed": failed},
        "table2": _table2(plan, dealt, scans),
        "table3": {
            "baseline": table.row("real"),
            "augmented": table.row(augmented) if augmented else None,
            "difference": _difference(arms[augmented], arms["real"]) if augmented else None,
            "beyond_line": _difference(arms[augmented], arms["threshold"]) if augmented else None,
        },
        "comparators": {
            name: {**table.row(name), "difference": None if name == "real" else _difference(arm, arms["real"])}
            for name, arm in arms.items()
        },
        "best_comparator": best,
        "augmented_arm": augmented,
        # the number of samples is chosen on validation patients, the one of several generators is not
        "augmented_chosen_on": "validation" if len(generators) < 2 else "test",
        "augmented_minus_best": _difference(arms[augmented], arms[best]) if augmented else None,
        "counts": {
            name: [
                {"count": count, **_measured(arm), "difference": _difference(arm, arms["real"])}
                for count in sorted(plan.counts)
                if (arm := arms.get(f"{name}@{count}")) is not None
            ]
            for name in generators
        },
        "scarce": [entry for few in plan.scarce if (entry := _scarce(table, few, names, generators))] or None,
        "gan": {name: _gan(name, dealt, seeds, about, table) for name in generators},
        "control": _control(table, generators) if plan.shuffle else None,
        "calibration": {
            name: calibration(table.units_of(f"arm/{name}")[1], table.units_of(f"arm/{name}")[0].positive)
            for name in dict.fromkeys(["real", best, *([augmented] if augmented else [])])
        },
        "learning": _learning(plan, dealt),
    }, figures


class _Table:
    """Logits of all folds and seeds laid side by side."""

    def __init__(
        self,
        plan: Plan,
        dealt: Sequence[Fold],
        stores: Mapping[int, FeatureStore],
        found: Mapping[tuple[int, int], Mapping[str, NDArray[Any]]],
        seeds: Sequence[int],
    ) -> None:
        self.plan, self.found, self.seeds, self.folds = plan, found, seeds, [fold.number for fold in dealt]
        self.tested = sorted({p for fold in dealt for p, part in fold.split.items() if part == "test"})
        place = {patient: n for n, patient in enumerate(self.tested)}
        labels, control, patients, folds = [], [], [], []
        label_of: dict[str, int] = {}
        control_of: dict[str, int] = {}
        for fold in dealt:
            samples, index = samples_of(plan, stores[fold.number])
            dealt_anew = shuffled(samples, plan.task)
            mine = np.searchsorted(index, found[fold.number, seeds[0]]["index"])
            labels.append(samples.labels[mine])
            control.append(dealt_anew[mine])
            patients.append(np.array([place[name] for name in samples.patients[mine]], dtype=np.int64))
            folds.append(np.full(len(mine), fold.number))
            label_of |= {str(p): int(label) for p, label in zip(samples.patients, samples.labels, strict=True)}
            control_of |= {str(p): int(label) for p, label in zip(samples.patients, dealt_anew, strict=True)}
        self.labels, self.control = np.concatenate(labels), np.concatenate(control)
        self.patients, self.fold = np.concatenate(patients), np.concatenate(folds)
        fold_of = {p: fold.number for fold in dealt for p, part in fold.split.items() if part == "test"}
        self.by_patient = plan.task == "grade"
        # a patient in whom no tumour was found has no sample: its label comes with the scan
        known = {scan.patient: scan.label for scan in kept_scans(plan.work / "slices")}
        if self.by_patient:
            for patient in self.tested:
                label_of.setdefault(patient, CLASSES["grade"].index(str(known[patient])))
                control_of.setdefault(patient, label_of[patient])
        self.fold_of = np.array([fold_of[p] for p in self.tested])
        self.label_of = np.array([label_of.get(p, 0) for p in self.tested])
        self.control_of = np.array([control_of.get(p, 0) for p in self.tested])
        strata = self.label_of if self.by_patient else np.zeros(len(self.tested))
        self.draws = Draws.of(strata)
        self.control_draws = Draws.of(self.control_of if self.by_patient else strata)

    def logits(self, key: str) -> NDArray[np.float64]:
        """Of all test slices, by seed [S, N]; a seed that could not fit the arm in some fold is left out."""
        rows = [
            np.concatenate([self.found[fold, seed][key] for fold in self.folds])
            for seed in self.seeds
            if all(key in self.found[fold, seed] for fold in self.folds)
        ]
        return np.stack(rows) if rows else np.zeros((0, len(self.labels)))

    def units_of(self, key: str) -> tuple[Units, NDArray[np.float64]]:
        """What is judged (patients, or slices) and its logits."""
        labels, by = (self.control, self.control_of) if key.startswith("control/") else (self.labels, self.label_of)
        if not self.by_patient:
            return Units(labels == 0, self.patients, self.fold), self.logits(key)
        units = Units(by == 0, np.arange(len(self.tested)), self.fold_of)
        return units, mean_by_patient(self.logits(key), self.patients, len(self.tested))

    def measured(self, key: str) -> Measured:
        units, logits = self.units_of(key)
        return measure(logits, units, self.control_draws if key.startswith("control/") else self.draws)

    def row(self, name: str) -> dict[str, Any]:
        slices = measure(self.logits(f"arm/{name}"), Units(self.labels == 0, self.patients, self.fold), self.draws)
        told = row(name, self.measured(f"arm/{name}"), slices, CLASSES[self.plan.task])
        return told if name not in CONTROLS else {**told, "slices": {}}


def _table2(plan: Plan, dealt: Sequence[Fold], scans: Sequence[CutScan]) -> dict[str, Any]:
    """Over folds: the mean of each part's measures, with an interval over folds only for the test patients' Dice."""
    dice = {
        (patient, fold.number): value
        for fold in dealt
        for patient, value in json.loads((folder_of(plan, fold) / "dice.json").read_text()).items()
    }
    values = np.array(list(dice.values()))
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    per_patient = [{"patient": p, "fold": f, "dice": round(value, 4)} for (p, f), value in sorted(dice.items())]
    test = {
        "dice": {"mean": values.mean(), "ci95": np.percentile(drawn, [2.5, 97.5]).tolist(), "n": len(values)},
        "dice_median": float(np.median(values)),
        "per_patient": per_patient,
    }
    parts = ("train", "validation", "test")
    if plan.unet is not None:  # fitted elsewhere: it has no training slices here
        nothing = {name: {"mean": None, "ci95": None, "n": 0} for name in EQUATIONS}
        return {**dict.fromkeys(parts, nothing), "test_patients": test}
    found = [Bundle(folder_of(plan, fold) / "unet").manifest.metrics["unet"] for fold in dealt]
    slices: dict[str, int] = {}
    for scan in scans:
        for fold in dealt:
            part = fold.split[scan.patient]
            slices[part] = slices.get(part, 0) + len(scan.image)
    return {
        part: {
            name: {"mean": float(np.mean([each[part][name] for each in found])), "ci95": None, "n": slices[part]}
            for name in EQUATIONS
        }
        for part in parts
    } | {"test_patients": test}


def _learning(plan: Plan, dealt: Sequence[Fold]) -> dict[str, Any] | None:
    if plan.unet is not None:
        return None
    histories = [Bundle(folder_of(plan, fold) / "unet").manifest.training["history"]["unet"] for fold in dealt]
    shown = ("loss", "val_dice", "val_iou")
    return {"unet": [[{name: e[name] for name in shown if name in e} for e in history] for history in histories]}


def _measured(arm: Measured) -> dict[str, Any]:
    return {name: arm[name] for name in ("balanced_accuracy", "auc")}


def _difference(arm: Measured, other: Measured) -> dict[str, Any]:
    found = arm.minus(other)
    return {name: found[name] for name in ("balanced_accuracy", "auc", "brier")}


def _accuracy(arm: Measured) -> float:
    return float(arm.values["balanced_accuracy"][0])


def _judged(arms: Mapping[str, Measured], generators: Sequence[str]) -> tuple[str | None, str]:
    """The generator that is judged and the comparator beside it: of each, that with the highest balanced accuracy.

    On the test patients, so it is chosen in its own favour. A plain generator is judged where there is no other.
    """

    def first(names: Sequence[str]) -> str:
        return max(names, key=lambda name: _accuracy(arms[name]))

    learnt = [name for name in generators if name not in COMPARATORS] or list(generators)
    augmented = first(learnt) if learnt else None
    return augmented, first([name for name in COMPARATORS if name in arms and name != augmented])


def _scarce(table: _Table, few: int, names: Sequence[str], generators: Sequence[str]) -> dict[str, Any] | None:
    prefix = f"scarce/{few}/"
    arms = {name: table.measured(prefix + name) for name in names if len(table.logits(prefix + name))}
    if not arms:
        return None
    augmented, best = _judged(arms, generators)
    return {
        "rare_patients": few,
        "arms": {
            name: {**_measured(arm), "difference": None if name == "real" else _difference(arm, arms["real"])}
            for name, arm in arms.items()
        },
        "augmented_arm": augmented,
        "best_comparator": best,
        "augmented_minus_best": _difference(arms[augmented], arms[best]) if augmented else None,
    }


def _gan(
    name: str,
    dealt: Sequence[Fold],
    seeds: Sequence[int],
    about: Mapping[tuple[int, int], Mapping[str, Any]],
    table: _Table,
) -> dict[str, Any]:
    """Over folds and seeds: the mean of each measure, and as its interval that in which 95 % of the fits lie."""
    every = [about[fold.number, seed]["gan"][name] for fold in dealt for seed in seeds]

    def over_fits(key: str, of: str = "samples") -> dict[str, Any]:
        values = np.array([np.mean(each[key]) for each in every])
        values = values[~np.isnan(values)]  # no real sample of a class to ask about
        if not len(values):
            return {"mean": None, "ci95": None, "n": 0}
        interval = np.percentile(values, [2.5, 97.5]).tolist() if len(values) > 1 else None
        return {"mean": float(values.mean()), "ci95": interval, "n": sum(each[of] for each in every)}

    def mean_of(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    per_class: dict[str, Any] = {}
    for kind in CLASSES[table.plan.task]:
        of_kind = [each["per_class"][kind] for each in every]
        per_class[kind] = {
            measure_: {side: mean_of([each[measure_][side] for each in of_kind]) for side in sides}
            for measure_, sides in [
                *((m, ("synthetic", "floor")) for m in GAN_MEASURES),
                ("nearest", ("synthetic_to_train", "held_out_to_train")),
            ]
        }
    return {
        "options": every[0]["options"],
        "accuracy_critic": over_fits("accuracy_critic"),
        "accuracy_unseen": over_fits("accuracy_unseen"),
        "accuracy_unseen_real": over_fits("accuracy_unseen_real", "tested"),
        "accuracy_others": over_fits("accuracy_others"),
        "accuracy_others_real": over_fits("accuracy_others_real", "learnt"),
        "per_class": per_class,
        "cas": _measured(table.measured(f"arm/{name} alone")),
        "history": [about[fold.number, seeds[0]]["gan"][name]["history"] for fold in dealt],
    }


def _control(table: _Table, generators: Sequence[str]) -> dict[str, Any]:
    arms = {name: _measured(table.measured(f"control/{name}")) for name in ("real", *generators)}
    return {
        "shuffled_labels": True,
        **arms["real"],
        "arms": {name: arms[name] for name in generators},
        "chance_inside": all(chance_inside(score) for scores in arms.values() for score in scores.values()),
    }


def _overlays(fold: Fold, scans: Sequence[CutScan], store: FeatureStore, count: int = 6) -> dict[str, NDArray[Any]]:
    """The slice with the most tumour of some test patients: image, true mask, found mask."""
    tested = [scan for scan in scans if fold.split[scan.patient] == "test"]
    image, truth, found, names = [], [], [], []
    for scan in tested[:: max(1, len(tested) // count)][:count]:
        largest = int(np.argmax([np.count_nonzero(plane) for plane in scan.mask]))
        here = np.flatnonzero((store.scans == scan.id) & (store.slices == scan.geometry.slices[largest]))
        image.append(np.asarray(scan.image[largest], np.float32))
        truth.append((np.asarray(scan.mask[largest]) > 0).astype(np.uint8))
        found.append(store.masks(here)[0])
        names.append(scan.patient)
    return {"image": np.stack(image), "truth": np.stack(truth), "found": np.stack(found), "names": np.array(names)}
