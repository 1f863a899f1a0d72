"""What each kind of plugin must be, and what it is given. No torch is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from torch import nn


Image = NDArray[np.float32]
"""A slice [H, W]."""
Voxels = NDArray[np.float32]
"""A scan [I, J, K]."""
Mask = NDArray[Any]
"""Of a slice [H, W]: 0 where there is no tumour."""


class PluginError(Exception):
    """A plugin that was asked for cannot be used. The text says which, why, and what there is instead."""


class Options(BaseModel):
    """Base of an options model: unknown names are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Protocol):
    """Anything chosen by name from config with options of its own."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...


def parse_options(plugin: Named, values: Mapping[str, Any]) -> BaseModel:
    """``values`` (from TOML, or ``--option k=v`` strings) as an instance of ``plugin.options``.

    Raises
    ------
    PluginError
        An option is unknown or out of range. Each is named, with what the plugin does take.
    """
    try:
        return plugin.options.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}" for fault in error.errors()
        )
        known = ", ".join(plugin.options.model_fields) or "none"
        raise PluginError(f"{plugin.name}: {faults} (options: {known})") from error


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each epoch with its number (from 1), how many there are at most, and its figures."""


@runtime_checkable
class FeatureSource(Protocol):
    """Labelled features, read a batch at a time, so that they need not fit into memory.

    One that knows whose its samples are also has ``patients`` [N], names; ask with ``patients_of``. One that knows the
    slices that they come from has ``slices``; ask with ``slices_of``.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one sample."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each sample [N], an index into ``classes``."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples [n, C, H, W] at ``indices`` [n], in that order."""
        ...


@dataclass(frozen=True)
class SliceSource:
    """The slices that features come from, [1, H, W] each, and the network that makes features of them.

    ``extractor`` is a torch module, slices [n, 1, H, W] → features [n, C, h, w].
    """

    images: FeatureSource
    extractor: nn.Module


@dataclass
class Fitted:
    """A fitted variant, on the CPU.

    ``generator`` and ``critic`` are torch modules with the signatures of the ONNX contract above. ``history`` has
    the figures of each epoch: losses, and the critic's class accuracy on real and on synthetic features, named
    ``accuracy_real`` and ``accuracy_fake`` (the paper's Fig. 11).
    """

    nz: int
    generator: nn.Module
    critic: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator.eval()
        self.critic.eval()


@dataclass(frozen=True)
class FitContext:
    """What a fit is given beside its samples and options.

    Parameters
    ----------
    seed: the same seed, features and options give the same networks on the same machine.
    device: a torch device, "cpu" or "cuda".
    progress: called after each epoch.
    checkpoint: a file in which a long fit keeps what it needs to go on after a kill. A quick one may leave it alone.
    """

    seed: int
    device: str = "cpu"
    progress: Progress | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class FitSamples:
    """Which samples a classifier learns from, and whose they are.

    Parameters
    ----------
    learn: indices [n] of the samples to learn from.
    choose: indices of other patients' samples, by which an epoch may be chosen; may be empty.
    patients: the patient of each sample of the features [N]; empty: synthetic.
    weights: "balanced": both classes count alike, however many samples they have.
    """

    learn: NDArray[np.int64]
    choose: NDArray[np.int64]
    patients: Sequence[str]
    weights: Literal["balanced"] | None = None


@runtime_checkable
class GeneratorVariant(Protocol):
    """A way of learning to generate features, chosen by ``name`` and set by ``options`` (a pydantic model class)."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

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
        """Learn from ``features``.

        Parameters
        ----------
        options: an instance of ``self.options``.
        seed: the same seed, features and options give the same networks on the same machine.
        device: a torch device, "cpu" or "cuda".
        checkpoint: a file in which to keep what is needed to go on after a kill, and from which to go on where it
            exists. A variant that is quick may leave it alone.
        """
        ...


@dataclass
class FittedClassifier:
    """A torch module with the signature above, on the CPU; the figures of each epoch."""

    module: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module.eval()


@runtime_checkable
class ClassifierVariant(Protocol):
    """A way of learning to grade, chosen by ``name`` and set by ``options`` (a pydantic model class)."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def fit(
        self,
        features: FeatureSource,
        options: Any,
        *,
        learn: NDArray[np.int64],
        choose: NDArray[np.int64],
        patients: Sequence[str],
        weights: Literal["balanced"] | None,
        seed: int,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> FittedClassifier:
        """Learn from the samples of ``features`` at ``learn``.

        Parameters
        ----------
        options: an instance of ``self.options``.
        choose: samples of other patients, by which an epoch may be chosen; there may be none.
        patients: whose each sample of ``features`` is [N]; empty: synthetic.
        weights: "balanced": both classes are to count alike, however many samples they have.
        seed: the same seed, features and options give the same network on the same machine.
        device: a torch device, "cpu" or "cuda".
        """
        ...


@runtime_checkable
class Augmentation(Protocol):
    """An augmentation: chosen by ``name``, set by ``options`` (a pydantic model class).

    Called with image [H, W] float32, mask [H, W], an ``rng`` that is its only source of chance, and an instance
    of ``options``; returns a new image and mask of the same shapes and dtypes and leaves its arguments alone.
    One that moves pixels derives from ``Geometric`` instead of being called.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator, options: Any, /) -> tuple[Image, Mask]: ...


@runtime_checkable
class Step(Protocol):
    """Something done to a scan, chosen by ``name`` and set by ``options`` (a pydantic model class)."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def __call__(self, volume: Voxels, affine: NDArray[np.float64], options: Any) -> Voxels:
        """A finite scan [i, j, k] in stored order, with its affine [4, 4] to mm → one of the same shape.

        Raises ValueError where the scan does not allow for it: the scan is then refused, with that reason.
        """
        ...


class Volume(Protocol):
    """An image that can be had as one NIfTI file. ``str`` of it names it in errors."""

    def read(self) -> bytes:
        """A single-file NIfTI, gzipped or not.

        Raises
        ------
        OSError, ValueError: it cannot be had. The text names the file.
        """
        ...


@dataclass(frozen=True)
class Case:
    """One scan of a cohort. ``mask`` or ``grade`` is None where the folder does not tell.

    ``id`` is unique in what ``read_cohort`` returns. ``grade`` is the folder's: HGG or LGG, or WHO I to IV; ``label``,
    HGG or LGG, is what ``read_cohort`` makes of it. ``channel`` is the number of the FLAIR volume in a 4-D file.
    """

    id: str
    scan: Volume
    mask: Volume | None
    patient: str
    grade: str | None
    channel: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Cohort:
    """What was understood of a folder: its layout, its cases, and what is wrong with it, a line each."""

    layout: str
    cases: list[Case]
    problems: list[str] = field(default_factory=list)
    reader: str = ""


@runtime_checkable
class Reader(Protocol):
    """Knows one folder layout."""

    @property
    def name(self) -> str: ...

    def read(self, folder: Path) -> Cohort | None:
        """The cases in ``folder`` (a file, if that is what a person named), or None where the layout is another.

        A case that cannot be used (no FLAIR, say) is a line in ``problems``, never an exception: one bad
        case must not hide the others. Images are not opened. Grades may be as they stand in the folder.
        """
        ...
