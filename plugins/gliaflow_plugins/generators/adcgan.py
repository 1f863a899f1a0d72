"""``adcgan``: the classifier also says whether a sample of a class is real."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions, Seen
from gliaflow_plugins.gan_losses import at, cross_entropy, hinge

if TYPE_CHECKING:
    from torch import Tensor


class ADCGANOptions(GANOptions):
    """As the others', and λ."""

    class_weight: float = Field(default=1.0, ge=0, description="λ, of the class loss")


class ADCGAN(GAN):
    """Hou et al., *Conditional GANs with auxiliary discriminative classifier*, ICML 2022.

    The classifier has 2K outputs, a class among real samples (even) and the same among synthetic ones (odd). That mends
    what is wrong with an ACGAN: its generator does best where the classes lie apart, however they lie in truth.
    """

    name = "adcgan"
    options = ADCGANOptions
    outputs = 2

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: ADCGANOptions) -> Tensor:
        told = cross_entropy(real.classes, 2 * label) + cross_entropy(fake.classes, 2 * label + 1)
        return hinge(real.source, fake.source) + options.class_weight * told

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: ADCGANOptions) -> Tensor:
        fooled = at(fake.classes, 2 * label) - at(fake.classes, 2 * label + 1)  # equation 8 there
        return -fake.source.mean() - options.class_weight * fooled.mean()

    def class_logits(self, seen: Seen) -> Tensor:
        return seen.classes[:, ::2]
