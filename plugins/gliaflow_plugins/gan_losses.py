"""The two losses of a GAN variant, what they are computed from, and the losses that variants share.

No torch is imported: a loss uses the methods of the tensors that it receives. So gliaflow can list the variants and
check their options where torch is not installed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:
    Tensor = Any  # so that a variant imports the name from here


@dataclass(frozen=True)
class Seen:
    """The discriminator's outputs for n features of K classes.

    Parameters
    ----------
    source: [n], high for real features.
    classes: [n, K·m], the class outputs, computed from maps and statistics.
    grade: [n, K], class logits computed only from the statistics that the grader uses.
    embedding: [n, e], of length 1.
    proxies: [K, e], one vector of length 1 for each class.
    code: [n, c], the estimate of the noise's first c components.
    """

    source: Tensor
    classes: Tensor
    grade: Tensor
    embedding: Tensor
    proxies: Tensor
    code: Tensor

    def as_float32(self) -> Seen:
        """The same outputs as float32."""
        return Seen(*(getattr(self, field.name).float() for field in fields(self)))

    def halves(self) -> tuple[Seen, Seen]:
        """The outputs for the first and for the second half of the features."""
        outputs = {field.name: getattr(self, field.name) for field in fields(self)}
        pairs = [(value, value) if name == "proxies" else value.chunk(2) for name, value in outputs.items()]
        return Seen(*(first for first, _ in pairs)), Seen(*(second for _, second in pairs))


class GANLosses(ABC):
    """The part of a GAN variant that the training loop uses: name, losses, and which outputs the discriminator has."""

    name: ClassVar[str]
    options: ClassVar[type[BaseModel]]
    outputs: ClassVar[int] = 1
    """The number of ``Seen.classes`` for each class."""
    embedded: ClassVar[int] = 0
    """The length of ``Seen.embedding``."""
    spectral: ClassVar[bool] = False
    """Whether the discriminator's layers are divided by their spectral norm (Miyato et al. 2018)."""
    pretrained: ClassVar[bool] = False
    """Whether ``Seen.grade`` is fitted to the real features first and then stays fixed."""
    networks: ClassVar[Literal["patches", "paper"]] = "patches"
    """Networks that see a map as patches, in steps; or the paper's networks, in epochs (``networks.gan_training``)."""

    @abstractmethod
    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: Any) -> Tensor:
        """The discriminator's loss. ``label`` [n] holds for the real and for the synthetic features."""

    @abstractmethod
    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: Any) -> Tensor:
        """The generator's loss."""

    def class_logits(self, seen: Seen) -> Tensor:
        """The class logits [n, K] that the served critic returns."""
        return seen.grade

    def penalised(self, seen: Seen, label: Tensor) -> Tensor:
        """The output [n] whose gradient is penalised."""
        return seen.source

    def code(self, options: Any) -> int:
        """How many of the noise's first components ``Seen.code`` estimates."""
        return 0


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss of its outputs for real and for synthetic features, [n] each (Lim and Ye 2017)."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy of logits [n, K] and labels [n]."""
    return -at(logits.log_softmax(1), label).mean()


def at(values: Tensor, label: Tensor) -> Tensor:
    """From each row of ``values`` [n, K] the value at ``label`` [n]."""
    return values.gather(1, label[:, None])[:, 0]
