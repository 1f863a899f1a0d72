"""``infogan``: part of the noise must be found again in what was made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions, Seen
from gliaflow_plugins.gan_losses import cross_entropy, hinge

if TYPE_CHECKING:
    from torch import Tensor


class InfoGANOptions(GANOptions):
    """As the others', and the code."""

    code_length: int = Field(default=8, ge=1, description="components of the noise that are found again")
    code_weight: float = Field(default=0.5, ge=0, description="λ, of that")
    class_weight: float = Field(default=0.5, ge=0, description="weight of the generator's class loss")


class InfoGAN(GAN):
    """Chen et al., *InfoGAN*, NIPS 2016, where the class is given and the rest of the code is found.

    The mean of a Gaussian Q(c|x) of fixed width is learnt beside the discriminator, so that the bound on the mutual
    information (equation 5 there) is a squared error. It keeps the generator from making one sample of a class.
    """

    name = "infogan"
    options = InfoGANOptions

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: InfoGANOptions) -> Tensor:
        told = cross_entropy(real.grade, label)
        return hinge(real.source, fake.source) + told + options.code_weight * _missed(fake, z)

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: InfoGANOptions) -> Tensor:
        told = options.class_weight * cross_entropy(fake.grade, label)
        return -fake.source.mean() + told + options.code_weight * _missed(fake, z)

    def code(self, options: InfoGANOptions) -> int:
        return min(options.code_length, options.nz)


def _missed(fake: Seen, z: Tensor) -> Tensor:
    return (fake.code - z[:, : fake.code.shape[1]]).square().mean()
