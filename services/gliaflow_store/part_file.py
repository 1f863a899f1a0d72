"""A file of the feature store: one part of a scan, in safetensors format.

A file has ``features`` FP16 [n, C, H, W], the predicted ``mask`` UINT8 [n, rows, columns], ``slices`` INT32 [n]
(canonical z) and ``tumour`` INT32 [n] (tumour pixels of the mask). Its metadata name scan, patient, label, submission
and origin. Masks are not compressed: they are an eighth of a file at 15×15×1024 and less at larger taps, and any
safetensors reader can show them.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from gliaflow_proto import Scan
from gliaflow_runtime.files import write_whole
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save

SCHEMA = "gliaflow-store/1"
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 2**20
LEFT_AFTER_S = 3600  # a temporary file that is older was left by a killed process

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


class PartMetadata(BaseModel):
    """The metadata of a file. Files of earlier versions have no ``submission``, ``recorded`` and ``digest``.

    ``recorded`` is the time of writing (ISO 8601, UTC). ``digest`` is that of the features (``features_digest``).
    """

    model_config = ConfigDict(frozen=True)
    schema_: Literal["gliaflow-store/1"] = Field(alias="schema")
    scan: str
    name: str
    submission: str = ""
    patient: str
    cohort: str
    label: str
    part: Size
    parts: Size
    bundle: str
    tap: str
    recorded: str = ""
    digest: str = ""


@dataclass(frozen=True)
class PartFile:
    """A file: its header and its two short tensors. ``features`` and ``mask`` are where these tensors start."""

    path: Path
    about: PartMetadata
    origin: FeatureOrigin
    mask_size: tuple[int, int]
    features: int
    mask: int
    slices: NDArray[np.int32]
    tumour: NDArray[np.int32]

    def read_features(self) -> NDArray[np.float16]:
        """The features [n, C, H, W]. Raises StoreError: the file cannot be read."""
        shape = (len(self.slices), *self.origin.shape)
        try:
            return np.fromfile(self.path, "<f2", math.prod(shape), offset=self.features).reshape(shape)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}: {error}") from None


def part_path(folder: Path, scan: str, index: int) -> Path:
    """The file of a part. Its name is a digest, since the scan's id is untrusted text."""
    return folder / (hashlib.sha256(f"{scan}\x1f{index}".encode()).hexdigest()[:32] + SUFFIX)


def features_digest(features: NDArray[np.float16]) -> str:
    """Identifies features. Empty if all of them are 0, as in cropped features of slices without tumour."""
    return hashlib.sha256(features.tobytes()).hexdigest() if features.any() else ""


def write_part(folder: Path, part: StoredPart) -> Path:
    """Write one part of a scan as a whole file. It never replaces a file.

    When this returns, the file is on the disk. A process that is killed leaves at most a file ``*.part``, which no
    store reads.

    Raises
    ------
    FileExistsError: this part of the scan is stored already, or another process has just written it.
    OSError: the file cannot be written.
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
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": features_digest(part.features),
    }
    tensors = {
        "features": np.ascontiguousarray(part.features, dtype=np.float16),
        "mask": np.ascontiguousarray(part.mask, dtype=np.uint8),
        "slices": np.asarray(part.slices, dtype=np.int32),
        "tumour": np.count_nonzero(part.mask, axis=(1, 2)).astype(np.int32),
    }
    path = part_path(folder, scan.id, index)
    write_whole(path, save(tensors, about), sync=True, new=True)  # before the message is acknowledged
    return path


def stored_parts(folder: Path) -> Iterator[PartFile | StoreError]:
    """The files of a store in the order of their names; for a file that is not a complete part, why it is not."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield read_part(path)
        except StoreError as error:
            yield error


def origin_of(folder: Path) -> FeatureOrigin | None:
    """The origin of the features in a folder; None if there are none."""
    return next((part.origin for part in stored_parts(folder) if isinstance(part, PartFile)), None)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed long ago."""
    for path in folder.glob(f".*{SUFFIX}.*.part"):
        try:
            if time.time() - path.stat().st_mtime > LEFT_AFTER_S:
                path.unlink()
        except FileNotFoundError:  # another recorder has just finished it
            continue


def read_part(path: Path) -> PartFile:
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
    return PartFile(path, header.about, origin, (rows, columns), features, mask, short[0], short[1])


class _Tensor(BaseModel):
    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


class _Header(BaseModel):
    """A safetensors header: its length in 8 bytes, then JSON; the bytes of the tensors follow."""

    about: PartMetadata = Field(alias="__metadata__")
    features: _Tensor
    mask: _Tensor
    slices: _Tensor
    tumour: _Tensor
