"""Baseline generators, which a GAN must beat. All work on principal components.

- ``gaussian`` draws from each class's Gaussian, whose covariance is shrunk (Ledoit and Wolf 2004);
- ``smote`` draws between a sample and one of its nearest neighbours of the class (Chawla et al. 2002);
- ``transfer`` adds to a sample the difference of two samples of the class that has most: in what that class varies, the
  class of few patients does too (Hariharan and Girshick 2017);
- ``mixup`` mixes two samples of one class and of different patients, by a beta distribution (Zhang et al. 2018). It
  mixes within the class because the classifier learns from hard labels.

``smote``, ``transfer`` and ``mixup`` contain the scores of all training samples, and their features resemble those of
real patients.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from gliaflow_plugins.contracts import FeatureSource, FitContext, Fitted, Options


class BaselineOptions(Options):
    """Options of all baselines."""

    dims: int = Field(default=64, ge=1, le=1024, description="principal components of the maps that are kept")


class SMOTEOptions(BaselineOptions):
    """Options of ``smote``."""

    neighbours: int = Field(default=5, ge=1, description="nearest samples of the class, of which one is drawn")


class MixupOptions(BaselineOptions):
    """Options of ``mixup``."""

    alpha: float = Field(default=0.4, gt=0, description="both parameters of the beta distribution of the share")


class Baseline:
    """A variant that draws the scores of principal components. See ``GeneratorVariant``."""

    name: ClassVar[str]
    options: ClassVar[type[BaseModel]] = BaselineOptions
    sampler: ClassVar[str]
    """The class in ``networks.principal_components`` that draws the scores."""

    def fit(self, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError if a class has no sample, or there are fewer than two."""
        from gliaflow_plugins.networks import principal_components as networks

        training = networks.training_scores(features, options.dims, context.seed)
        sampler = getattr(networks, self.sampler)(training, options)
        return Fitted(sampler.nz, networks.Chain(sampler, training.space), networks.StatisticsCritic(features))


class Gaussian(Baseline):
    name, sampler = "gaussian", "GaussianSampler"


class SMOTE(Baseline):
    name, sampler = "smote", "NeighbourSampler"
    options = SMOTEOptions


class Transfer(Baseline):
    name, sampler = "transfer", "TransferSampler"


class Mixup(Baseline):
    name, sampler = "mixup", "MixupSampler"
    options = MixupOptions
