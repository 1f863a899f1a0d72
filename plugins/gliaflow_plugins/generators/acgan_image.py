"""``acgan-image``: synthetic slices that go through the extractor (the paper's future work, section 6).

The GAN is ``acgan`` on slices instead of features. Both networks are served as one, whose output is features.
"""

from __future__ import annotations

from typing import Any

from gliaflow_plugins.contracts import FeatureSource, FitContext, Fitted
from gliaflow_plugins.features import slices_of
from gliaflow_plugins.generators.acgan import ACGAN, ACGANOptions


class ACGANImage:
    """See ``GeneratorVariant``. The source must know its slices, as in ``gliaflow train`` and ``gliaflow evaluate``."""

    name = "acgan-image"
    options = ACGANOptions

    def fit(self, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError if the source has no slices, or a class has no sample."""
        from gliaflow_plugins.networks.principal_components import Chain, StatisticsCritic

        slices = slices_of(features)
        fitted = ACGAN().fit(slices.images, options, context)
        generator = Chain(fitted.generator, slices.extractor)
        return Fitted(fitted.nz, generator, StatisticsCritic(features), fitted.history)
