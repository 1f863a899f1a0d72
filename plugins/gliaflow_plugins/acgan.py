"""The paper's generator: an auxiliary classifier GAN (section 3.2; Odena et al. 2017), on feature maps."""

from __future__ import annotations

from pydantic import BaseModel, Field

from gliaflow_plugins.base import Options
from gliaflow_plugins.generators import FeatureSource, Fitted, Progress


class ACGANOptions(Options):
    """Defaults are what trains stably on a small cohort; the paper's value is beside each that differs."""

    nz: int = Field(default=64, ge=1, le=4096, description="length of the noise vector (source code: 110)")
    ngf: int = Field(default=64, ge=1, description="kernels of the generator's last hidden layer (paper: 64 to 512)")
    ndf: int = Field(default=64, ge=1, description="kernels of the discriminator's first layer (paper: 64 to 512)")
    epochs: int = Field(default=50, ge=1, description="passes over the features (paper: 50)")
    batch: int = Field(default=16, ge=2, description="features a step (paper: 16)")
    generator_lr: float = Field(default=2e-3, gt=0, description="Adam (paper: 0.002)")
    discriminator_lr: float = Field(default=2e-3, gt=0, description="Adam (paper: 0.002)")
    beta1: float = Field(default=0.5, ge=0, lt=1, description="Adam (source code: 0.5)")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam (source code: 0.999)")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="in the discriminator (source code: 0.5)")
    ema: float = Field(default=0.998, ge=0, lt=1, description="decay of the generator's averaged weights")
    max_seconds: float | None = Field(default=None, gt=0, description="stop after the epoch that passes this")


class ACGAN:
    """Odena et al., *Conditional image synthesis with auxiliary classifier GANs*, ICML 2017, as in the paper."""

    name = "acgan"
    options: type[BaseModel] = ACGANOptions

    def fit(
        self,
        features: FeatureSource,
        options: ACGANOptions,
        *,
        seed: int,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError where a class has no sample."""
        from gliaflow_plugins.acgan_training import train  # torch is imported here and not before

        return train(features, options, seed=seed, device=device, progress=progress)
