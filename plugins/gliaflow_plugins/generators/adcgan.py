"""``adcgan``: the classifier also says whether a sample of a class is real."""

from __future__ import annotations

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions
from gliaflow_plugins.gan_losses import Seen, Tensor, at, cross_entropy, hinge


class ADCGANOptions(GANOptions):
    """The common options, and λ."""

    class_weight: float = Field(default=1.0, ge=0, description="λ, weight of the class loss")


class ADCGAN(GAN):
    """Hou et al., *Conditional GANs with auxiliary discriminative classifier*, ICML 2022.

    The classifier has 2K outputs: each class among real samples (even), and each class among synthetic ones (odd). This
    removes a fault of the ACGAN, which rewards its generator for classes that are easier to separate than real ones.
    """

    name = "adcgan"
    options = ADCGANOptions
    outputs = 2

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: ADCGANOptions) -> Tensor:
        class_loss = cross_entropy(real.classes, 2 * label) + cross_entropy(fake.classes, 2 * label + 1)
        return hinge(real.source, fake.source) + options.class_weight * class_loss

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: ADCGANOptions) -> Tensor:
        fooled = at(fake.classes, 2 * label) - at(fake.classes, 2 * label + 1)  # equation 8 of that paper
        return -fake.source.mean() - options.class_weight * fooled.mean()

    def class_logits(self, seen: Seen) -> Tensor:
        return seen.classes[:, ::2]
