"""The classifiers that are fitted on one choice of training samples, and their logits of the test samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from gliaflow_plugins.contracts import FeatureSource, FitContext, FitSamples, Fitted, parse_options
from gliaflow_plugins.features import Joined
from gliaflow_plugins.networks.cnn import slice_logits
from gliaflow_plugins.networks.pooled_classifier import PooledClassifier, statistics
from gliaflow_plugins.networks.shared_covariance import Labelled, Unlabelled, fit_shared
from gliaflow_plugins.registry import Registry
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.inference import Network
from gliaflow_store.feature_store import Samples
from gliaflow_trainer.features import FeaturesWithSlices
from gliaflow_trainer.synthetic import draw, shares
from gliaflow_trainer.variants import fit_classifier, fit_generator
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn

from gliaflow_evaluation.measures import Floats, mean_by_patient
from gliaflow_evaluation.progress import report
from gliaflow_evaluation.protocol import Plan, PlannedVariant
from gliaflow_evaluation.samples import Parts
from gliaflow_evaluation.threshold import balanced_offset


@dataclass(frozen=True)
class FitSetting:
    """What all fits of one fold and seed share."""

    plan: Plan
    registry: Registry
    seed: int
    bundle: Bundle | None = None  # whose U-Net the features come from
    slices: Mapping[str, int] = field(default_factory=dict)  # the number of each patient's slices
    row: str = ""  # the name of these fits in the progress

    @property
    def context(self) -> FitContext:
        """What a plugin's fit is passed."""
        return FitContext(self.seed, self.plan.device)


class FittedArm:
    """A classifier that was fitted in some ``Arms``, and its logits."""

    def __init__(self, arms: Arms, module: nn.Module) -> None:
        self._arms, self._module = arms, module
        self._known: dict[str, Floats] = {}

    def logits(self, part: str) -> Floats:
        """Of the samples of ``train``, ``validation`` or ``test`` [n]."""
        if part not in self._known:
            self._known[part] = self.logits_of(self._arms.parts[part])
        return self._known[part]

    def logits_of(self, samples: FeatureSource) -> Floats:
        """Of any samples [n]."""
        if isinstance(self._module, PooledClassifier):  # pooled once for all classifiers
            with torch.inference_mode():
                logits: NDArray[np.float32] = self._module.grade(torch.from_numpy(statistics(samples))).numpy()
        else:
            device = self._arms.setting.plan.device
            logits = slice_logits(self._module.to(device), samples, np.arange(len(samples)), device)
        return logits.astype(np.float64)

    @cached_property
    def offset(self) -> float:
        """What moves the threshold to where training and validation patients put it; one rule for all arms."""
        return balanced_offset(*self._units("train", "validation"))

    @property
    def shifted(self) -> Floats:
        """The logits of the test samples with the threshold moved."""
        return self.logits("test") + self.offset

    @property
    def validation_score(self) -> float:
        """The mean of balanced accuracy and AUC over the validation units, with the threshold moved."""
        logits, positive = self._units("validation")
        if len(np.unique(positive)) < 2:
            return 0.0
        right = balanced_accuracy_score(positive, logits + self.offset > 0)
        return float(right + roc_auc_score(positive, logits)) / 2

    def _units(self, *parts: str) -> tuple[Floats, NDArray[np.bool_]]:
        """Logits and classes of the units of these parts: patients by their mean logit, or slices."""
        samples = self._arms.samples.select(np.concatenate([self._arms.index[part] for part in parts]))
        logits = np.concatenate([self.logits(part) for part in parts])
        positive = samples.labels == 0
        if self._arms.setting.plan.design.task == "tumour":
            return logits, positive
        _, first, of = np.unique(samples.patients, return_index=True, return_inverse=True)
        return mean_by_patient(logits, of, len(first))[0], positive[first]


class _Served(nn.Module):
    """A bundle's classifier, as the pipeline runs it: features [n, C, H, W] → logits [n]."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__()
        self._network = Network(bundle, "classifier", ["logit"], threads=threads)

    def forward(self, features: Tensor) -> Tensor:
        (logit,) = self._network(features=features.cpu().numpy())
        return torch.from_numpy(logit.reshape(len(features)))


class Arms:
    """Fits classifiers and generators on one choice of training samples.

    Parameters
    ----------
    samples: of the task.
    index: which of them to learn from, to choose with, and to measure on.
    unlabelled: samples of other patients, whose labels mean nothing.
    source: labelled samples of another cohort.
    """

    def __init__(
        self,
        setting: FitSetting,
        samples: Samples,
        index: Parts,
        unlabelled: Samples | None = None,
        source: Samples | None = None,
    ) -> None:
        self.setting, self.samples, self.index = setting, samples, index
        self.unlabelled, self.source = unlabelled, source
        self.parts = {which: samples.select(some) for which, some in index.items()}
        self.train, self.test = self.parts["train"], self.parts["test"]

    @cached_property
    def real(self) -> FittedArm:
        """Fitted on real features alone."""
        return self.fit()

    @cached_property
    def weighted(self) -> FittedArm:
        """Fitted on real features alone, with class weights."""
        return self.fit(weights="balanced")

    def labelled(self, which: str) -> Labelled:
        """The statistics, labels and patients of a part."""
        part = self.parts[which]
        return Labelled(statistics(part), part.labels, part.patients)

    @property
    def without_labels(self) -> Samples:
        """The samples of scans without labels. Raises ValueError: there are no such scans."""
        if self.unlabelled is None:
            raise ValueError("this run has no scans without labels")
        return self.unlabelled

    @property
    def of_source(self) -> Samples:
        """The samples of another cohort. Raises ValueError: there is none."""
        if self.source is None:
            raise ValueError("this run has no labelled scans of another cohort")
        return self.source

    def shared(self, unlabelled: Samples | None = None) -> FittedArm:
        """The classifier ``shared`` on real features, and on samples without labels."""
        without = Unlabelled(statistics(unlabelled), unlabelled.patients) if unlabelled is not None else None
        return FittedArm(self, fit_shared(self.labelled("train"), self.labelled("validation"), without))

    @cached_property
    def of_bundle(self) -> FittedArm:
        """The classifier of the bundle whose U-Net is used. Raises ValueError: no bundle's is."""
        if self.setting.bundle is None:
            raise ValueError("this run has no bundle")
        return FittedArm(self, _Served(self.setting.bundle, self.setting.plan.threads))

    def fit(
        self,
        more: FeatureSource | None = None,
        weights: Literal["balanced"] | None = None,
        alone: bool = False,
        of_patients: bool = False,
    ) -> FittedArm:
        """A classifier fitted on the training samples and ``more``.

        Parameters
        ----------
        alone: on ``more`` only.
        of_patients: ``more`` are samples of further patients, each of whom weighs as much as one of the training.
        """
        known = [self.train, self.parts["validation"]]  # a plugin can read all it is given: no test samples
        source = Joined(*known, *([more] if more is not None else []))
        ends = np.cumsum([0, *(len(part) for part in source.sources)])
        learn, choose, *added = (np.arange(*between) for between in pairwise(ends))
        # an added sample has no patient: it counts as much as the average one, also where it repeats a real one
        added_of = [""] * (len(source) - ends[2])
        if of_patients and isinstance(more, Samples):  # another cohort may have used the same names
            added_of = [f"another cohort: {patient}" for patient in more.patients]
        patients = [*(str(patient) for part in known for patient in part.patients), *added_of]
        planned = self.setting.plan.classifier
        variant = self.setting.registry.classifier(planned.name)
        samples = FitSamples(np.concatenate([*([] if alone else [learn]), *added]), choose, patients, weights)
        options = parse_options(variant, planned.options)
        return FittedArm(self, fit_classifier(variant, source, options, samples, self.setting.context).module)

    def fit_generator(self, planned: PlannedVariant) -> Fitted:
        """A generator fitted on the training samples."""
        variant = self.setting.registry.generator(planned.name)
        source: FeatureSource = self.train
        plan = self.setting.plan
        if self.setting.bundle is not None:  # the slices of the samples are known
            source = FeaturesWithSlices(self.train, plan.slices, self.setting.bundle, plan.profile.cropped)
        row = self.setting.row
        context = replace(
            self.setting.context,
            progress=lambda epoch, epochs, _: report(row, "epochs", epoch, epochs),
            source=self.source if planned.source else None,
        )
        return fit_generator(variant, source, parse_options(variant, planned.options), context)

    def draw(self, fitted: Fitted, counts: Mapping[int, int], judged: bool = True) -> FeatureSource:
        """Synthetic samples, so many of each class. Raises PluginError where the critic accepts too few."""
        return draw(fitted, counts, self.setting.seed, self.samples.classes, judged)

    def missing(self) -> dict[int, int]:
        """How many fewer samples each class has than the larger one."""
        have = np.bincount(self.train.labels, minlength=2)
        return {label: int(have.max() - number) for label, number in enumerate(have)}

    def shares(self, count: int) -> dict[int, int]:
        """``count`` synthetic samples by class: the rare class until both have as many, then both."""
        return shares(self.train.labels, count)
