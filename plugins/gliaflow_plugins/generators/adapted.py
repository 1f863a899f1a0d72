"""``adapted``: features of another cohort's labelled scans, moved to where this cohort's features lie.

What a class of few patients lacks is patients. Another cohort has them, and phantoms are as many as are drawn, but
their scanner is another one. Both cohorts have the common class, so its features show how they differ: each channel of
the other cohort's features gets the mean and the standard deviation that the common class has here. (For single
images, adaptive instance normalisation: Huang and Belongie 2017. Here the moments are those of one class in a cohort.)

The samples are features of the other cohort's patients. Of phantoms, they disclose nobody.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from gliaflow_plugins.contracts import FeatureSource, FitContext, Fitted, Options, PluginError


class AdaptedOptions(Options):
    """Options of ``adapted``."""

    bank: int = Field(default=2000, ge=1, description="samples of each class that are kept, up to 256 MiB in all")


class Adapted:
    """See ``GeneratorVariant``."""

    name = "adapted"
    options: ClassVar[type[BaseModel]] = AdaptedOptions
    source = True

    def fit(self, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
        """See ``GeneratorVariant.fit``.

        Raises
        ------
        PluginError: there is no other cohort.
        ValueError: a class has no sample, here or there.
        """
        from gliaflow_plugins.networks.bank import Bank
        from gliaflow_plugins.networks.principal_components import StatisticsCritic

        if context.source is None:
            raise PluginError("it needs labelled scans of another cohort, which --source FOLDER gives")
        bank = Bank(context.source, features, options.bank)
        return Fitted(bank.nz, bank, StatisticsCritic(bank.moved()))
