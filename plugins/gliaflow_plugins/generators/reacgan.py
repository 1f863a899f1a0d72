"""``reacgan``: an ACGAN whose class loss compares samples with each other, and lets easy ones be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions, Seen
from gliaflow_plugins.gan_losses import hinge

if TYPE_CHECKING:
    from torch import Tensor


class ReACGANOptions(GANOptions):
    """Defaults of the class loss are the paper's for CIFAR-10, but for the weight."""

    class_weight: float = Field(default=1.0, ge=0, description="λ, of the class loss")
    temperature: float = Field(default=0.5, gt=0, description="τ")
    easy: float = Field(default=0.98, ge=-1, le=1, description="m_p: similarity from which a sample needs no pull")
    hard: float = Field(default=0.02, ge=-1, le=1, description="m_n = 1 − m_p: similarity up to which it needs no push")


class ReACGAN(GAN):
    """Kang et al., *Rebooting ACGAN: auxiliary classifier GANs with stable training*, NeurIPS 2021.

    Features and class proxies have length 1, so that the class loss has no large gradients (section 3.2 there). The
    loss is the data-to-data cross-entropy (D2D-CE, equation 8): a sample is drawn to its proxy and driven from the
    samples of other classes in the batch; ``easy`` and ``hard`` cut off what is near or far enough.
    """

    name = "reacgan"
    options = ReACGANOptions
    embedded = 128

    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: ReACGANOptions) -> Tensor:
        return hinge(real.source, fake.source) + options.class_weight * _d2d(real, label, options)

    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: ReACGANOptions) -> Tensor:
        return -fake.source.mean() + options.class_weight * _d2d(fake, label, options)

    def class_logits(self, seen: Seen) -> Tensor:
        return seen.embedding @ seen.proxies.T


def _d2d(seen: Seen, label: Tensor, options: ReACGANOptions) -> Tensor:
    """D2D-CE of a batch: embeddings [n, e] and labels [n]."""
    to_proxy = (seen.embedding * seen.proxies[label]).sum(dim=1)
    among = seen.embedding @ seen.embedding.T
    drawn = (to_proxy - options.easy).clamp(max=0) / options.temperature
    driven = (among - options.hard).clamp(min=0) / options.temperature
    others = label[:, None] != label[None]
    against = driven.masked_fill(~others, float("-inf")).logsumexp(dim=1)  # −∞ where the batch has one class
    return (drawn.logaddexp(against) - drawn).mean()
