"""``infogan``: a network must be able to recover part of the noise from the generated features."""

from __future__ import annotations

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions
from gliaflow_plugins.gan_losses import Seen, Tensor, cross_entropy, hinge


class InfoGANOptions(GANOptions):
    """The common options, and those of the code."""

    code_length: int = Field(default=8, ge=1, description="components of the noise that must be recovered")
    code_weight: float = Field(default=0.5, ge=0, description="λ, weight of the recovery's loss")
    class_weight: float = Field(default=0.5, ge=0, description="weight of the generator's class loss")


class InfoGAN(GAN):
    """Chen et al., *InfoGAN*, NIPS 2016. The class is given; the rest of the code must be recovered.

    The discriminator also estimates the code, as the mean of a Gaussian Q(c|x) of fixed width. So the bound on the
    mutual information (equation 5 of that paper) is a squared error. It keeps the generator from making the same sample
    each time.
    """

    name = "infogan"
    options = InfoGANOptions

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: InfoGANOptions) -> Tensor:
        class_loss = cross_entropy(real.grade, label)
        return hinge(real.source, fake.source) + class_loss + options.code_weight * _code_error(fake, z)

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: InfoGANOptions) -> Tensor:
        class_loss = options.class_weight * cross_entropy(fake.grade, label)
        return -fake.source.mean() + class_loss + options.code_weight * _code_error(fake, z)

    def code(self, options: InfoGANOptions) -> int:
        return min(options.code_length, options.nz)


def _code_error(fake: Seen, z: Tensor) -> Tensor:
    return (fake.code - z[:, : fake.code.shape[1]]).square().mean()
