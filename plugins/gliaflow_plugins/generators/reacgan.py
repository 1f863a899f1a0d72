"""``reacgan``: an ACGAN whose class loss compares samples with each other, and ignores easy ones."""

from __future__ import annotations

from pydantic import Field

from gliaflow_plugins.gan import GAN, GANOptions
from gliaflow_plugins.gan_losses import Seen, Tensor, hinge


class ReACGANOptions(GANOptions):
    """The class loss has the defaults of its paper for CIFAR-10, except for the weight."""

    class_weight: float = Field(default=1.0, ge=0, description="λ, weight of the class loss")
    temperature: float = Field(default=0.5, gt=0, description="τ")
    easy: float = Field(default=0.98, ge=-1, le=1, description="m_p: similarity above which a sample is not pulled")
    hard: float = Field(
        default=0.02, ge=-1, le=1, description="m_n = 1 − m_p: similarity below which a sample is not pushed"
    )


class ReACGAN(GAN):
    """Kang et al., *Rebooting ACGAN: auxiliary classifier GANs with stable training*, NeurIPS 2021.

    Embeddings and class proxies have length 1, so that the class loss has no large gradients (section 3.2 of that
    paper). The loss is the data-to-data cross-entropy (D2D-CE, equation 8): it pulls a sample to its proxy and
    pushes it away from the batch's samples of other classes. ``easy`` and ``hard`` exclude samples that are near or far
    enough.
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
    """D2D-CE of a batch with labels [n]."""
    to_proxy = (seen.embedding * seen.proxies[label]).sum(dim=1)
    among = seen.embedding @ seen.embedding.T
    pull = (to_proxy - options.easy).clamp(max=0) / options.temperature
    push = (among - options.hard).clamp(min=0) / options.temperature
    others = label[:, None] != label[None]
    push_of_all = push.masked_fill(~others, float("-inf")).logsumexp(dim=1)  # −∞ where the batch has one class
    return (pull.logaddexp(push_of_all) - pull).mean()
