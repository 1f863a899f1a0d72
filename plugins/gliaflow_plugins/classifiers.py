"""The classifiers of features that ship. Each imports torch in ``fit`` only."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from gliaflow_plugins.contracts import FeatureSource, FitContext, FitSamples, FittedClassifier, Options


class PooledOptions(Options):
    """Options of ``pooled``."""

    penalty: float = Field(
        default=0.01, ge=0, description="weight of the squared weights, beside a patient's mean loss"
    )


class Pooled:
    """A linear layer on the statistics of the features within the tumour (``networks.pooled_classifier``)."""

    name = "pooled"
    options = PooledOptions

    def fit(self, features: FeatureSource, options: Any, samples: FitSamples, context: FitContext) -> FittedClassifier:
        """See ``ClassifierVariant.fit``. Raises ValueError if the samples are all of one class."""
        from gliaflow_plugins.networks.pooled_classifier import fit_pooled, statistics

        learn = samples.learn
        table, patients = statistics(features)[learn], [samples.patients[index] for index in learn]
        return FittedClassifier(
            fit_pooled(table, features.labels[learn], patients, weights=samples.weights, penalty=options.penalty)
        )


class Shared:
    """A linear discriminant of the same statistics, with one covariance for both classes: for few patients of a class.

    Scans without labels are a part of it, if there are any (``networks.shared_covariance``).
    """

    name = "shared"
    options = Options
    unlabelled = True

    def fit(self, features: FeatureSource, options: Any, samples: FitSamples, context: FitContext) -> FittedClassifier:
        """See ``ClassifierVariant.fit``. Raises ValueError if the samples are all of one class."""
        from gliaflow_plugins.networks.pooled_classifier import statistics
        from gliaflow_plugins.networks.shared_covariance import Labelled, Unlabelled, fit_shared

        table, patients = statistics(features), np.asarray(samples.patients, dtype=np.str_)
        learn, choose = (
            Labelled(table[some], features.labels[some], patients[some]) for some in (samples.learn, samples.choose)
        )
        without = samples.unlabelled
        return FittedClassifier(fit_shared(learn, choose, Unlabelled(table[without], patients[without])))


class CNNOptions(Options):
    """Options of ``cnn``."""

    epochs: int = Field(default=30, ge=1, description="epochs at most")
    patience: int = Field(default=8, ge=1, description="epochs without a better one before the fit stops")
    learning_rate: float = Field(default=1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(default=1e-2, ge=0, description="weight decay of AdamW")
    batch: int = Field(default=32, ge=2, description="features a step")


class CNN:
    """The paper's classifier (section 3.3): a small CNN on the feature maps of a slice (``networks.cnn``)."""

    name = "cnn"
    options = CNNOptions

    def fit(self, features: FeatureSource, options: Any, samples: FitSamples, context: FitContext) -> FittedClassifier:
        """See ``ClassifierVariant.fit``. Raises ValueError if the samples are all of one class."""
        from gliaflow_plugins.networks.cnn import fit_cnn

        return FittedClassifier(*fit_cnn(features, options, samples, context))
