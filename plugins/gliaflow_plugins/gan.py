"""What GANs on feature maps share: a variant is its options and two losses (``gan_training`` has the rest).

A variant imports no torch: its losses are written with the methods of the tensors that it is given, so that what is
installed can be listed, and options checked, where there is no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from gliaflow_plugins.contracts import FeatureSource, Fitted, Options, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from gliaflow_plugins.networks.gan_training import Setup


class GANOptions(Options):
    """Sizes, and how the two networks are fitted."""

    nz: int = Field(default=64, ge=1, le=4096, description="length of the noise vector")
    ngf: int = Field(default=32, ge=1, description="kernels of the generator's last hidden layer")
    ndf: int = Field(default=32, ge=1, description="kernels of the discriminator's first layer")
    steps: int = Field(default=1000, ge=1, description="of the discriminator")
    critic_steps: int = Field(default=1, ge=1, description="steps of the discriminator for one of the generator")
    batch: int = Field(default=16, ge=2, description="features a step, each class drawn equally often")
    lr: float = Field(default=2e-3, gt=0, description="Adam, the generator's")
    ttur: float = Field(default=1.0, gt=0, description="times lr: the discriminator's (Heusel et al. 2017)")
    beta1: float = Field(default=0.0, ge=0, lt=1, description="Adam")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam")
    r1: float = Field(default=5.0, ge=0, description="weight of the gradient penalty on real features, every 4th step")
    gp: float = Field(default=0.0, ge=0, description="weight of the gradient penalty between real and synthetic ones")
    augment: float = Field(
        default=0.0, ge=0, le=1, description="share of maps that the discriminator sees shifted and with a hole"
    )
    ema: float = Field(
        default=0.998, ge=0, lt=1, description="decay of the generator's averaged weights; less before step 5,000"
    )


@dataclass(frozen=True)
class Seen:
    """What the discriminator says of n features.

    ``source`` [n], high: real. ``classes`` [n, K·m], from all that it sees. ``grade`` [n, K], from the statistics alone
    by which the grader tells the class. ``embedding`` [n, e] and ``proxies`` [K, e], of length 1. ``code`` [n, c].
    """

    source: Tensor
    classes: Tensor
    grade: Tensor
    embedding: Tensor
    proxies: Tensor
    code: Tensor


class GAN(ABC):
    """A variant: ``name``, ``options`` and the losses of its paper; see ``GeneratorVariant``."""

    name: ClassVar[str]
    options: ClassVar[type[BaseModel]]
    outputs: ClassVar[int] = 1
    """How many of ``Seen.classes`` a class has."""
    embedded: ClassVar[int] = 0
    """The length of ``Seen.embedding``."""
    spectral: ClassVar[bool] = False
    """Layers of the discriminator are divided by their spectral norm (Miyato et al. 2018)."""
    pretrained: ClassVar[bool] = False
    """``Seen.grade`` is fitted to the real features before all else, and then left alone."""

    @abstractmethod
    def loss_d(self, real: Seen, fake: Seen, label: Tensor, z: Tensor, options: Any) -> Tensor:
        """What the discriminator lessens. ``label`` [n] is that of the real and of the synthetic features alike."""

    @abstractmethod
    def loss_g(self, fake: Seen, label: Tensor, z: Tensor, options: Any) -> Tensor:
        """What the generator lessens."""

    def class_logits(self, seen: Seen) -> Tensor:
        """[n, K]: what the critic says in serving."""
        return seen.grade

    def penalised(self, seen: Seen, label: Tensor) -> Tensor:
        """[n]: the output whose slope is penalised."""
        return seen.source

    def code(self, options: Any) -> int:
        """How many of the noise's first components ``Seen.code`` is to find again."""
        return 0

    def setup(self, features: FeatureSource, options: Any, seed: int) -> Setup:
        """Networks and the order of samples."""
        from gliaflow_plugins.networks.gan_training import patches

        return patches(self, features, options, seed)

    def fit(
        self,
        features: FeatureSource,
        options: Any,
        *,
        seed: int,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Fitted:
        """See ``GeneratorVariant.fit``. Raises ValueError where a class has no sample."""
        from gliaflow_plugins.networks.gan_training import train  # torch is imported here and not before

        return train(self, features, options, seed=seed, device=device, progress=progress, checkpoint=checkpoint)
