"""An example of a third-party generator: the level of each channel is Gaussian, by class."""

import numpy as np
from gliaflow_plugins import Options, hookimpl
from gliaflow_plugins.contracts import Fitted
from pydantic import Field


class MeanVarOptions(Options):
    spread: float = Field(default=1.0, gt=0, description="times the measured standard deviation")


class MeanVar:
    name = "meanvar"
    options = MeanVarOptions

    def fit(self, features, options, context):
        from gliaflow_meanvar.networks import Critic, Generator  # imports torch, which only fit may do

        levels = np.concatenate([features.batch(np.array([i])).mean(axis=(2, 3)) for i in range(len(features))])
        of_class = [levels[features.labels == label] for label in range(len(features.classes))]
        mean = np.stack([level.mean(axis=0) for level in of_class])
        std = np.stack([level.std(axis=0) for level in of_class]) + 1e-3
        return Fitted(features.shape[0], Generator(mean, options.spread * std, features.shape), Critic(mean, std))


@hookimpl
def register_generators(register):
    register(MeanVar())
