"""``sngan-projection``: the class enters the discriminator as an inner product."""

from __future__ import annotations

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions
from gliaflow_plugins.gan_losses import Seen, Tensor, at, cross_entropy, hinge


class ProjectionOptions(GANOptions):
    """The common options, without an R1 penalty: the spectral norm bounds the gradient."""

    r1: float = Field(default=0.0, ge=0, description="weight of the gradient penalty on real features")


class SNGANProjection(GAN):
    """Miyato and Koyama, *cGANs with projection discriminator*, ICLR 2018, with spectral norm (Miyato et al. 2018).

    D(x, y) = ψ(φ(x)) + v_y · φ(x): ``source`` is ψ, ``classes`` are the inner products with each class's vector. They
    compare a real sample of the class with a synthetic one (equation 3 of that paper), so they say less about the class
    as the generator improves. The served critic's class logits are therefore ``grade``, learnt from real features only.
    """

    name = "sngan-projection"
    options = ProjectionOptions
    spectral = True

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: ProjectionOptions) -> Tensor:
        return hinge(self.penalised(real, label), self.penalised(fake, label)) + cross_entropy(real.grade, label)

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: ProjectionOptions) -> Tensor:
        return -self.penalised(fake, label).mean()

    def penalised(self, seen: Seen, label: Tensor) -> Tensor:
        return seen.source + at(seen.classes, label)
