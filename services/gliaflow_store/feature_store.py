"""The feature store: a folder with a safetensors file for each part of a scan, read a sample at a time.

Training reads any tap in bounded memory. Files are read and not mapped: mapped pages would count as this process's own
until the kernel takes them back. Batches are read in any order, in memory that does not grow with the store.

A file holds ``features`` FP16 [n, C, H, W], ``mask`` UINT8 [n, rows, columns] as the U-Net found it, ``slices`` INT32
[n] (canonical z) and ``tumour`` INT32 [n] (pixels of that mask), and says in its metadata whose they are. There is no
index beside the files: opening a store reads their headers. Masks are not packed: they are an eighth of a file at
15×15×1024 and less at larger taps, and any safetensors reader can show them as they are.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
from gliaflow_proto import Scan
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save

SCHEMA = "gliaflow-store/1"
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 2**20

Indices = NDArray[np.int64]
Size = Annotated[int, Field(ge=0)]


class StoreError(ValueError):
    """A store, or a file of one, that cannot be used. The text names the file."""


class Origin(NamedTuple):
    """Where features come from. All files of a store have the same."""

    bundle: str
    tap: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))} of tap {self.tap} of {self.bundle}"


def write_part(
    folder: Path,
    scan: Scan,
    part: Sequence[int],
    origin: Origin,
    features: NDArray[np.float16],
    mask: NDArray[np.uint8],
    slices: Sequence[int],
) -> Path:
    """Write one part of a scan, whole or not at all; the same part of the same scan is overwritten.

    When it returns, the file is on the disk. A process that is killed leaves at most a file ``*.part``, which no
    store reads.

    Parameters
    ----------
    part: [index, count].
    features, mask, slices: [n, C, H, W], [n, rows, columns] and [n].

    Raises
    ------
    OSError: it cannot be written.
    """
    about = {
        "schema": SCHEMA,
        "scan": scan.id,
        "name": scan.name,
        "submission": scan.submission,
        "patient": scan.patient,
        "cohort": scan.cohort,
        "label": scan.label or "",
        "part": str(part[0]),
        "parts": str(part[1]),
        "bundle": origin.bundle,
        "tap": origin.tap,
    }
    tensors = {
        "features": np.ascontiguousarray(features, dtype=np.float16),
        "mask": np.ascontiguousarray(mask, dtype=np.uint8),
        "slices": np.asarray(slices, dtype=np.int32),
        "tumour": np.count_nonzero(mask, axis=(1, 2)).astype(np.int32),
    }
    # a name made of digits: an id is a stranger's text
    path = folder / (hashlib.sha256(f"{scan.id}\x1f{part[0]}".encode()).hexdigest()[:32] + SUFFIX)
    unfinished = path.with_suffix(f".{uuid4().hex[:8]}.part")
    try:
        with unfinished.open("xb") as file:
            file.write(save(tensors, about))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name too, before the message is let go of
    finally:
        os.close(directory)
    return path


@dataclass(eq=False)
class Samples:
    """Samples of a store: a ``FeatureSource`` that knows whose they are. Arrays are [N], in the order of the samples.

    ``slices`` is the canonical z, ``tumour`` the pixels of tumour that the U-Net found. A scan whose patient was not
    told is a patient of its own.
    """

    files: _Files
    at: Indices  # which samples of the files
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

        Raises
        ------
        StoreError: a file is gone, or shorter than it was.
        """
        found = np.empty((len(indices), *self.shape), dtype=np.float32)
        self.files.read(self.files.features, self.at[indices], found)
        return found

    def masks(self, indices: Indices) -> NDArray[np.uint8]:
        """The U-Net's masks UINT8 [n, rows, columns] of the samples at ``indices`` [n]. Raises as ``batch`` does."""
        found = np.empty((len(indices), *self.files.mask.shape), dtype=np.uint8)
        self.files.read(self.files.mask, self.at[indices], found)
        return found

    def select(self, indices: Indices | NDArray[np.bool_]) -> Samples:
        """The samples at ``indices``, or where a mask [N] is true. No features are copied."""
        return Samples(
            self.files,
            self.at[indices],
            self.classes,
            self.labels[indices],
            self.patients[indices],
            self.scans[indices],
            self.cohorts[indices],
            self.slices[indices],
            self.tumour[indices],
        )

    def with_labels(self, labels: Indices, classes: tuple[str, ...]) -> Samples:
        """The same samples for another task: ``labels`` [N] are indices into ``classes``.

        Raises
        ------
        ValueError: there is not one label a sample, or one is no index into ``classes``.
        """
        if labels.shape != self.at.shape or not np.isin(labels, np.arange(len(classes))).all():
            raise ValueError(f"labels {labels.shape} must be one for each of {len(self)} samples, from {classes}")
        view = self.select(np.arange(len(self)))
        view.labels, view.classes = labels.astype(np.int64), classes
        return view


class FeatureStore(Samples):
    """All samples of a folder, in the order of scan id and part, whatever order they came in.

    ``problems`` names what was left out, a line each: files that cannot be read or are none of ours, scans of which
    a part is missing or is of another patient. One bad file must not hide the others.

    Parameters
    ----------
    folder: where a ``Recorder`` wrote.
    classes: the labels that count; label n is the n-th.

    Raises
    ------
    StoreError: there is no folder, no whole scan in it, or files are of different bundles or taps.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...] = ("HGG", "LGG")) -> None:
        self.folder = folder
        self.problems: list[str] = []
        parts = self._whole_scans(self._read_headers(classes))
        if not parts:
            told = "".join(f"; {problem}" for problem in self.problems[:3])
            raise StoreError(f"{folder}: no whole labelled scan is stored here{told}")
        for part in parts:
            if (part.origin, part.mask_size) != (parts[0].origin, parts[0].mask_size):
                raise StoreError(
                    f"{folder}: features of different origin: {parts[0].path.name} has {parts[0].origin}, "
                    f"{part.path.name} has {part.origin}; make the store anew"
                )
        self.bundle, self.tap, shape = parts[0].origin
        each = [len(part.slices) for part in parts]
        files = _Files(
            [part.path for part in parts],
            np.cumsum(each),
            _Kept(np.array([part.features for part in parts]), shape, np.dtype("<f2")),
            _Kept(np.array([part.mask for part in parts]), parts[0].mask_size, np.dtype("u1")),
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

    def _read_headers(self, classes: tuple[str, ...]) -> dict[str, dict[int, _Part]]:
        """The parts of each scan."""
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder}: no such folder")
        scans: dict[str, dict[int, _Part]] = {}
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

    def _whole_scans(self, scans: dict[str, dict[int, _Part]]) -> list[_Part]:
        whole: list[_Part] = []
        for _, by_index in sorted(scans.items()):
            parts = [part for _, part in sorted(by_index.items())]
            if not parts:
                continue
            first = parts[0].about
            name = f"{self.folder}: scan {first.scan}"  # not its name: this is logged
            kinds = {(part.about.patient, part.about.label, part.about.parts) for part in parts}
            if len(kinds) > 1 or parts[-1].about.part >= first.parts:
                self.problems.append(f"{name}: its parts do not belong together")
            elif len(parts) < first.parts:
                self.problems.append(f"{name}: {first.parts - len(parts)} of {first.parts} parts are missing")
            else:
                whole += parts
        return whole


def origin_of(folder: Path) -> Origin | None:
    """What the features in a folder are; None where there are none."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            return _read_header(path).origin
        except StoreError:  # named when the store is opened
            continue
    return None


@dataclass(frozen=True)
class _Kept:
    """A tensor of every file: from which byte its samples lie one after another, and what one is."""

    starts: Indices
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Files:
    """Where the samples lie. File n holds those from ``ends[n - 1]`` up to ``ends[n]``."""

    paths: list[Path]
    ends: Indices
    features: _Kept
    mask: _Kept

    def read(self, tensor: _Kept, at: Indices, into: NDArray[Any]) -> None:
        """Fill ``into`` [n, ...] with the samples numbered ``at`` [n]."""
        sample = np.empty(tensor.shape, dtype=tensor.dtype)  # one at a time: it stays in the processor's cache
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
                raise StoreError(f"{self.paths[file]}: shorter than it was when the store was opened")
            into[place] = sample


class _Tensor(BaseModel):
    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


class _About(BaseModel):
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
    """A safetensors header: JSON after its length in 8 bytes; the tensors' bytes follow."""

    about: _About = Field(alias="__metadata__")
    features: _Tensor
    mask: _Tensor
    slices: _Tensor
    tumour: _Tensor


@dataclass(frozen=True)
class _Part:
    """A file as its header tells, the two short tensors read: ``features`` and ``mask`` start at these bytes."""

    path: Path
    about: _About
    origin: Origin
    mask_size: tuple[int, int]
    features: int
    mask: int
    slices: NDArray[np.int32]
    tumour: NDArray[np.int32]


def _read_header(path: Path) -> _Part:
    """Raises StoreError where it is no file of ours, or not whole."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MAX_HEADER_BYTES:
                raise StoreError(f"{path}: no safetensors file")
            header = _Header.model_validate_json(file.read(length))
            data = os.fstat(file.fileno()).st_size - 8 - length
            kinds = {"features": ("F16", 2, 4), "mask": ("U8", 1, 3), "slices": ("I32", 4, 1), "tumour": ("I32", 4, 1)}
            count = header.features.shape[0] if header.features.shape else 0
            for name, (dtype, size, axes) in kinds.items():
                tensor: _Tensor = getattr(header, name)
                begin, end = tensor.data_offsets
                if tensor.dtype != dtype or len(tensor.shape) != axes or tensor.shape[0] != count:
                    raise StoreError(f"{path}: {name}: {tensor.dtype} {tensor.shape} is not what a store holds")
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
    origin = Origin(header.about.bundle, header.about.tap, (channels, height, width))
    rows, columns = header.mask.shape[1:]
    features, mask = (8 + length + tensor.data_offsets[0] for tensor in (header.features, header.mask))
    return _Part(path, header.about, origin, (rows, columns), features, mask, short[0], short[1])
