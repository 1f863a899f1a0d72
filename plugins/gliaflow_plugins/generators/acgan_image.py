"""``acgan-image``: synthetic slices that go through the extractor (the paper's future work, section 6).

The GAN is ``acgan``, on slices in place of features; what is served is both networks in one, so features come out.
"""

from __future__ import annotations

from typing import Any

from gliaflow_plugins.contracts import FeatureSource, Fitted
from gliaflow_plugins.features import slices_of
from gliaflow_plugins.generators.acgan import ACGAN, ACGANOptions


class ACGANImage:
    """See ``GeneratorVariant``. It takes a source that has the slices, as in ``gliaflow train`` and ``evaluate``."""

    name = "acgan-image"
    options = ACGANOptions

    def fit(self, features: FeatureSource, options: Any, **how: Any) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError where the source has no slices, or a class no sample."""
        from gliaflow_plugins.networks.image_gan import ThroughExtractor  # torch comes with these
        from gliaflow_plugins.networks.principal_components import Critic

        slices = slices_of(features)
        fitted = ACGAN().fit(slices.images, options, **how)
        through = ThroughExtractor(fitted.generator, slices.extractor)
        return Fitted(fitted.nz, through, Critic(features), fitted.history)
