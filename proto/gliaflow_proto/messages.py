"""The messages between stages: one msgpack map each, readable in any language (see ``proto/README.md``).

Each kind of message is a dataclass. The class is the schema: ``encode`` and ``decode`` use the types of its fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from gliaflow_proto.errors import ProtocolError, shown
from gliaflow_proto.geometry import MAX_SIDE, Forms, Geometry, check_affine, check_forms, check_geometry
from gliaflow_proto.tensors import DTYPES, MAX_TENSOR_BYTES, pack_tensor, unpack_tensor

SCHEMA = "gliaflow/1"
NO_TUMOUR: Literal["no tumour"] = "no tumour"  # the status of a prediction without a grade
MAX_MESSAGE_BYTES = 8 * 2**20  # RabbitMQ 4 refuses messages over 16 MiB
MAX_DECODED_BYTES = 16 * 2**20
MAX_TEXT = 4096
MAX_WARNINGS = 32
SUBMISSION = re.compile(r"[A-Za-z0-9_-]{0,64}")
MAX_LIST = 8192  # entries of a msgpack array or map
MAX_CONTAINERS = 256  # arrays and maps in a message; together with MAX_LIST, this limits the memory for decoding

MAX_ATTEMPTS = 2**31

Tensor = NDArray[Any]
MAPS = {"dtype": DTYPES["FP16"], "dimensions": 4}  # dtype and dimensions of a field's tensor
MASKS = {"dtype": DTYPES["UINT8"], "dimensions": 3}
LOGITS = {"dtype": DTYPES["FP64"], "dimensions": 1}


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The scan of a message. ``label`` and ``split`` are None if they are unknown.

    ``id`` is unique within a ``submission``: a second scan with the same id counts as a copy of the first.
    ``attempt`` counts how often an operator replayed the scan from the dead letters. ``sent`` is when it was first
    sent, in seconds since 1970, or None.
    """

    id: str
    submission: str = ""
    name: str = ""
    patient: str = ""
    cohort: str = ""
    label: str | None = None
    split: str | None = None
    attempt: int = 0
    sent: float | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a scan's NIfTI bytes are. Exactly one of the three is set.

    ``data``: the bytes of the file (gzipped or not). ``uri``: a file under a root that the preprocessor allows.
    ``upload``: a queue with the bytes in ``chunks`` messages, for a scan that is too large for one message.
    """

    data: bytes | None = None
    uri: str | None = None
    upload: str | None = None
    chunks: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """The fields of all kinds.

    ``id`` is deterministic (``message_id``), so that a result that is computed again has the same id.
    ``part`` is [index, count]; ``trace`` is a W3C traceparent. ``warnings`` are doubts about the scan, one sentence
    each: a stage adds its own to those of the message that it received.
    """

    kind: ClassVar[str]
    max_tensor_bytes: ClassVar[int] = 64 * 2**20  # of all its tensors together, unpacked

    id: str
    scan: Scan
    part: list[int] = field(default_factory=lambda: [0, 1])
    trace: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ScanMessage(Message):
    """A scan to process. ``channel`` is the number of the FLAIR volume in a 4-D file, from 0."""

    kind: ClassVar[str] = "scan"

    source: Source
    channel: str | None = None


@dataclass(frozen=True, kw_only=True)
class SlicesMessage(Message):
    """Slices for the U-Net: ``image`` FP16 [n, 1, rows, columns], normalised for ``bundle`` (may be empty)."""

    kind: ClassVar[str] = "slices"

    geometry: Geometry
    image: Tensor = field(metadata=MAPS)
    bundle: str = ""


@dataclass(frozen=True, kw_only=True)
class FeaturesMessage(Message):
    """Deep features FP16 [n, C, H, W] of ``tap``, and masks UINT8 [n, rows, columns], 1 in the tumour."""

    kind: ClassVar[str] = "features"

    bundle: str
    tap: str
    geometry: Geometry
    features: Tensor = field(metadata=MAPS)
    mask: Tensor = field(metadata=MASKS)


@dataclass(frozen=True, kw_only=True)
class GradedMessage(Message):
    """The grades of one part: ``logit`` FP64 [n] of the first class for each slice; masks as in ``features``."""

    kind: ClassVar[str] = "graded"

    bundle: str
    geometry: Geometry
    logit: Tensor = field(metadata=LOGITS)
    mask: Tensor = field(metadata=MASKS)


@dataclass(frozen=True, kw_only=True)
class PredictionMessage(Message):
    """The answer for one scan. ``mask`` UINT8 has the scan's own spatial shape.

    ``slices`` is the number of slices that the U-Net processed, ``tumour_slices`` of those with tumour in the mask.
    ``status`` is ``ok``, or ``no tumour``: then the scan has no grade (``grade`` is empty) and no probability
    (``p_hgg`` is 0.5, since older readers expect a number; ignore it). ``trained_on`` says what the bundle was trained
    on: ``phantoms``, ``patients``, or nothing if it is not known. ``forms``: see ``Geometry.forms``.
    """

    kind: ClassVar[str] = "prediction"
    max_tensor_bytes: ClassVar[int] = MAX_TENSOR_BYTES

    bundle: str
    grade: str
    p_hgg: float
    tumour_ml: float
    slices: int
    tumour_slices: int
    affine: list[float]
    mask: Tensor = field(metadata=MASKS)
    status: str = "ok"
    trained_on: str = ""
    forms: Forms | None = None


@dataclass(frozen=True, kw_only=True)
class GenerateMessage(Message):
    """A request for ``count`` synthetic features of class ``label``; the answer goes to ``scan.submission``.

    ``generator``: the name of the generator; empty: the one that is served.
    """

    kind: ClassVar[str] = "generate"

    label: str
    count: int
    seed: int = 0
    generator: str = ""


@dataclass(frozen=True, kw_only=True)
class SyntheticMessage(Message):
    """Synthetic features FP16 [n, C, H, W] that the critic assigned to class ``label``."""

    kind: ClassVar[str] = "synthetic"

    bundle: str
    generator: str
    tap: str
    label: str
    seed: int
    features: Tensor = field(metadata=MAPS)


@dataclass(frozen=True, kw_only=True)
class FailureMessage(Message):
    """A stage could not process a scan. The message that it rejected is in the dead letters of ``stage``."""

    kind: ClassVar[str] = "failure"

    stage: str
    reason: str


MAPPED: dict[str, type[Any]] = {"Scan": Scan, "Geometry": Geometry, "Source": Source, "Forms": Forms}
KINDS: dict[str, type[Message]] = {cls.kind: cls for cls in Message.__subclasses__()}
AnyKind = TypeVar("AnyKind", bound=Message)


def message_id(*parts: object) -> str:
    """A deterministic id from ``parts`` (scan, part, stage, bundle, ...): 32 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:32]


def new_trace() -> str:
    """A fresh W3C traceparent (Trace Context, section 3.2), sampled."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def encode(message: Message, encoding: Literal["raw", "lz4"] = "raw") -> bytes:
    """The bytes of a message. Raises ProtocolError if the dtype of a tensor is not allowed."""
    document: dict[str, Any] = {"schema": SCHEMA, "kind": message.kind}
    tensors: dict[str, Any] = {}
    for item in dataclasses.fields(message):
        value = getattr(message, item.name)
        if isinstance(value, np.ndarray):
            tensors[item.name] = pack_tensor(value, encoding)
        else:
            document[item.name] = value
    if tensors:
        document["tensors"] = tensors
    packed: bytes = msgpack.packb(document, default=vars)  # a nested dataclass becomes a map
    return packed


def decode(data: bytes) -> Message:
    """Read any message.

    Raises
    ------
    ProtocolError: not msgpack, another schema, an unknown kind, or a field that is missing or invalid.
    """
    if len(data) > MAX_DECODED_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes is over the limit of {MAX_DECODED_BYTES}")
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ValueError(f"over {MAX_CONTAINERS} arrays and maps")
        return container

    try:
        document = msgpack.unpackb(
            data,
            list_hook=counted,
            object_hook=counted,
            max_array_len=min(MAX_LIST, len(data)),  # msgpack allocates as many entries as an array claims
            max_map_len=min(MAX_LIST, len(data)),
            max_str_len=64 * 2**10,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, MemoryError) as error:
        raise ProtocolError(f"not a msgpack message: {type(error).__name__} {error}".strip()) from None
    if not isinstance(document, dict):
        raise ProtocolError(f"expected a msgpack map, got {type(document).__name__}")
    schema = document.get("schema")
    if schema != SCHEMA:
        raise ProtocolError(
            f"schema: {shown(schema)}, but this gliaflow reads only {SCHEMA!r}: the message is of another version. "
            "Upgrade, then replay it with `gliaflow dead replay` (docs/upgrading.md)"
        )
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ProtocolError(f"kind: {shown(kind)} is not one of {', '.join(KINDS)}")
    tensors = document.get("tensors", {})
    if not isinstance(tensors, dict):
        raise ProtocolError("tensors: expected a map")
    return _build(KINDS[kind], document, tensors, "")


def expect(message: Message, kind: type[AnyKind]) -> AnyKind:
    """The message, if it is of ``kind``. Raises ProtocolError if not."""
    if not isinstance(message, kind):
        raise ProtocolError(f"kind: expected {kind.kind!r}, got {message.kind!r}")
    return message


Built = TypeVar("Built")


def _build(cls: type[Built], document: dict[str, Any], tensors: dict[str, Any], prefix: str) -> Built:
    """Make ``cls`` from a map. Unknown keys are ignored, so that later versions can add fields."""
    values: dict[str, Any] = {}
    room = getattr(cls, "max_tensor_bytes", 0)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        where = prefix + item.name
        if item.type == "Tensor":
            tensor = unpack_tensor(tensors.get(item.name), f"tensors.{item.name}", room)
            if (tensor.dtype, tensor.ndim) != (item.metadata["dtype"], item.metadata["dimensions"]):
                raise ProtocolError(
                    f"tensors.{item.name}: {tensor.dtype} {list(tensor.shape)}, expected {item.metadata['dtype']} "
                    f"with {item.metadata['dimensions']} dimensions"
                )
            room -= tensor.nbytes
            values[item.name] = tensor
        elif item.name in document:
            values[item.name] = _check(document[item.name], str(item.type), where)
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
    if isinstance(built, Source) and sum(x is not None for x in (built.data, built.uri, built.upload)) != 1:
        raise ProtocolError("source: expected exactly one of data, uri, upload")
    if isinstance(built, Geometry):
        check_geometry(built)
    if isinstance(built, PredictionMessage):
        _check_prediction(built)
    return built


def _check(value: Any, kind: str, where: str) -> Any:
    """The value, if it has the type ``kind`` (the annotation of its field)."""
    if value is None and kind.endswith(" | None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind in MAPPED:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: expected a map, got {type(value).__name__}")
        return _build(MAPPED[kind], value, {}, where + ".")
    if kind == "str" and isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    if kind == "bytes" and isinstance(value, bytes):
        return value
    if kind == "int" and type(value) is int:
        return value
    if kind == "float" and _finite(value):
        return float(value)
    if kind == "list[str]" and _is_texts(value):
        return value
    if kind == "list[int]" and isinstance(value, list) and all(type(x) is int for x in value):
        return value
    if kind == "list[float]" and isinstance(value, list) and all(_finite(x) for x in value):
        return [float(x) for x in value]
    raise ProtocolError(f"{where}: expected {kind}, got {type(value).__name__}")  # not the value: reasons are logged


def _is_texts(value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= MAX_WARNINGS
    return few and all(isinstance(text, str) and len(text) <= MAX_TEXT for text in value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
