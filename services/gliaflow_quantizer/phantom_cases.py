"""Phantoms in memory, as cases of a cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gliaflow_phantoms.phantom import make_patient
from gliaflow_plugins.contracts import Case, SequenceFile
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import CLASSES
from numpy.typing import NDArray

CALIBRATION, CHECK = 1, 2


@dataclass(frozen=True)
class _Drawn:
    """A volume of a phantom: ``data`` is its NIfTI file."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """See ``Volume.read``."""
        return self.data


def phantom_cases(count: int, seed: int, purpose: int, channels: Sequence[str]) -> Iterator[Case]:
    """Phantoms of both grades in turn, each drawn when it is asked for.

    No network has seen them: the seed of a phantom of ``gliaflow phantom`` has two numbers, and theirs has three.

    Parameters
    ----------
    purpose: CALIBRATION or CHECK, which share no phantom.
    channels: the sequences to draw, the FLAIR first.
    """
    for number in range(count):
        grade = CLASSES[number % len(CLASSES)]
        phantom = make_patient(grade, np.random.default_rng([seed, number, purpose]), channels)
        name = f"phantom {number}"

        def drawn(voxels: NDArray[Any], name: str = name, affine: NDArray[Any] = phantom.affine) -> _Drawn:
            return _Drawn(name, nib.Nifti1Image(voxels, affine).to_bytes())

        others = {kind: SequenceFile(drawn(phantom.images[kind])) for kind in channels[1:]}
        yield Case(name, drawn(phantom.flair), drawn(phantom.mask), name, grade, label=grade, sequences=others)
