"""The contract of each kind of plugin, and the objects that gliaflow passes to plugins. No torch is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from gliaflow_plugins.left_out import LeftOut

if TYPE_CHECKING:
    from torch import nn

Image = NDArray[np.float32]
"""A slice [H, W]."""
Mask = NDArray[Any]
"""The mask of a slice [H, W]: 0 outside the tumour."""
Voxels = NDArray[np.float32]
"""A scan [I, J, K]."""
Indices = NDArray[np.int64]
"""Positions of samples in a feature source [n]."""


class PluginError(Exception):
    """A requested plugin cannot be used. The text names the plugin, the reason and the alternatives."""


class Options(BaseModel):
    """Base class of an options model. It refuses unknown names, and its values are read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Protocol):
    """Base of every plugin that is chosen by ``name`` and set by ``options``, a pydantic model class."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...


def parse_options(plugin: Named, values: Mapping[str, Any]) -> BaseModel:
    """Return ``values`` (from TOML, or from ``--option k=v``) as an instance of ``plugin.options``.

    Raises
    ------
    PluginError: an option is unknown or out of range. The text names each such option with its value, and lists the
        known ones with their defaults.
    """
    try:
        return plugin.options.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            _fault(fault["loc"], fault["type"], fault["msg"], fault["input"]) for fault in error.errors()
        )
        known = ", ".join(f"{name}={field.default}" for name, field in plugin.options.model_fields.items()) or "none"
        raise PluginError(f"{plugin.name}: {faults} (options and their defaults: {known})") from error


def _fault(place: tuple[int | str, ...], kind: str, text: str, value: object) -> str:
    """What is wrong with an option, in the words of somebody who wrote ``name=value``."""
    name = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"there is no option {name}"
    must = text.replace("Input should be", "must be")
    return f"{name}={value} {must}" if name and must != text else f"{name or 'options'}: {text}"


# Generators and classifiers


@runtime_checkable
class FeatureSource(Protocol):
    """Labelled features that are read in batches, so that they need not fit into memory.

    A source may also know the patient of each sample (``features.patients_of``) and the slices that the features come
    from (``features.slices_of``).
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

    def batch(self, indices: Indices) -> NDArray[np.float32]:
        """The samples [n, C, H, W] at ``indices`` [n], in that order."""
        ...


@dataclass(frozen=True)
class SliceSource:
    """The slices [C, H, W] of C sequences that features come from, and the network that computes the features.

    ``extractor`` is a torch module, slices [n, C, H, W] → features [n, C, h, w].
    """

    images: FeatureSource
    extractor: nn.Module


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each epoch with the epoch's number (from 1), the highest possible number of epochs, and its figures."""


@dataclass(frozen=True)
class FitContext:
    """What ``fit`` receives besides samples and options.

    Parameters
    ----------
    seed: the same seed, features and options give the same networks on the same machine.
    device: a torch device, "cpu" or "cuda".
    progress: called after each epoch.
    checkpoint: a long fit saves its state in this file after each epoch, and resumes from it where the file exists. A
        quick fit may ignore it.
    source: labelled features of another cohort's scans, of the same network and classes; None: there are none. A
        generator that needs them has an attribute ``source`` that is true.
    """

    seed: int
    device: str = "cpu"
    progress: Progress | None = None
    checkpoint: Path | None = None
    source: FeatureSource | None = None


@dataclass(frozen=True)
class FitSamples:
    """The samples that a classifier learns from, and their patients.

    Parameters
    ----------
    learn: indices [n] of the samples to learn from.
    choose: indices of other patients' samples, to choose the best epoch by. May be empty.
    patients: the patient of each sample of the features [N]; an empty name marks a synthetic sample.
    weights: "balanced": both classes weigh the same, however many samples each has.
    unlabelled: indices of samples of further patients, whose class is not known: their labels mean nothing. May be
        empty, and a variant may ignore them.
    """

    learn: Indices
    choose: Indices
    patients: Sequence[str]
    weights: Literal["balanced"] | None = None
    unlabelled: Indices = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class Fitted:
    """A fitted generator variant, on the CPU. Both networks are exported to ONNX and served without torch:

        generator   z [n, nz] float32, label [n] int64   →  features [n, C, H, W] float32
        critic      features [n, C, H, W] float32        →  source logit [n], class logits [n, K] float32

    ``history`` has the figures of each epoch: the losses, and the share of real and of synthetic features whose class
    the critic gets right (``accuracy_real`` and ``accuracy_fake``; the paper's Fig. 11).
    """

    nz: int
    generator: nn.Module
    critic: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator.eval()
        self.critic.eval()


@runtime_checkable
class GeneratorVariant(Named, Protocol):
    """A way of learning to generate features. It may import torch in ``fit`` only."""

    def fit(self, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
        """Learn from ``features``. ``options`` is an instance of ``self.options``."""
        ...


@dataclass
class FittedClassifier:
    """A fitted classifier variant, on the CPU. Its network is exported to ONNX and served without torch:

        module   features [n, C, H, W] float32  →  logit [n] float32, positive for the first class (HGG)

    ``history`` has the figures of each epoch.
    """

    module: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module.eval()


@runtime_checkable
class ClassifierVariant(Named, Protocol):
    """A way of learning to grade. It may import torch in ``fit`` only.

    One that learns from ``FitSamples.unlabelled`` has an attribute ``unlabelled`` that is true.
    """

    def fit(self, features: FeatureSource, options: Any, samples: FitSamples, context: FitContext) -> FittedClassifier:
        """Learn from the ``samples.learn`` of ``features``. ``options`` is an instance of ``self.options``."""
        ...


# Augmentations and preprocessing steps


@runtime_checkable
class Augmentation(Named, Protocol):
    """A random change of a slice and its mask. One that moves pixels derives from ``Geometric``."""

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator, options: Any, /) -> tuple[Image, Mask]:
        """Return a new image and mask of the same shapes and dtypes. All chance must come from ``rng``."""
        ...


@runtime_checkable
class Step(Named, Protocol):
    """A change of a whole scan before it is cut into slices."""

    def __call__(self, volume: Voxels, affine: NDArray[np.float64], options: Any) -> Voxels:
        """Return a finite scan of the same shape [i, j, k], in stored order. ``affine`` [4, 4] maps to mm.

        Raises
        ------
        ValueError: the scan is not suitable. The preprocessor refuses the scan with this text.
        """
        ...


# Cohorts


class Volume(Protocol):
    """An image that is readable as one NIfTI file. ``str(volume)`` names it in errors."""

    def read(self) -> bytes:
        """Return a single-file NIfTI, gzipped or not.

        Raises
        ------
        OSError, ValueError: the image cannot be read. The text names the file.
        """
        ...


@dataclass(frozen=True)
class SequenceFile:
    """A sequence beside the FLAIR. ``channel`` is the number of its volume in a 4-D file."""

    volume: Volume
    channel: str | None = None


@dataclass(frozen=True)
class Case:
    """One scan of a cohort.

    Parameters
    ----------
    id: unique within the cohort that ``CohortRequest.read`` returns.
    mask, grade: None where the folder has none. A grade is HGG, LGG, or WHO I to IV.
    channel: the number of the FLAIR volume in a 4-D file.
    label: HGG or LGG. ``CohortRequest.read`` sets it, from the grade.
    sequences: the other sequences of the same study, by name: t1, t1ce (after contrast), t2. Each may be on a grid of
        its own, and may be another volume of the 4-D file ``scan``.
    unused: why a sequence is not in ``sequences``, though the study may have it; by name.
    """

    id: str
    scan: Volume
    mask: Volume | None
    patient: str
    grade: str | None
    channel: str | None = None
    label: str | None = None
    sequences: Mapping[str, SequenceFile] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """What a reader found in a folder.

    Parameters
    ----------
    layout, reader: the name of the layout, and of the reader that knows it.
    problems: lines for the user.
    leaks: problems that can make an evaluation worthless: one patient's data under two names, one patient's two grades.
    tables: of each table, the columns that were used, and how many patients matched.
    left_out: the DICOM series, or other files, that the reader read and did not take, with the reasons.
    """

    layout: str
    cases: list[Case]
    problems: list[str] = field(default_factory=list)
    reader: str = ""
    leaks: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


@runtime_checkable
class Reader(Protocol):
    """Knows one folder layout."""

    @property
    def name(self) -> str: ...

    def read(self, folder: Path) -> Cohort | None:
        """Return the cases in ``folder`` (it may be a file), or None where the layout is another.

        A case that cannot be used (without FLAIR, say) is a line in ``problems`` and not an exception: one bad case
        must not hide the others. A reader opens no image. Grades may be in the folder's own spelling.
        """
        ...
