"""The feature store: a folder with one safetensors file for each part of a scan.

Batches are read in any order, and memory does not grow with the store or the size of the tap. Files are read, not
mapped: mapped pages would count as this process's memory until the kernel frees them.

A file has ``features`` FP16 [n, C, H, W], the predicted ``mask`` UINT8 [n, rows, columns], ``slices`` INT32 [n]
(canonical z) and ``tumour`` INT32 [n] (tumour pixels of the mask). Its metadata name scan, patient, label and origin.
There is no separate index: opening a store reads the headers of its files. Masks are not compressed: they are an eighth
of a file at 15×15×1024 and less at larger taps, and any safetensors reader can show them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from gliaflow_proto import CLASSES, Scan
from gliaflow_runtime.files import write_whole
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save

SCHEMA = "gliaflow-store/1"
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 2**20

Indices = NDArray[np.int64]
Size = Annotated[int, Field(ge=0)]


class StoreError(ValueError):
    """A store, or one of its files, cannot be used. The text names the file."""


class FeatureOrigin(NamedTuple):
    """The bundle, tap and shape of features. It is the same in all files of a store."""

    bundle: str
    tap: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))} of tap {self.tap} of {self.bundle}"


@dataclass(frozen=True, eq=False)
class StoredPart:
    """One part of a scan, to be written to a store."""

    scan: Scan
    part: Sequence[int]  # [index, count]
    origin: FeatureOrigin
    features: NDArray[np.float16]  # [n, C, H, W]
    mask: NDArray[np.uint8]  # [n, rows, columns]
    slices: Sequence[int]  # [n]


def write_part(folder: Path, part: StoredPart) -> Path:
    """Write one part of a scan as a whole file; it replaces an earlier file of the same part.

    When this returns, the file is on the disk. A process that is killed leaves at most a file ``*.part``, which no
    store reads. Raises OSError if the file cannot be written.
    """
    scan, (index, count) = part.scan, part.part
    about = {
        "schema": SCHEMA,
        "scan": scan.id,
        "name": scan.name,
        "submission": scan.submission,
        "patient": scan.patient,
        "cohort": scan.cohort,
        "label": scan.label or "",
        "part": str(index),
        "parts": str(count),
        "bundle": part.origin.bundle,
        "tap": part.origin.tap,
    }
    tensors = {
        "features": np.ascontiguousarray(part.features, dtype=np.float16),
        "mask": np.ascontiguousarray(part.mask, dtype=np.uint8),
        "slices": np.asarray(part.slices, dtype=np.int32),
        "tumour": np.count_nonzero(part.mask, axis=(1, 2)).astype(np.int32),
    }
    # the name is a digest, since the id is untrusted text
    path = folder / (hashlib.sha256(f"{scan.id}\x1f{index}".encode()).hexdigest()[:32] + SUFFIX)
    write_whole(path, save(tensors, about), sync=True)  # before the message is acknowledged
    return path


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
    scan with missing parts or with parts of different patients. The other scans are used.

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

    def _read_headers(self, classes: tuple[str, ...]) -> dict[str, dict[int, _PartFile]]:
        """The parts of each scan."""
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder}: no such folder")
        scans: dict[str, dict[int, _PartFile]] = {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                part = _read_header(path)
            except StoreError as error:
                self.problems.append(str(error))
                continue
            same = scans.setdefault(part.about.scan, {})
            if part.about.label not in classes:
                self.problems.append(f"{path}: label {part.about.label!r} is not one of {', '.join(classes)}")
            elif part.about.part in same:
                self.problems.append(f"{path}: a copy of {same[part.about.part].path.name}")
            else:
                same[part.about.part] = part
        return scans

    def _whole_scans(self, scans: dict[str, dict[int, _PartFile]]) -> list[_PartFile]:
        whole: list[_PartFile] = []
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


def origin_of(folder: Path) -> FeatureOrigin | None:
    """The origin of the features in a folder; None if there are none."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            return _read_header(path).origin
        except StoreError:  # reported when the store is opened
            continue
    return None


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


class _Tensor(BaseModel):
    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True)
    schema_: Literal["gliaflow-store/1"] = Field(alias="schema")
    scan: str
    name: str
    patient: str
    cohort: str
    label: str
    part: Size
    parts: Size
    bundle: str
    tap: str


class _Header(BaseModel):
    """A safetensors header: its length in 8 bytes, then JSON; the bytes of the tensors follow."""

    about: _Metadata = Field(alias="__metadata__")
    features: _Tensor
    mask: _Tensor
    slices: _Tensor
    tumour: _Tensor


@dataclass(frozen=True)
class _PartFile:
    """A file: its header and its two short tensors. ``features`` and ``mask`` are where these tensors start."""

    path: Path
    about: _Metadata
    origin: FeatureOrigin
    mask_size: tuple[int, int]
    features: int
    mask: int
    slices: NDArray[np.int32]
    tumour: NDArray[np.int32]


def _read_header(path: Path) -> _PartFile:
    """Read a file's header. Raises StoreError if it is not a complete file of a feature store."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MAX_HEADER_BYTES:
                raise StoreError(f"{path}: not a safetensors file")
            header = _Header.model_validate_json(file.read(length))
            data = os.fstat(file.fileno()).st_size - 8 - length
            kinds = {"features": ("F16", 2, 4), "mask": ("U8", 1, 3), "slices": ("I32", 4, 1), "tumour": ("I32", 4, 1)}
            count = header.features.shape[0] if header.features.shape else 0
            for name, (dtype, size, axes) in kinds.items():
                tensor: _Tensor = getattr(header, name)
                begin, end = tensor.data_offsets
                if tensor.dtype != dtype or len(tensor.shape) != axes or tensor.shape[0] != count:
                    raise StoreError(f"{path}: {name}: {tensor.dtype} {tensor.shape} is not valid in a store")
                if end - begin != size * math.prod(tensor.shape) or end > data:
                    raise StoreError(f"{path}: cut short")
            short = []
            for tensor in (header.slices, header.tumour):
                file.seek(8 + length + tensor.data_offsets[0])
                short.append(np.frombuffer(file.read(4 * count), dtype="<i4"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "header"
        raise StoreError(f"{path}: not a file of a feature store: {where}: {first['msg']}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
    _, channels, height, width = header.features.shape
    origin = FeatureOrigin(header.about.bundle, header.about.tap, (channels, height, width))
    rows, columns = header.mask.shape[1:]
    features, mask = (8 + length + tensor.data_offsets[0] for tensor in (header.features, header.mask))
    return _PartFile(path, header.about, origin, (rows, columns), features, mask, short[0], short[1])
