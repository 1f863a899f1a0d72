"""The arms with one generator's synthetic features, and how good these features are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import Fitted
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.networks.pooled_classifier import fit_pooled, statistics
from gliaflow_store.feature_store import Samples
from gliaflow_trainer.synthetic import synthetic
from numpy.typing import NDArray

from gliaflow_evaluation.arms import Arms, FittedArm
from gliaflow_evaluation.generator_quality import distances, pool
from gliaflow_evaluation.judges import JUDGEMENTS, Judgement, share_right
from gliaflow_evaluation.measures import Floats

JUDGED = 400  # synthetic samples of each class by which a generator is judged
SHOWN = 4  # samples, and channels, of the feature maps in the report


def augmented(arms: Arms, name: str, fitted: Fitted) -> dict[str, Floats]:
    """``NAME@COUNT`` for each count, and ``NAME``: the one whose count the validation patients chose."""
    counts = sorted(set(arms.setting.plan.design.counts) - {0})
    by_count = {count: arms.fit(arms.draw(fitted, arms.shares(count))) for count in counts}
    best = max(counts, key=lambda count: (by_count[count].validation_score, -count))
    return {f"{name}@{count}": arm.shifted for count, arm in by_count.items()} | {name: by_count[best].shifted}


def with_most_samples(arms: Arms, fitted: Fitted) -> Floats:
    """The arm with the highest count: for the control with shuffled labels."""
    return arms.fit(arms.draw(fitted, arms.shares(max(arms.setting.plan.design.counts)))).shifted


class GeneratorSamples:
    """Samples of both classes that one generator made and its critic accepted, and what they show of it."""

    def __init__(self, arms: Arms, fitted: Fitted) -> None:
        self._arms = arms
        seed = arms.setting.seed
        drawn = [synthetic(fitted, label, JUDGED, 1000 + seed + label) for label in (0, 1)]
        self.maps, self.accepted = zip(*drawn, strict=True)
        self.labels = np.repeat([0, 1], [len(maps) for maps in self.maps])

    def alone(self) -> Floats:
        """The arm fitted on these samples alone (CAS); not graded where the critic accepted one class only."""
        arms = self._arms
        if len(set(self.labels)) < 2:
            return np.full(len(arms.test), np.nan)
        features = np.concatenate(self.maps).astype(np.float16)
        return arms.fit(ArrayFeatures(features, self.labels, arms.samples.classes), alone=True).logits("test")

    def quality(self) -> dict[str, Any]:
        """DISTANCES and JUDGEMENTS, by class, and how many features of each kind they count."""
        arms = self._arms
        pooled = np.concatenate([pool(maps) for maps in self.maps])
        known, held_out = ((_pooled(part), part.labels) for part in (arms.train, arms.test))
        judges = {"same": arms.weighted, "other": self._other_patients()}
        return {
            "distances": distances(known, held_out, (pooled, self.labels), arms.samples.classes, arms.setting.seed),
            "judgements": {
                name: [self._share(judgement, judges, label) for label in (0, 1)]
                for name, judgement in JUDGEMENTS.items()
            },
            "n": {"synthetic": len(self.labels), "test": len(arms.test), "train": len(arms.train)},
        }

    def figures(self) -> dict[str, NDArray[np.float32]]:
        """Feature maps for the report: the strongest channels of a few real samples and a few synthetic ones."""
        arms, shown = self._arms, {}
        channels = np.argsort(-_pooled(arms.train)[:, : arms.samples.shape[0]].mean(axis=0))[:SHOWN]
        for label, name in enumerate(arms.samples.classes):
            real = np.flatnonzero(arms.test.labels == label)
            real = real[:: max(1, len(real) // SHOWN)][:SHOWN]
            if len(real) and len(self.maps[label]):
                shown[f"real_{name}"] = arms.test.batch(real)[:, channels]
                shown[f"synthetic_{name}"] = self.maps[label][:SHOWN][:, channels]
        return shown

    def _share(self, judgement: Judgement, judges: Mapping[str, FittedArm | None], label: int) -> float:
        arms, maps = self._arms, self.maps[label]
        if judgement.judge == "critic":
            return float(self.accepted[label])
        judge = judges[judgement.judge]
        if judge is None:
            return float("nan")
        if judgement.of != "synthetic":
            return share_right(judge.logits(judgement.of)[arms.parts[judgement.of].labels == label], label)
        accepted = ArrayFeatures(maps, np.full(len(maps), label), arms.samples.classes)
        return share_right(judge.logits_of(accepted), label) if len(maps) else 0.0

    def _other_patients(self) -> FittedArm | None:
        """A classifier of validation and test patients; None where tumour was found in one of their classes only."""
        held_out = [self._arms.parts["validation"], self._arms.test]
        labels = np.concatenate([part.labels for part in held_out])
        if len(np.unique(labels)) < 2:
            return None
        patients = [str(patient) for part in held_out for patient in part.patients]
        known = np.concatenate([statistics(part) for part in held_out])
        return FittedArm(self._arms, fit_pooled(known, labels, patients, weights="balanced"))


def _pooled(samples: Samples) -> NDArray[np.float32]:
    every = np.arange(len(samples))
    starts = range(0, max(1, len(every)), 64)  # at least one batch, which has the width
    return np.concatenate([pool(samples.batch(every[start : start + 64])) for start in starts])
