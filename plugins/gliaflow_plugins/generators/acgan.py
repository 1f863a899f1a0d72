"""The paper's generator, an auxiliary classifier GAN (section 3.2; Odena et al. 2017) on feature maps: two variants.

``acgan`` trains stably on a few hundred maps of any tap; ``acgan-paper`` has the paper's settings.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from gliaflow_plugins.contracts import Options
from gliaflow_plugins.gan import GAN, GANOptions
from gliaflow_plugins.gan_losses import Seen, Tensor, cross_entropy, hinge


class ACGANOptions(GANOptions):
    """The defaults are those whose features come nearest to real ones (docs/results.md)."""

    class_weight: float = Field(default=0.5, ge=0, description="weight of the generator's class loss")


class ACGAN(GAN):
    """Odena et al., *Conditional image synthesis with auxiliary classifier GANs*, ICML 2017, made stable.

    Hinge loss (Lim and Ye 2017), R1 penalty (Mescheder et al. 2018), averaged weights, classes drawn equally often.
    Both networks see a map as about 15×15 patches, whatever the tap, and begin from the patches' principal components.
    The discriminator judges the class by the grader's statistics (``networks.tumour_statistics``), learnt from real
    features alone, and the generator outputs where a cropped map is 0. Without these two, its samples look like
    tumours but do not carry the grade.
    """

    name = "acgan"
    options = ACGANOptions

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: ACGANOptions) -> Tensor:
        # Only real features define the classes: if D also learnt from synthetic ones, it would follow G.
        return hinge(real.source, fake.source) + cross_entropy(real.grade, label)

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: ACGANOptions) -> Tensor:
        return -fake.source.mean() + options.class_weight * cross_entropy(fake.grade, label)


class PaperOptions(Options):
    """The paper's settings; where the paper gives none, those of the code that its authors started from."""

    nz: int = Field(default=110, ge=1, le=4096, description="length of the noise vector (source code)")
    ngf: int = Field(default=64, ge=1, description="kernels of the generator's last hidden layer (paper: 64, 256, 512)")
    ndf: int = Field(default=64, ge=1, description="kernels of the discriminator's first layer (paper: 64, 256, 512)")
    epochs: int = Field(default=50, ge=1, description="passes over the features (paper)")
    batch: int = Field(default=16, ge=2, description="features a step (paper)")
    lr: float = Field(default=2e-3, gt=0, description="learning rate of Adam (paper)")
    beta1: float = Field(default=0.5, ge=0, lt=1, description="Adam's β1 (source code)")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam's β2 (source code)")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="dropout in the discriminator (source code)")

    # Options of the training loop for methods that the paper does not use.
    critic_steps: ClassVar[int] = 1
    ttur: ClassVar[float] = 1
    r1: ClassVar[float] = 0
    gp: ClassVar[float] = 0
    augment: ClassVar[float] = 0
    ema: ClassVar[float] = 0


class PaperACGAN(GAN):
    """The paper's ACGAN: three hidden layers, leaky ReLU, cross-entropies for source and class (equations 1 and 2).

    Two departures, without which it cannot work: the class loss is a cross-entropy on logits (the source code feeds
    a softmax to NLLLoss, so that its loss is −p and not −log p), and the generator ends in a ReLU and the features'
    scale (its tanh cannot make features that come out of a ReLU).
    """

    name = "acgan-paper"
    options = PaperOptions
    networks = "paper"

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: PaperOptions) -> Tensor:
        source_loss = _softplus(-real.source).mean() + _softplus(fake.source).mean()
        return source_loss + cross_entropy(real.classes, label) + cross_entropy(fake.classes, label)

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: PaperOptions) -> Tensor:
        # G maximises L_C − L_S, in the form whose gradient does not vanish while D wins
        return _softplus(-fake.source).mean() + cross_entropy(fake.classes, label)

    def class_logits(self, seen: Seen) -> Tensor:
        return seen.classes


def _softplus(logit: Tensor) -> Tensor:
    return logit.logaddexp(logit.new_zeros(()))
