"""The feature store: a folder with one file for each part of a scan (``gliaflow_store.part_file``).

Batches are read in any order, and memory does not grow with the store or the size of the tap. Files are read, not
mapped: mapped pages would count as this process's memory until the kernel frees them. There is no separate index:
opening a store reads the headers of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_proto import CLASSES
from numpy.typing import NDArray

from gliaflow_store.contradictions import contradictions
from gliaflow_store.part_file import PartFile, StoreError, stored_parts

Indices = NDArray[np.int64]


@dataclass(eq=False)
class Samples:
    """Samples of a store: a ``FeatureSource`` with labels, patients and scans. Arrays are [N], one entry a sample.

    ``slices`` is the canonical z, ``tumour`` the number of tumour pixels in the predicted mask. A scan without a
    patient counts as a separate patient.
    """

    files: _Files
    at: Indices  # the numbers of the samples in the files
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    scans: NDArray[np.str_]
    cohorts: NDArray[np.str_]
    slices: NDArray[np.int32]
    tumour: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one sample."""
        channels, height, width = self.files.features.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.at)

    def batch(self, indices: Indices) -> NDArray[np.float32]:
        """The samples [n, C, H, W] at ``indices`` [n], in that order.

        Raises StoreError if a file is missing or has become shorter.
        """
        features = np.empty((len(indices), *self.shape), dtype=np.float32)
        self.files.read(self.files.features, self.at[indices], features)
        return features

    def masks(self, indices: Indices) -> NDArray[np.uint8]:
        """The predicted masks UINT8 [n, rows, columns] at ``indices`` [n]. Raises as ``batch`` does."""
        masks = np.empty((len(indices), *self.files.mask.shape), dtype=np.uint8)
        self.files.read(self.files.mask, self.at[indices], masks)
        return masks

    def select(self, indices: Indices | NDArray[np.bool_]) -> Samples:
        """The samples at ``indices``, or where a boolean array [N] is true. No features are copied."""
        columns = ("at", "labels", "patients", "scans", "cohorts", "slices", "tumour")
        selected = {name: getattr(self, name)[indices] for name in columns}
        return Samples(self.files, classes=self.classes, **selected)

    def with_labels(self, labels: Indices, classes: tuple[str, ...]) -> Samples:
        """The same samples for another task: ``labels`` [N] are indices into ``classes``.

        Raises
        ------
        ValueError: the number of labels differs from the number of samples, or a label is not an index.
        """
        if labels.shape != self.at.shape or not np.isin(labels, np.arange(len(classes))).all():
            raise ValueError(f"labels {labels.shape} must be one for each of {len(self)} samples, from {classes}")
        view = self.select(np.arange(len(self)))
        view.labels, view.classes = labels.astype(np.int64), classes
        return view


class FeatureStore(Samples):
    """All samples of a folder, ordered by scan id and part.

    ``problems`` has a line for each file or scan that is left out: a file that is unreadable or not a gliaflow file, a
    scan with missing parts or with parts of different patients. The other scans are used. ``contradicting`` says by
    scan id which of them contradict others or are copies (``gliaflow_store.contradictions``), and ``submissions``
    which submission sent each scan. ``digests`` has those of each scan's parts (``PartMetadata``).

    Parameters
    ----------
    folder: the folder of a ``Recorder``.
    classes: the labels that are used; label n is the n-th.

    Raises
    ------
    StoreError: the folder does not exist, has no complete scan, or has files of different bundles or taps.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...] = CLASSES) -> None:
        self.folder = folder
        self.problems: list[str] = []
        parts = self._whole_scans(self._read_headers(classes))
        if not parts:
            reasons = "".join(f"; {problem}" for problem in self.problems[:3])
            raise StoreError(f"{folder}: no complete labelled scan is stored here{reasons}")
        for part in parts:
            if (part.origin, part.mask_size) != (parts[0].origin, parts[0].mask_size):
                raise StoreError(
                    f"{folder}: features of different origin: {parts[0].path.name} has {parts[0].origin}, "
                    f"{part.path.name} has {part.origin}; fill a new store"
                )
        self.bundle, self.tap, shape = parts[0].origin
        self.contradicting = contradictions(parts)
        self.submissions = {part.about.scan: part.about.submission for part in parts}
        self.digests: dict[str, list[str]] = {}
        for part in parts:
            self.digests.setdefault(part.about.scan, []).append(part.about.digest)
        each = [len(part.slices) for part in parts]
        files = _Files(
            [part.path for part in parts],
            np.cumsum(each),
            _TensorLayout(np.array([part.features for part in parts]), shape, np.dtype("<f2")),
            _TensorLayout(np.array([part.mask for part in parts]), parts[0].mask_size, np.dtype("u1")),
        )

        def of_scan(values: Sequence[str]) -> NDArray[np.str_]:
            return np.repeat(np.array(values, dtype=np.str_), each)

        super().__init__(
            files,
            np.arange(sum(each)),
            classes,
            np.repeat(np.array([classes.index(part.about.label) for part in parts], dtype=np.int64), each),
            of_scan([part.about.patient or part.about.scan for part in parts]),
            of_scan([part.about.scan for part in parts]),
            of_scan([part.about.cohort for part in parts]),
            np.concatenate([part.slices for part in parts]),
            np.concatenate([part.tumour for part in parts]).astype(np.int64),
        )

    def _read_headers(self, classes: tuple[str, ...]) -> dict[str, dict[int, PartFile]]:
        """The parts of each scan."""
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder}: no such folder")
        scans: dict[str, dict[int, PartFile]] = {}
        for part in stored_parts(self.folder):
            if isinstance(part, StoreError):
                self.problems.append(str(part))
                continue
            same = scans.setdefault(part.about.scan, {})
            if part.about.label not in classes:
                self.problems.append(f"{part.path}: label {part.about.label!r} is not one of {', '.join(classes)}")
            elif part.about.part in same:
                self.problems.append(f"{part.path}: a copy of {same[part.about.part].path.name}")
            else:
                same[part.about.part] = part
        return scans

    def _whole_scans(self, scans: dict[str, dict[int, PartFile]]) -> list[PartFile]:
        whole: list[PartFile] = []
        for _, by_index in sorted(scans.items()):
            parts = [part for _, part in sorted(by_index.items())]
            if not parts:
                continue
            first = parts[0].about
            name = f"{self.folder}: scan {first.scan}"  # not its name, since this is logged
            kinds = {(part.about.patient, part.about.label, part.about.parts) for part in parts}
            if len(kinds) > 1 or parts[-1].about.part >= first.parts:
                self.problems.append(f"{name}: its parts have different patients, labels or counts")
            elif len(parts) < first.parts:
                self.problems.append(f"{name}: {first.parts - len(parts)} of {first.parts} parts are missing")
            else:
                whole += parts
        return whole


@dataclass(frozen=True)
class _TensorLayout:
    """Where a tensor is in each file (its samples follow one another), and what one sample is."""

    starts: Indices  # the first byte in each file
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Files:
    """The files of the samples. File n has the samples from ``ends[n - 1]`` up to ``ends[n]``."""

    paths: list[Path]
    ends: Indices
    features: _TensorLayout
    mask: _TensorLayout

    def read(self, tensor: _TensorLayout, at: Indices, into: NDArray[Any]) -> None:
        """Fill ``into`` [n, ...] with the samples numbered ``at`` [n]."""
        sample = np.empty(tensor.shape, dtype=tensor.dtype)  # one at a time, so that it stays in the processor's cache
        for place in np.argsort(at, kind="stable"):
            file = int(np.searchsorted(self.ends, at[place], side="right"))
            index = int(at[place]) - (int(self.ends[file - 1]) if file else 0)
            try:
                with self.paths[file].open("rb", buffering=0) as opened:
                    opened.seek(int(tensor.starts[file]) + index * sample.nbytes)
                    read = opened.readinto(sample.data)
            except OSError as error:
                raise StoreError(f"{self.paths[file]}: {error.strerror or error}") from None
            if read != sample.nbytes:
                raise StoreError(f"{self.paths[file]}: has become shorter since the store was opened")
            into[place] = sample
