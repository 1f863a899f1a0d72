"""``sngan-projection``: the class enters the discriminator as an inner product."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions, Seen, at, hinge

if TYPE_CHECKING:
    from torch import Tensor


class ProjectionOptions(GANOptions):
    """As the others', without an R1 penalty: the spectral norm bounds the slope."""

    r1: float = Field(default=0.0, ge=0, description="weight of the gradient penalty on real features")


class SNGANProjection(GAN):
    """Miyato and Koyama, *cGANs with projection discriminator*, ICLR 2018, with spectral norm (Miyato et al. 2018).

    D(x, y) = ψ(φ(x)) + v_y · φ(x): ``source`` is ψ, and ``classes`` the inner products with each class's vector. Their
    difference is log p(y₁|x) − log p(y₂|x) (equation 3 there), so they serve as class logits.
    """

    name = "sngan-projection"
    options = ProjectionOptions
    spectral = True

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: ProjectionOptions) -> Tensor:
        return hinge(self.penalised(real, label), self.penalised(fake, label))

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: ProjectionOptions) -> Tensor:
        return -self.penalised(fake, label).mean()

    def penalised(self, seen: Seen, label: Tensor) -> Tensor:
        return seen.source + at(seen.classes, label)

    def class_logits(self, seen: Seen) -> Tensor:
        return seen.classes
