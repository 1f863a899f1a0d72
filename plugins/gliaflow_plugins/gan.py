"""The base class of a GAN on feature maps: a variant adds options and two losses."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gliaflow_plugins.contracts import FeatureSource, FitContext, Fitted, Options, PluginError
from gliaflow_plugins.gan_losses import GANLosses
from gliaflow_plugins.moved import UPGRADING


class GANOptions(Options):
    """The sizes of the two networks, and how they are fitted."""

    nz: int = Field(default=64, ge=1, le=4096, description="length of the noise vector")
    ngf: int = Field(default=32, ge=1, description="kernels of the generator's last hidden layer")
    ndf: int = Field(default=32, ge=1, description="kernels of the discriminator's first layer")
    steps: int = Field(default=1000, ge=1, description="steps of the discriminator")
    critic_steps: int = Field(default=1, ge=1, description="steps of the discriminator for one of the generator")
    batch: int = Field(default=16, ge=2, description="features a step, each class drawn equally often")
    lr: float = Field(default=2e-3, gt=0, description="the generator's learning rate (Adam)")
    ttur: float = Field(default=1.0, gt=0, description="the discriminator's learning rate over lr (Heusel et al. 2017)")
    beta1: float = Field(default=0.0, ge=0, lt=1, description="Adam's β1")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam's β2")
    r1: float = Field(default=5.0, ge=0, description="weight of the gradient penalty on real features, every 4th step")
    gp: float = Field(default=0.0, ge=0, description="weight of the gradient penalty between real and synthetic ones")
    augment: float = Field(
        default=0.0, ge=0, le=1, description="share of maps that the discriminator sees shifted and with a hole"
    )
    ema: float = Field(
        default=0.998, ge=0, lt=1, description="decay of the generator's averaged weights; less before step 5,000"
    )


class GAN(GANLosses):
    """A GAN variant: ``name``, ``options`` and the two losses. See ``GeneratorVariant``.

    Raises
    ------
    PluginError: a subclass has a method ``setup``, which had been the way to other networks.
    """

    def __init_subclass__(cls) -> None:
        if "setup" in vars(cls):
            raise PluginError(
                f"{cls.__name__}.setup: is not called any more; set networks, or override fit; {UPGRADING}"
            )

    def fit(self, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError if a class has no sample."""
        from gliaflow_plugins.networks.gan_training import train  # imports torch, which registration must not

        return train(self, features, options, context)
