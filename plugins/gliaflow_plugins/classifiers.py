"""Classifiers of features: what a variant is given, and what it leaves behind. The two that ship.

A variant is fitted with torch, which is imported then and not before. What it leaves is exported to ONNX and served
without torch and without the variant's code:

    classifier.onnx   features [n, C, H, W] float32  →  logit [n] float32, positive: the first class (HGG)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gliaflow_plugins.contracts import FeatureSource, FittedClassifier, Options

if TYPE_CHECKING:
    pass


class PooledOptions(Options):
    """Of ``pooled``."""

    penalty: float = Field(default=0.01, ge=0, description="of the squared weights, beside the mean loss of a patient")


class Pooled:
    """What features are like within the tumour, and a linear layer on that (``pooled_classifier``)."""

    name = "pooled"
    options = PooledOptions

    def fit(
        self,
        features: FeatureSource,
        options: Any,
        *,
        learn: NDArray[np.int64],
        patients: Sequence[str],
        weights: Literal["balanced"] | None,
        **_: Any,
    ) -> FittedClassifier:
        """See ``ClassifierVariant.fit``. Raises ValueError where the samples are all of one class."""
        from gliaflow_plugins.networks.pooled_classifier import fit_pooled, statistics

        known, whose = statistics(features)[learn], [patients[index] for index in learn]
        return FittedClassifier(
            fit_pooled(known, features.labels[learn], whose, weights=weights, penalty=options.penalty)
        )


class CNNOptions(Options):
    """Of ``cnn``."""

    epochs: int = Field(default=30, ge=1, description="at most")
    patience: int = Field(default=8, ge=1, description="epochs without a better one, after which it stops")
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW")
    batch: int = Field(default=32, ge=2, description="features a step")


class CNN:
    """The paper's classifier (section 3.3): a small CNN on the feature maps of a slice (``cnn``)."""

    name = "cnn"
    options = CNNOptions

    def fit(
        self,
        features: FeatureSource,
        options: Any,
        *,
        learn: NDArray[np.int64],
        choose: NDArray[np.int64],
        patients: Sequence[str],
        **how: Any,
    ) -> FittedClassifier:
        """See ``ClassifierVariant.fit``. Raises ValueError where the samples are all of one class."""
        from gliaflow_plugins.networks.cnn import fit_classifier

        return FittedClassifier(*fit_classifier(features, learn, choose, patients, **how, **options.model_dump()))
