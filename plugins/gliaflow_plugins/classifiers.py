"""Classifiers of features: what a variant is given, and what it leaves behind. The two that ship.

A variant is fitted with torch, which is imported then and not before. What it leaves is exported to ONNX and served
without torch and without the variant's code:

    classifier.onnx   features [n, C, H, W] float32  →  logit [n] float32, positive: the first class (HGG)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from gliaflow_plugins.base import Options
from gliaflow_plugins.generators import FeatureSource, Progress

if TYPE_CHECKING:
    from torch import nn


@dataclass
class FittedClassifier:
    """A torch module with the signature above, on the CPU; the figures of each epoch."""

    module: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module.eval()


@runtime_checkable
class ClassifierVariant(Protocol):
    """A way of learning to grade, chosen by ``name`` and set by ``options`` (a pydantic model class)."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def fit(
        self,
        features: FeatureSource,
        options: Any,
        *,
        learn: NDArray[np.int64],
        choose: NDArray[np.int64],
        patients: Sequence[str],
        weights: Literal["balanced"] | None,
        seed: int,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> FittedClassifier:
        """Learn from the samples of ``features`` at ``learn``.

        Parameters
        ----------
        options: an instance of ``self.options``.
        choose: samples of other patients, by which an epoch may be chosen; there may be none.
        patients: whose each sample of ``features`` is [N]; empty: synthetic.
        weights: "balanced": both classes are to count alike, however many samples they have.
        seed: the same seed, features and options give the same network on the same machine.
        device: a torch device, "cpu" or "cuda".
        """
        ...


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
        from gliaflow_plugins.pooled_classifier import fit_pooled, statistics

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
        from gliaflow_plugins.cnn import fit_classifier

        return FittedClassifier(*fit_classifier(features, learn, choose, patients, **how, **options.model_dump()))
