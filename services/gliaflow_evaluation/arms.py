"""The arms of an evaluation: every classifier that is fitted on one choice of training samples, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from gliaflow_plugins.contracts import FeatureSource, Fitted, PluginError, parse_options
from gliaflow_plugins.features import ArrayFeatures, Joined
from gliaflow_plugins.networks.cnn import slice_logits
from gliaflow_plugins.networks.pooled_classifier import PooledClassifier, fit_pooled, statistics
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import Samples
from gliaflow_trainer.slice_features import Imaged
from gliaflow_trainer.steps import synthetic
from gliaflow_trainer.variants import fit_classifier, fit_generator
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

from gliaflow_evaluation.comparators import PLAIN, balanced_offset, linear_grader, number_grader, oversampled
from gliaflow_evaluation.generator_quality import gan_measures, pool
from gliaflow_evaluation.measures import mean_by_patient
from gliaflow_evaluation.protocol import Plan

MANY = 2000  # training samples that the paper's linear model, which holds all of them, is given at most
MEASURED = 400  # synthetic samples of a class that are measured
ACCURACIES = tuple(f"accuracy_{by}" for by in ("critic", "unseen", "unseen_real", "others", "others_real"))


class Arms:
    """All that is fitted on one choice of training samples, and the logits of the test samples by each.

    Parameters
    ----------
    samples: of the task.
    here: which of them to learn from, to choose with, and to measure on.
    slices: how many each patient's scans have.
    bundle: whose U-Net the features come from.
    """

    def __init__(
        self,
        plan: Plan,
        samples: Samples,
        here: Mapping[str, NDArray[np.int64]],
        seed: int,
        slices: Mapping[str, int] | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        self.plan, self.samples, self.here, self.seed, self.slices = plan, samples, here, seed, slices or {}
        self.bundle = bundle
        self.parts = {which: samples.select(index) for which, index in here.items()}
        self.train, self.test = self.parts["train"], self.parts["test"]
        self.gan: dict[str, Any] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.chosen: dict[str, int] = {}
        self.figures: dict[str, NDArray[np.float32]] = {}

    def without(self, quality: bool = False) -> dict[str, NDArray[np.float64]]:
        """Every arm but the generators'; with ``quality`` also those that must not grade well."""
        real = self._grade()
        found = {"real": self._test(real), "weights": self._test(self._weighted)}
        found["threshold"] = found["real"] + self._offset(real)
        repeated = self._grade(self.train.select(oversampled(self.train.labels, self.seed)))
        found["oversample"] = self._test(repeated) + self._offset(repeated)
        for plain in PLAIN:
            fitted = plain.fit(self.train, plain.options(), seed=self.seed, device=self.plan.device)
            classifier = self._grade(self._draw(fitted, self._missing(), judged=False))
            found[plain.name] = self._test(classifier) + self._offset(classifier)
        if quality:
            some = np.sort(np.random.default_rng(self.seed).permutation(len(self.train))[:MANY])
            maps = self.train.batch(some).astype(np.float16)
            found["linear"] = linear_grader(maps, self.train.labels[some])(self.test.batch(np.arange(len(self.test))))
            if self.plan.task == "grade":
                found |= self._numbers()
        return found

    def control(self) -> dict[str, NDArray[np.float64]]:
        """What shuffled labels are put to: real features alone."""
        return {"real": self._test(self._grade())}

    def generator_control(self, name: str, options: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
        """What shuffled labels are put to: the generator's arm with the most samples."""
        classifier = self._grade(self._draw(self._fitted(name, options), self._shares(max(self.plan.counts))))
        return {name: self._test(classifier) + self._offset(classifier)}

    def _grade(
        self, more: FeatureSource | None = None, weights: Literal["balanced"] | None = None, alone: bool = False
    ) -> nn.Module:
        """A classifier fitted on the training samples and ``more``; ``alone``: on the latter only."""
        parts = [self.train, self.parts["validation"]]  # a plugin may look at all that it is given: nothing of the test
        source = Joined(*parts, *([more] if more is not None else []))
        ends = np.cumsum([0, *(len(part) for part in source.sources)])
        learn, choose, *added = (np.arange(*between) for between in pairwise(ends))
        # a repeated sample, too, counts as the average one does
        patients = [*(str(patient) for part in parts for patient in part.patients), *[""] * (len(source) - ends[2])]
        name, options = self.plan.classifier
        variant = load_registry().classifier(name)
        return fit_classifier(
            variant,
            source,
            parse_options(variant, options),
            learn=np.concatenate([*([] if alone else [learn]), *added]),
            choose=choose,
            patients=patients,
            weights=weights,
            seed=self.seed,
            device=self.plan.device,
        ).module

    def _score(self, module: nn.Module, offset: float) -> float:
        """The mean of balanced accuracy and AUC over the validation units."""
        logits, positive = self._units(module, "validation")
        if len(np.unique(positive)) < 2:
            return 0.0
        return float(balanced_accuracy_score(positive, logits + offset > 0) + roc_auc_score(positive, logits)) / 2

    def _test(self, module: nn.Module) -> NDArray[np.float64]:
        return self._logits(module, "test").astype(np.float64)

    def _logits(self, module: nn.Module, which: str) -> NDArray[np.float32]:
        samples = self.parts[which]
        if isinstance(module, PooledClassifier):
            with torch.inference_mode():
                graded: NDArray[np.float32] = module.grade(torch.from_numpy(statistics(samples))).numpy()
            return graded
        return slice_logits(module, samples, np.arange(len(samples)), self.plan.device)

    def _units(self, module: nn.Module, *parts: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Logits and classes of the units of these parts: patients by their mean logit, or slices."""
        index = np.concatenate([self.here[part] for part in parts])
        logits = np.concatenate([self._logits(module, part) for part in parts]).astype(np.float64)
        positive = self.samples.labels[index] == 0
        if self.plan.task == "tumour":
            return logits, positive
        _, first, of = np.unique(self.samples.patients[index], return_index=True, return_inverse=True)
        return mean_by_patient(logits, of, len(first))[0], positive[first]

    def _offset(self, module: nn.Module) -> float:
        """Where between the classes the line lies, real patients say: the same rule for every arm that has one."""
        return balanced_offset(*self._units(module, "train", "validation"))

    def _missing(self) -> dict[int, int]:
        """How many samples each class lacks beside the larger one."""
        have = np.bincount(self.train.labels, minlength=2)
        return {label: int(have.max() - number) for label, number in enumerate(have)}

    def _shares(self, count: int) -> dict[int, int]:
        """``count`` synthetic samples by class: the rare class until both are alike, then both."""
        missing = self._missing()
        rare = max(missing, key=lambda label: missing[label])
        first = min(count, missing[rare])
        return {rare: first + (count - first + 1) // 2, 1 - rare: (count - first) // 2}

    @cached_property
    def _learnt_from(self) -> FeatureSource:
        """The training samples, with their slices where these are known."""
        if self.bundle is None:
            return self.train
        return Imaged(self.train, self.plan.work / "slices", self.bundle, self.plan.profile.cropped)

    @cached_property
    def _weighted(self) -> nn.Module:
        return self._grade(weights="balanced")

    def _fitted(self, name: str, options: Mapping[str, Any]) -> Fitted:
        variant = load_registry().generator(name)
        chosen = parse_options(variant, options)
        self.options[name] = chosen.model_dump(mode="json")
        return fit_generator(variant, self._learnt_from, chosen, seed=self.seed, device=self.plan.device)

    def _draw(self, fitted: Fitted, counts: Mapping[int, int], judged: bool = True) -> FeatureSource:
        """So many synthetic samples of each class. Raises PluginError where the critic accepts too few."""
        made = {}
        for label, count in counts.items():
            maps, accepted = synthetic(fitted, label, count, self.seed + label, judged)
            if len(maps) < count:
                kind = self.samples.classes[label]
                raise PluginError(f"of what it makes for {kind} its critic puts {accepted:.0%} there: too few samples")
            made[label] = maps.astype(np.float16)
        labels = np.repeat(list(made), [len(maps) for maps in made.values()])
        return ArrayFeatures(np.concatenate(list(made.values())), labels, self.samples.classes)

    def with_generator(
        self, name: str, options: Mapping[str, Any], quality: bool = False
    ) -> dict[str, NDArray[np.float64]]:
        """An arm for each count, and the one whose count the validation patients chose.

        With ``quality`` the generator is measured too, and there is the arm that is fitted on its samples alone.
        """
        fitted = self._fitted(name, options)
        counts = sorted(set(self.plan.counts) - {0})
        found, scores = {}, {}
        for count in counts:
            classifier = self._grade(self._draw(fitted, self._shares(count)))
            offset = self._offset(classifier)
            scores[count] = self._score(classifier, offset)
            found[f"{name}@{count}"] = self._test(classifier) + offset
        best = max(counts, key=lambda count: (scores[count], -count))
        self.chosen[name] = best
        found[name] = found[f"{name}@{best}"]
        if quality:
            found |= self._quality(name, fitted, self._weighted)
        return found

    def _quality(self, name: str, fitted: Fitted, unseen: nn.Module) -> dict[str, NDArray[np.float64]]:
        """Measure the generator; gives the arm that is fitted on synthetic features alone (CAS)."""
        others = self._others()
        of_test = self._logits(unseen, "test")
        of_train = self._logits(others, "train") if others is not None else np.zeros(len(self.train)) * np.nan
        made: list[NDArray[np.float32]] = []
        shares: dict[str, list[float]] = {accuracy: [] for accuracy in ACCURACIES}
        for label in (0, 1):
            maps, accepted = synthetic(fitted, label, MEASURED, 1000 + self.seed + label)
            made.append(maps)
            found = (
                accepted,
                _share_right(_logits(unseen, maps), label) if len(maps) else 0.0,  # none of a class: none is right
                _share_right(of_test[self.test.labels == label], label),
                (_share_right(_logits(others, maps), label) if len(maps) else 0.0) if others is not None else np.nan,
                _share_right(of_train[self.train.labels == label], label),
            )
            for accuracy, share in zip(ACCURACIES, found, strict=True):
                shares[accuracy].append(float(share))
        labels = np.repeat([0, 1], [len(maps) for maps in made])
        known = _pooled(self.train)
        self.gan[name] = {
            **shares,
            "samples": len(labels),
            "tested": len(self.test),
            "learnt": len(self.train),
            "options": self.options[name],
            "per_class": gan_measures(
                (known, self.train.labels),
                (_pooled(self.test), self.test.labels),
                (np.concatenate([pool(maps) for maps in made]), labels),
                self.samples.classes,
                seed=self.seed,
            ),
            "history": fitted.history,
        }
        for label, kind in enumerate(self.samples.classes):
            real = np.flatnonzero(self.test.labels == label)
            real = real[:: max(1, len(real) // 4)][:4]
            channels = np.argsort(-known[:, : self.samples.shape[0]].mean(axis=0))[:4]
            if len(real) and len(made[label]):
                self.figures[f"{name}/real_{kind}"] = self.test.batch(real)[:, channels]
                self.figures[f"{name}/synthetic_{kind}"] = made[label][:4][:, channels]
        if len(set(labels)) < 2:  # its critic accepts one class only: nothing to learn from, so nothing is graded
            return {f"{name} alone": np.full(len(self.test), np.nan)}
        alone = ArrayFeatures(np.concatenate(made).astype(np.float16), labels, self.samples.classes)
        return {f"{name} alone": self._test(self._grade(alone, alone=True))}

    def _others(self) -> PooledClassifier | None:
        """A judge of synthetic features that saw none, nor any patient whom the generator learnt from.

        None where tumour was found in one class of these other patients only.
        """
        held = [self.parts["validation"], self.test]
        labels = np.concatenate([part.labels for part in held])
        if len(np.unique(labels)) < 2:
            return None
        patients = [str(patient) for part in held for patient in part.patients]
        return fit_pooled(np.concatenate([statistics(part) for part in held]), labels, patients, weights="balanced")

    def _numbers(self) -> dict[str, NDArray[np.float64]]:
        """The tumour's size alone, and the number of slices alone, as the logit of each of a patient's slices."""
        found = {}
        names, of = np.unique(self.samples.patients, return_inverse=True)
        size = np.log1p(np.bincount(of, self.samples.tumour.astype(np.float64)))
        slices = np.array([self.slices[name] for name in names], dtype=np.float64)
        first = np.array([np.flatnonzero(of == p)[0] for p in range(len(names))])
        positive = self.samples.labels[first] == 0
        learnt = np.unique(of[self.here["train"]])
        for name, number in (("size", size), ("slices", slices)):
            found[name] = number_grader(number[learnt], positive[learnt])(number)[of[self.here["test"]]]
        return found


def _pooled(samples: Samples) -> NDArray[np.float32]:
    every = np.arange(len(samples))
    starts = range(0, max(1, len(every)), 64)  # of no samples, too, the width is told
    return np.concatenate([pool(samples.batch(every[start : start + 64])) for start in starts])


def _share_right(logits: NDArray[np.floating], label: int) -> float:
    """Of logits [n]; NaN where there are none, or where they are not known."""
    return float(((logits < 0) == bool(label)).mean()) if len(logits) and not np.isnan(logits).all() else float("nan")


def _logits(module: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(features[start : start + 64])).numpy() for start in range(0, len(features), 64)
        ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
