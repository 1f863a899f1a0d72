"""Losses that the GANs share, written with the methods of the tensors they are given: no torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss of two outputs [n] (Lim and Ye 2017)."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Of logits [n, K] and labels [n]."""
    return -at(logits.log_softmax(1), label).mean()


def at(values: Tensor, label: Tensor) -> Tensor:
    """Of each row of ``values`` [n, K] the one at ``label`` [n]."""
    return values.gather(1, label[:, None])[:, 0]
