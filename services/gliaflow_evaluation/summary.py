"""The figures of the report, from the answers of all folds and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_proto import CLASSES
from gliaflow_store.feature_store import FeatureStore
from gliaflow_trainer.bootstrap import bootstrap
from gliaflow_trainer.slices import CutScan
from numpy.typing import NDArray
from scipy.special import expit

from gliaflow_evaluation.answers import load_answers
from gliaflow_evaluation.comparators import COMPARATORS, comparators
from gliaflow_evaluation.generator_quality import DISTANCES
from gliaflow_evaluation.judges import JUDGEMENTS
from gliaflow_evaluation.measures import (
    AGAINST_CHANCE,
    MEASURES,
    OVER_SLICES,
    Floats,
    Measured,
    Units,
    calibration,
    chance_inside,
    confusion,
    mean_by_patient,
    mean_of,
    measure,
    roc_curve,
)
from gliaflow_evaluation.protocol import Fold, Plan
from gliaflow_evaluation.report import schema
from gliaflow_evaluation.samples import Indices, samples_of, shuffled_labels
from gliaflow_evaluation.score import NOT_MEASURED, Score
from gliaflow_evaluation.segmentation import learning_curves, overlays, table2

Files = Mapping[tuple[int, int], Sequence[Path]]
"""The files of answers by fold and seed."""


def summarise(
    plan: Plan, folds: Sequence[Fold], files: Files, scans: Sequence[CutScan]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The fields of ``Metrics``, ``made`` with what the folds know of it, and the pictures of the report."""
    results = Results(plan, folds, files, scans)
    generators = results.generators
    arms = {name: results.measured(f"arm/{name}") for name in results.names()}
    rows = {
        name: schema.Row(
            arm=name,
            slices=None if name in comparators("shortcut") else results.slice_scores(name),
            **_series(name, arms),
        )
        for name in arms
    }
    augmented, best = _judged(arms, generators)
    shown = list(dict.fromkeys(name for name in ("real", best, augmented) if name is not None))
    store = FeatureStore(folds[0].features(plan))
    pictures = {
        key.removeprefix("figures/"): maps
        for key, maps in results.arrays[folds[0].number, results.seeds[0]].items()
        if key.startswith("figures/")
    }
    return {
        "made": {"tap": store.tap, "shape": store.shape, "generators": generators, "failed": results.failed},
        "table2": table2(plan, folds, scans),
        "table3": schema.Table3(
            baseline=rows["real"],
            augmented=rows[augmented] if augmented else None,
            beyond_threshold=arms[augmented].minus(arms["threshold"]) if augmented else None,
        ),
        "comparators": rows,
        "best_comparator": best,
        "augmented_arm": augmented,
        # validation patients chose the number of samples, but test patients the one of several generators
        "augmented_chosen_on": "validation" if len(generators) < 2 else "test",
        "augmented_minus_best": arms[augmented].minus(arms[best]) if augmented else None,
        "against_best_auc": _against_best_auc(arms, generators),
        "against_others_auc": _against_others_auc(arms, generators),
        "counts": {
            name: [
                schema.CountArm(count=count, **_series(f"{name}@{count}", arms))
                for count in sorted(plan.design.counts)
                if f"{name}@{count}" in arms
            ]
            for name in generators
        },
        "scarce": [each for few in plan.design.scarce if (each := _scarce(results, few)) is not None] or None,
        "gan": {name: _quality(results, name) for name in generators},
        "control": _control(results) if plan.design.shuffle else None,
        "patients": _patients(results, shown) if plan.design.task == "grade" else [],
        **_curves(results, shown),
        "learning": learning_curves(plan, folds),
    }, pictures | overlays(folds[0], scans, store)


def _judged(arms: Mapping[str, Measured], generators: Sequence[str]) -> tuple[str | None, str]:
    """The generator that is judged, and the comparator beside it: of each, the highest balanced accuracy.

    On the test patients, which flatters it. A plain generator is judged only where there is no other.
    """

    def first(names: Iterable[str]) -> str:
        return max(names, key=lambda name: float(arms[name].values["balanced_accuracy"][0]))

    learnt = [name for name in generators if name not in COMPARATORS] or generators
    augmented = first(learnt) if learnt else None
    rivals = [*comparators("real", "remedy", "carried", "linear"), *(n for n, c in COMPARATORS.items() if c.source)]
    return augmented, first(name for name in rivals if name in arms and name != augmented)


def _against_best_auc(arms: Mapping[str, Measured], generators: Sequence[str]) -> dict[str, schema.AgainstBest]:
    """What is carried over or lent, and each generator, against the comparator of the highest AUC on the test patients.

    That flatters the comparator, not the arm. A plain generator that was requested is a comparator of the others.
    """
    rivals = [name for name in comparators("real", "remedy", "linear") if name in arms]

    def against(name: str) -> schema.AgainstBest:
        best = max((rival for rival in rivals if rival != name), key=lambda each: float(arms[each].values["auc"][0]))
        return schema.AgainstBest(best_comparator=best, minus_best=arms[name].minus(arms[best]))

    judged = (*comparators("carried", "lent"), *generators)
    return {name: against(name) for name in judged if name in arms}


def _against_others_auc(arms: Mapping[str, Measured], generators: Sequence[str]) -> dict[str, schema.AgainstBest]:
    """Each generator against the arm of the highest AUC of those that other patients' labels taught."""
    lent = [name for name in comparators("lent") if name in arms]
    rivals = [name for name in lent if COMPARATORS[name].source] or lent  # those that see what the generators see
    if not rivals:
        return {}
    best = max(rivals, key=lambda each: float(arms[each].values["auc"][0]))
    judged = [name for name in generators if name in arms]
    return {name: schema.AgainstBest(best_comparator=best, minus_best=arms[name].minus(arms[best])) for name in judged}


def _series(name: str, arms: Mapping[str, Measured]) -> dict[str, Any]:
    """An arm's scores, and its difference to real features alone."""
    return {"scores": arms[name].scores(), "difference": None if name == "real" else arms[name].minus(arms["real"])}


def _scarce(results: Results, few: int) -> schema.Scarce | None:
    """None where no seed could be thinned in all folds."""
    prefix = f"scarce/{few}/"
    names = [name for name in results.names() if len(results.logits(prefix + name))]
    if not names:
        return None
    arms = {name: results.measured(prefix + name) for name in names}
    augmented, best = _judged(arms, results.generators)
    return schema.Scarce(
        rare_patients=few,
        arms={name: schema.SeriesArm(**_series(name, arms)) for name in arms},
        augmented_arm=augmented,
        best_comparator=best,
        augmented_minus_best=arms[augmented].minus(arms[best]) if augmented else None,
        against_best_auc=_against_best_auc(arms, results.generators),
        against_others_auc=_against_others_auc(arms, results.generators),
    )


def _quality(results: Results, name: str) -> schema.GeneratorQuality:
    """Over folds and seeds: the mean of each measure; of judgements, also the interval that holds 95 % of the fits."""
    fits = [results.about[fold, seed][name]["quality"] for fold in results.folds for seed in results.seeds]

    def judgement(key: str) -> Score:
        values = np.array([np.mean(fit["judgements"][key]) for fit in fits])
        values = values[~np.isnan(values)]  # no real sample of a class to judge by
        if not len(values):
            return NOT_MEASURED
        interval = np.percentile(values, [2.5, 97.5]).tolist() if len(values) > 1 else None
        return Score(mean=float(values.mean()), ci95=interval, n=sum(fit["n"][JUDGEMENTS[key].of] for fit in fits))

    def against(kind: str, key: str) -> schema.Against:
        pairs = [fit["distances"][kind][key] for fit in fits]
        known = {side: [pair[side] for pair in pairs if pair[side] is not None] for side in ("synthetic", "floor")}
        return schema.Against(**{side: float(np.mean(values)) if values else None for side, values in known.items()})

    return schema.GeneratorQuality(
        options=fits[0]["options"],
        judgements={key: judgement(key) for key in JUDGEMENTS},
        distances={kind: {key: against(kind, key) for key in DISTANCES} for kind in results.plan.design.classes},
        cas=results.measured(f"arm/{name} alone").scores(),
        history=[results.about[fold, results.seeds[0]][name]["quality"]["history"] for fold in results.folds],
    )


def _control(results: Results) -> schema.Control:
    carried = [name for name in comparators("carried") if name in results.names()]
    names = ["real", *carried, *results.generators]
    arms = {name: results.control(name).scores() for name in names}
    return schema.Control(
        shuffled_labels=True,
        scores=arms["real"],
        arms={name: arms[name] for name in names if name != "real"},
        chance_inside=all(
            chance_inside(scores[name], MEASURES[name].chance) for scores in arms.values() for name in AGAINST_CHANCE
        ),
    )


def _curves(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """Calibration, ROC curve and confusion matrix of these arms."""
    units, classes = results.true.units, results.plan.design.classes
    logits = {name: results.unit_logits(f"arm/{name}") for name in names}
    counts = {name: confusion(each, units).tolist() for name, each in logits.items()}
    return {
        "calibration": {name: calibration(each, units.positive) for name, each in logits.items()},
        "roc": {name: roc_curve(each, units) for name, each in logits.items()},
        "confusion": {
            name: {true: dict(zip(classes, row, strict=True)) for true, row in zip(classes, rows, strict=True)}
            for name, rows in counts.items()
        },
    }


def _patients(results: Results, names: Sequence[str]) -> list[schema.PatientScore]:
    logits = {name: results.unit_logits(f"arm/{name}") for name in names}
    means = {name: (each.mean(axis=0), expit(each).mean(axis=0)) for name, each in logits.items()}
    labels = np.where(results.true.units.positive, *results.plan.design.classes)
    return [
        schema.PatientScore(
            patient=patient,
            fold=results.patient_fold[number],
            label=labels[number],
            answers={
                name: schema.PatientAnswer(logit=logit[number], probability=probability[number])
                for name, (logit, probability) in means.items()
            },
        )
        for number, patient in enumerate(results.patients)
    ]


@dataclass(frozen=True, eq=False)
class Labelling:
    """The test samples, and what is graded (patients, or these samples), with true or with shuffled labels."""

    samples: Units
    units: Units
    draws: Floats


class Results:
    """What all folds answered.

    ``patients`` [P] are the test patients, and ``patient_fold`` [P] says in which fold each was tested. ``failed`` has
    the generators that failed in some fold, with the reason: they are not compared.
    """

    def __init__(self, plan: Plan, folds: Sequence[Fold], files: Files, scans: Sequence[CutScan]) -> None:
        self.plan, self.folds = plan, [fold.number for fold in folds]
        self.seeds = sorted({seed for _, seed in files})
        loaded = {key: [load_answers(path) for path in paths] for key, paths in files.items()}
        self.arrays = {key: {k: v for arrays, _ in each for k, v in arrays.items()} for key, each in loaded.items()}
        self.about = {key: {k: v for _, about in each for k, v in about.items()} for key, each in loaded.items()}
        self.failed: dict[str, str] = {}
        for key in sorted(self.about, reverse=True):  # the reason in the first fold stays
            self.failed |= {name: about["failed"] for name, about in self.about[key].items() if "failed" in about}
        self.generators = [each.name for each in plan.generators if each.name not in self.failed]
        tested_in = {p: fold.number for fold in folds for p, part in fold.split.items() if part == "test"}
        self.patients = sorted(tested_in)
        self.patient_fold = np.array([tested_in[patient] for patient in self.patients])
        self._label(folds, {scan.patient: str(scan.label) for scan in scans})

    def _label(self, folds: Sequence[Fold], grade_of: Mapping[str, str]) -> None:
        """Lay the folds' test samples side by side, with true labels and with those that each seed shuffled."""
        task = self.plan.design.task
        of_fold = [samples_of(self.plan, FeatureStore(fold.features(self.plan))) for fold in folds]
        tested = [
            np.searchsorted(index, self.arrays[fold, self.seeds[0]]["index"])
            for fold, (_, index) in zip(self.folds, of_fold, strict=True)
        ]
        names = np.concatenate([samples.patients[some] for (samples, _), some in zip(of_fold, tested, strict=True)])
        self.patient_of = np.searchsorted(self.patients, names)
        fold_of = np.repeat(self.folds, list(map(len, tested)))

        def labelling(labels: Sequence[Indices]) -> Labelling:
            of_sample = np.concatenate([every[some] for every, some in zip(labels, tested, strict=True)])
            samples = Units(of_sample == 0, self.patient_of, fold_of)
            if task == "tumour":
                return Labelling(samples, samples, bootstrap(np.zeros(len(self.patients))))
            # a patient in whom no tumour was found has no sample: the scan has the grade
            label_of = {name: CLASSES.index(grade_of[name]) for name in self.patients}
            for (fold_samples, _), every in zip(of_fold, labels, strict=True):
                label_of |= dict(zip(map(str, fold_samples.patients), map(int, every), strict=True))
            of_patient = np.array([label_of[name] for name in self.patients])
            patients = Units(of_patient == 0, np.arange(len(of_patient)), self.patient_fold)
            return Labelling(samples, patients, bootstrap(of_patient))

        self.true = labelling([samples.labels for samples, _ in of_fold])
        self.shuffled = {
            seed: labelling([shuffled_labels(samples, task, seed) for samples, _ in of_fold]) for seed in self.seeds
        }

    def names(self) -> list[str]:
        """The arms, without the generators that failed."""
        first = self.arrays[self.folds[0], self.seeds[0]]
        names = [key.removeprefix("arm/") for key in first if key.startswith("arm/")]
        return [name for name in names if name.partition("@")[0] not in self.failed and not name.endswith(" alone")]

    def logits(self, key: str) -> Floats:
        """Of the test samples of all folds by seed [S, N]; a seed is left out if one of its folds lacks the arm."""
        rows = [np.concatenate([self.arrays[fold, seed][key] for fold in self.folds]) for seed in self.seeds_of(key)]
        return np.stack(rows) if rows else np.zeros((0, len(self.patient_of)))

    def seeds_of(self, key: str) -> list[int]:
        """The seeds in all of whose folds the arm is."""
        return [seed for seed in self.seeds if all(key in self.arrays[fold, seed] for fold in self.folds)]

    def unit_logits(self, key: str) -> Floats:
        """Of the units that are graded by seed [S, U]."""
        logits = self.logits(key)
        by_patient = self.plan.design.task == "grade"
        return mean_by_patient(logits, self.patient_of, len(self.patients)) if by_patient else logits

    def measured(self, key: str) -> Measured:
        """The measures of an arm."""
        return measure(self.unit_logits(key), self.true.units, self.true.draws)

    def control(self, name: str) -> Measured:
        """The measures of an arm on shuffled labels, each seed's by its own."""
        key = f"control/{name}"
        labellings = [self.shuffled[seed] for seed in self.seeds_of(key)]
        return mean_of(
            [
                measure(logits, labelling.units, labelling.draws)
                for logits, labelling in zip(self.unit_logits(key), labellings, strict=True)
            ]
        )

    def slice_scores(self, arm: str) -> dict[str, Score]:
        """The scores of an arm over the test samples, as in the paper."""
        return measure(self.logits(f"arm/{arm}"), self.true.samples, self.true.draws).scores(OVER_SLICES)
