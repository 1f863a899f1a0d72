"""Plain ways to more samples, by the same interface: what a GAN must beat. All work on principal components.

- ``gaussian`` draws from each class's Gaussian, its covariance shrunk (Ledoit and Wolf 2004);
- ``smote`` lies between a sample and one of its nearest of the class (Chawla et al. 2002);
- ``mixup`` mixes two samples of one class and of different patients, by a beta distribution (Zhang et al. 2018). It
  mixes within the class since the classifier is taught hard labels.

The last two hold the scores of all training samples, and what is made from them is near to real patients' features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from gliaflow_plugins.contracts import FeatureSource, Fitted, Options

if TYPE_CHECKING:
    from gliaflow_plugins.networks.principal_components import Known, Scores


class PlainOptions(Options):
    """Of all three."""

    dims: int = Field(default=64, ge=1, le=1024, description="principal components of the maps that are kept")


class SMOTEOptions(PlainOptions):
    """Of ``smote``."""

    neighbours: int = Field(default=5, ge=1, description="nearest samples of the class, of which one is drawn")


class MixupOptions(PlainOptions):
    """Of ``mixup``."""

    alpha: float = Field(default=0.4, gt=0, description="both parameters of the beta distribution of the share")


class Plain(ABC):
    """A variant that draws principal components' scores; see ``GeneratorVariant``."""

    name: ClassVar[str]
    options: ClassVar[type[BaseModel]] = PlainOptions

    @abstractmethod
    def drawn(self, known: Known, options: Any) -> Scores:
        """z [n, nz], label [n] → scores [n, k]."""

    def fit(self, features: FeatureSource, options: Any, *, seed: int, **_: Any) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError where a class has no sample, or there are fewer than two."""
        from gliaflow_plugins.networks.principal_components import Critic, Generator, known_of  # torch comes with these

        known = known_of(features, options.dims, seed)
        drawn = self.drawn(known, options)
        return Fitted(drawn.nz, Generator(drawn, known.space), Critic(features))


class Gaussian(Plain):
    name = "gaussian"

    def drawn(self, known: Known, options: Any) -> Scores:
        from gliaflow_plugins.networks.principal_components import GaussianScores

        return GaussianScores(known)


class SMOTE(Plain):
    name = "smote"
    options = SMOTEOptions

    def drawn(self, known: Known, options: Any) -> Scores:
        from gliaflow_plugins.networks.principal_components import NeighbourScores

        return NeighbourScores(known, options.neighbours)


class Mixup(Plain):
    name = "mixup"
    options = MixupOptions

    def drawn(self, known: Known, options: Any) -> Scores:
        from gliaflow_plugins.networks.principal_components import MixedScores

        return MixedScores(known, options.alpha)
