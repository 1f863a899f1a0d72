"""The paper's generator, an auxiliary classifier GAN (section 3.2; Odena et al. 2017) on feature maps: two variants.

``acgan`` is what trains stably on a few hundred maps of any tap; ``acgan-paper`` has the paper's settings.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from gliaflow_plugins.base import Options
from gliaflow_plugins.generators import FeatureSource, Fitted, Progress


class ACGANOptions(Options):
    """What was measured to come nearest to the floor of real features (docs/results.md)."""

    nz: int = Field(default=64, ge=1, le=4096, description="length of the noise vector")
    ngf: int = Field(default=32, ge=1, description="kernels of the generator's last hidden layer")
    ndf: int = Field(default=32, ge=1, description="kernels of the discriminator's first layer")
    steps: int = Field(default=1000, ge=1, description="of each network")
    batch: int = Field(default=16, ge=2, description="features a step, each class drawn equally often")
    lr: float = Field(default=2e-3, gt=0, description="Adam, both networks")
    beta1: float = Field(default=0.0, ge=0, lt=1, description="Adam")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam")
    r1: float = Field(default=5.0, ge=0, description="weight of the gradient penalty on real features, every 4th step")
    class_weight: float = Field(default=0.5, ge=0, description="weight of the generator's class loss")
    ema: float = Field(
        default=0.998, ge=0, lt=1, description="decay of the generator's averaged weights; less before step 5,000"
    )


class ACGAN:
    """Odena et al., *Conditional image synthesis with auxiliary classifier GANs*, ICML 2017, made stable.

    Hinge loss (Lim and Ye 2017), R1 penalty (Mescheder et al. 2018), averaged weights, classes drawn evenly. Both
    networks see a map as patches, 15×15 of them or so whatever the tap, and begin from the patches' principal
    components. The discriminator tells the class by what the grader goes by (``gliaflow_plugins.pooled``), learnt from
    real features alone, and the generator says where a cropped map is 0: without these two its samples look like
    tumours but do not carry the grade.
    """

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
        checkpoint: Path | None = None,
    ) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError where a class has no sample."""
        from gliaflow_plugins.acgan_training import train  # torch is imported here and not before

        return train(features, options, seed=seed, device=device, progress=progress, checkpoint=checkpoint)


class PaperOptions(Options):
    """The paper's, and where it is silent those of the code that its authors started from."""

    nz: int = Field(default=110, ge=1, le=4096, description="length of the noise vector (source code)")
    ngf: int = Field(default=64, ge=1, description="kernels of the generator's last hidden layer (paper: 64, 256, 512)")
    ndf: int = Field(default=64, ge=1, description="kernels of the discriminator's first layer (paper: 64, 256, 512)")
    epochs: int = Field(default=50, ge=1, description="passes over the features (paper)")
    batch: int = Field(default=16, ge=2, description="features a step (paper)")
    lr: float = Field(default=2e-3, gt=0, description="Adam (paper)")
    beta1: float = Field(default=0.5, ge=0, lt=1, description="Adam (source code)")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam (source code)")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="in the discriminator (source code)")


class PaperACGAN:
    """The paper's ACGAN: three hidden layers, leaky ReLU, cross-entropies for source and class.

    Two departures, without which it cannot work: the class loss is a cross-entropy on logits (the source code feeds
    a softmax to NLLLoss, so that its loss is −p and not −log p), and the generator ends in a ReLU and the features'
    scale (its tanh cannot make features that come out of a ReLU).
    """

    name = "acgan-paper"
    options: type[BaseModel] = PaperOptions

    def fit(
        self,
        features: FeatureSource,
        options: PaperOptions,
        *,
        seed: int,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError where a class has no sample."""
        from gliaflow_plugins.acgan_training import train_paper

        return train_paper(features, options, seed=seed, device=device, progress=progress, checkpoint=checkpoint)
