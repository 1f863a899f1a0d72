"""``wgan-gp``: the Wasserstein distance, and a classifier that is fitted first."""

from __future__ import annotations

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions
from gliaflow_plugins.gan_losses import Seen, Tensor, at, cross_entropy


class WGANOptions(GANOptions):
    """λ is the papers' value. Their learning rate (1e-4), critic steps (5) and β (0.01) suit far longer runs."""

    r1: float = Field(default=0.0, ge=0, description="weight of the gradient penalty on real features")
    gp: float = Field(default=10.0, ge=0, description="λ, weight of the gradient penalty")
    critic_steps: int = Field(default=2, ge=1, description="steps of the critic for one of the generator (paper: 5)")
    class_weight: float = Field(default=0.5, ge=0, description="β, of the generator's class loss")


class WGANGP(GAN):
    """f-CLSWGAN: Xian et al., *Feature generating networks for zero-shot learning*, CVPR 2018.

    A WGAN with gradient penalty (Gulrajani et al. 2017) on features and class, and the cross-entropy of a classifier
    that is fitted to the real features first and then stays fixed.
    """

    name = "wgan-gp"
    options = WGANOptions
    pretrained = True

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: WGANOptions) -> Tensor:
        return self.penalised(fake, label).mean() - self.penalised(real, label).mean()

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: WGANOptions) -> Tensor:
        return -self.penalised(fake, label).mean() + options.class_weight * cross_entropy(fake.grade, label)

    def penalised(self, seen: Seen, label: Tensor) -> Tensor:
        return seen.source + at(seen.classes, label)
