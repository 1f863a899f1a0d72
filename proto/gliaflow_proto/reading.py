"""Reading a message: all fields are checked. An error names the field, the expected type and the type that it has.

The types are strict (see ``proto/README.md``). Only nil is as good as a field that is left out, and an integer is
also a number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, TypeVar

import msgpack

from gliaflow_proto.classes import CLASSES
from gliaflow_proto.errors import ProtocolError, shown, type_name
from gliaflow_proto.fragments import Packed, entries
from gliaflow_proto.geometry import MAX_SIDE, MAX_VOXELS, Forms, Geometry, check_affine, check_forms, check_geometry
from gliaflow_proto.messages import (
    KINDS,
    MAX_ATTEMPTS,
    MAX_DECODED_BYTES,
    MAX_SHARDS,
    MAX_TEXT,
    MAX_WARNINGS,
    NO_TUMOUR,
    SCHEMA,
    SEQUENCES,
    SUBMISSION,
    Message,
    PredictionMessage,
    Scan,
    SequenceSource,
    Source,
    Tensor,
)
from gliaflow_proto.tensors import outline_tensor, unpack_tensor

MAX_LIST = 8192  # entries of a msgpack array or map
MAX_CONTAINERS = 256  # arrays and maps in a message; together with MAX_LIST, this limits the memory for decoding
MAX_TEXT_BYTES = 64 * 2**10
MAX_ML = 1001.0 * MAX_VOXELS  # stages read voxels of up to 100 mm (1,000 ml); the rest is for rounding
MAX_DEPTH = 3  # of a field that an error names, as in tensors.image.data

BAD_KEY = "a map key is not text (msgpack str)"
LIMITS = {  # a part of msgpack's error: what is wrong
    "max_str_len": f"text of over {MAX_TEXT_BYTES} bytes; bytes must be msgpack bin, not str",
    "max_ext_len": "a msgpack extension type, which gliaflow does not use",
    "max_array_len": f"an array of over {MAX_LIST} entries",
    "max_map_len": f"a map of over {MAX_LIST} entries",
    "strict_map_key": BAD_KEY,
    BAD_KEY: BAD_KEY,
    "arrays and maps": f"over {MAX_CONTAINERS} arrays and maps",
}
EXPECTED = {
    "str": "text",
    "bytes": "binary data (msgpack bin)",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list[str]": "an array of texts",
    "list[int]": "an array of integers",
    "list[float]": "an array of numbers",
}
NUMBERS: dict[str, type] = {"list[int]": int, "list[float]": float}
MAPPED: dict[str, type[Any]] = {
    "Scan": Scan,
    "Geometry": Geometry,
    "Source": Source,
    "SequenceSource": SequenceSource,
    "Forms": Forms,
}
OF_SEQUENCES = "dict[str, SequenceSource]"

Built = TypeVar("Built")


def decode(data: bytes, *, contents: bool | Collection[str] = True) -> Message:
    """Read any message.

    ``contents``: False leaves the tensors packed, for a reader that needs only the other fields: then each tensor has
    its dtype and shape, is zero everywhere, and takes no memory. Or the kinds of messages whose tensors are unpacked.

    Raises
    ------
    ProtocolError: not msgpack, another schema, an unknown kind, or a field that is missing or invalid.
    """
    if len(data) > MAX_DECODED_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes is over the limit of {MAX_DECODED_BYTES}")
    document = _unpacked(data)
    if not isinstance(document, dict):
        raise ProtocolError(f"expected a msgpack map, got {type_name(document)}")
    schema = document.get("schema")
    if schema is None:
        raise ProtocolError(f"schema: missing, expected {SCHEMA!r}")
    if schema != SCHEMA:
        raise ProtocolError(
            f"schema: {shown(schema)}, but this gliaflow reads only {SCHEMA!r}: the message is of another version. "
            "Upgrade, then replay it with `gliaflow dead replay` (docs/upgrading.md)"
        )
    kind = document.get("kind")
    if kind is None:
        raise ProtocolError(f"kind: missing, expected one of {', '.join(KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ProtocolError(f"kind: {shown(kind)} is not one of {', '.join(KINDS)}")
    tensors = document.get("tensors")
    if not isinstance(tensors, dict | None):
        raise ProtocolError(f"tensors: expected a map, got {type_name(tensors)}")
    unpacked = contents if isinstance(contents, bool) else kind in contents
    unpack = unpack_tensor if unpacked else outline_tensor
    return _build(KINDS[kind], document, tensors or {}, "", unpack)


def _unpacked(data: bytes) -> object:
    """The msgpack object. Raises ProtocolError with the name of the field that cannot be unpacked."""
    try:
        return _unpack(data)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, MemoryError) as error:
        where, cause = _locate(data) or ("", error)
        known = next((words for part, words in LIMITS.items() if part in str(cause)), "")
        where = where or ("the message" if known else "not a msgpack message")
        raise ProtocolError(f"{where}: {known or f'{type(cause).__name__} {cause}'.strip()}") from None


def _unpack(data: Packed) -> object:
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ValueError(f"over {MAX_CONTAINERS} arrays and maps")
        if isinstance(container, dict) and not all(type(key) is str for key in container):
            raise ValueError(BAD_KEY)
        return container

    return msgpack.unpackb(
        data,
        list_hook=counted,
        object_hook=counted,
        max_array_len=min(MAX_LIST, len(data)),  # msgpack allocates as many entries as an array claims
        max_map_len=min(MAX_LIST, len(data)),
        max_str_len=MAX_TEXT_BYTES,
        max_ext_len=0,
        strict_map_key=True,
        unicode_errors="surrogateescape",  # so that the check of the field can name it
    )


def _locate(data: Packed, prefix: str = "") -> tuple[str, Exception] | None:
    """The first field that cannot be unpacked, and why."""
    for key, packed in entries(data):
        if not isinstance(key, bytes):
            continue
        field = prefix + ascii(key[:40].decode("utf-8", "replace"))[1:-1]
        try:
            _unpack(packed)
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError, MemoryError) as error:
            deeper = field.count(".") + 1 < MAX_DEPTH and _locate(packed, field + ".")
            return deeper or (field, error)
    return None


def _build(
    cls: type[Built],
    document: dict[str, Any],
    tensors: dict[str, Any],
    prefix: str,
    unpack: Callable[[object, str, int], Tensor] = unpack_tensor,
) -> Built:
    """Make ``cls`` from a map. Unknown keys are ignored, so that later versions can add fields."""
    values: dict[str, Any] = {}
    room = getattr(cls, "max_tensor_bytes", 0)
    for item in _fields(cls):  # type: ignore[arg-type]
        where = prefix + item.name
        value = document.get(item.name)
        if item.type == "Tensor":
            tensor = unpack(tensors.get(item.name), f"tensors.{item.name}", room)
            if (tensor.dtype, tensor.ndim) != (item.metadata["dtype"], item.metadata["dimensions"]):
                raise ProtocolError(
                    f"tensors.{item.name}: {tensor.dtype} {list(tensor.shape)}, expected {item.metadata['dtype']} "
                    f"with {item.metadata['dimensions']} dimensions"
                )
            room -= tensor.nbytes
            values[item.name] = tensor
        elif value is not None:
            values[item.name] = _check(value, str(item.type).removesuffix(" | None"), where)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ProtocolError(f"{where}: missing")
    built = cls(**values)
    if isinstance(built, Message):
        _check_part(built.part)
    if isinstance(built, Forms):
        check_forms(built)
    if isinstance(built, Scan) and not SUBMISSION.fullmatch(built.submission):
        raise ProtocolError(
            "scan.submission: expected at most 64 letters, digits, - and _: it is part of a routing key"
        )
    if isinstance(built, Scan) and not 0 <= built.attempt < MAX_ATTEMPTS:
        raise ProtocolError(f"scan.attempt: {built.attempt} is not from 0 to {MAX_ATTEMPTS - 1}")
    if isinstance(built, Scan) and not 0 <= built.shard < MAX_SHARDS:
        raise ProtocolError(f"scan.shard: {built.shard} is not from 0 to {MAX_SHARDS - 1}")
    if isinstance(built, Source) and sum(x is not None for x in (built.data, built.uri, built.upload)) != 1:
        raise ProtocolError(f"{prefix[:-1]}: expected exactly one of data, uri, upload")
    if isinstance(built, Geometry):
        check_geometry(built)
    if isinstance(built, PredictionMessage):
        _check_prediction(built)
    return built


@cache
def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _check(value: Any, kind: str, where: str) -> Any:
    """The value, if it has the type ``kind`` (the annotation of its field)."""
    if kind in MAPPED:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: expected a map, got {type_name(value)}")
        return _build(MAPPED[kind], value, {}, where + ".")
    if kind == OF_SEQUENCES:
        return _sequences(value, where)
    if not kind.startswith("list["):
        return _checked(value, kind, where)
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: expected {EXPECTED[kind]}, got {type_name(value)}")
    if (number := NUMBERS.get(kind)) and set(map(type, value)) <= {number} and all(map(math.isfinite, value)):
        return value  # at once: most of the time of reading a part went into its numbers
    if kind == "list[str]" and len(value) > MAX_WARNINGS:
        raise ProtocolError(f"{where}: {len(value)} texts, over the limit of {MAX_WARNINGS}")
    return [_checked(entry, kind[5:-1], where, f"[{index}]") for index, entry in enumerate(value)]


def _sequences(value: Any, where: str) -> dict[str, SequenceSource]:
    """The sequences beside the FLAIR, by name. One that is nil is left out."""
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: expected a map, got {type_name(value)}")
    if unknown := next((name for name in value if name not in SEQUENCES[1:]), None):
        raise ProtocolError(f"{where}: {shown(unknown)} is not one of {', '.join(SEQUENCES[1:])}")
    return {name: _check(each, "SequenceSource", f"{where}.{name}") for name, each in value.items() if each is not None}


def _checked(value: Any, kind: str, where: str, index: str = "") -> Any:
    """A value that is neither a list nor a map. An error names its type and not the value, since reasons are logged."""
    match kind, value:
        case "str", str() if len(value) > MAX_TEXT:
            fault = f"text of {len(value)} characters, over the limit of {MAX_TEXT}"
        case "str", str() if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            fault = "text that is not UTF-8"
        case "float", int() | float() if type(value) is not bool:
            if math.isfinite(value):
                return float(value)
            fault = f"expected a finite number, got {value}"
        case _ if type(value).__name__ == kind:
            return value
        case _:
            fault = f"expected {EXPECTED[kind]}, got {type_name(value)}"
    raise ProtocolError(f"{where}{index}: {fault}")


def _check_part(part: list[int]) -> None:
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 100_000:
        raise ProtocolError(f"part: expected [index, count] with 0 <= index < count, got {part[:4]}")


def _check_prediction(prediction: PredictionMessage) -> None:
    check_affine(prediction.affine, "affine")
    sides = prediction.mask.shape
    if not all(0 < side <= MAX_SIDE for side in sides):
        raise ProtocolError(f"tensors.mask: shape {list(sides)}, expected sizes from 1 to {MAX_SIDE}")
    if not 0 <= prediction.p_hgg <= 1:
        raise ProtocolError(f"p_hgg: {prediction.p_hgg:g} is not a probability")
    if prediction.status not in ("ok", NO_TUMOUR):
        raise ProtocolError(f"status: {shown(prediction.status)} is not 'ok' or {NO_TUMOUR!r}")
    if prediction.grade not in ("", *CLASSES):
        raise ProtocolError(f"grade: {shown(prediction.grade)} is not one of {', '.join(CLASSES)}")
    if not 0 <= prediction.tumour_ml <= MAX_ML:
        raise ProtocolError(f"tumour_ml: {prediction.tumour_ml:g} is not from 0 to {MAX_ML:g}")
    if not 0 <= prediction.tumour_slices <= prediction.slices <= MAX_SIDE:
        raise ProtocolError(
            f"slices, tumour_slices: {prediction.tumour_slices} of {prediction.slices} slices, expected 0 to {MAX_SIDE}"
        )
    numbers, probabilities = prediction.slice_numbers, prediction.slice_p_hgg
    if len(numbers) != len(probabilities):
        raise ProtocolError(f"slice_p_hgg: {len(probabilities)} numbers for {len(numbers)} slice_numbers")
    if numbers != sorted(set(numbers)) or not all(0 <= number < max(sides) for number in numbers):
        raise ProtocolError(f"slice_numbers: expected rising numbers from 0 to {max(sides) - 1}")
    if not all(0 <= p <= 1 for p in probabilities):
        raise ProtocolError("slice_p_hgg: expected probabilities")
