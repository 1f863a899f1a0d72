"""The messages between stages: one msgpack map each, readable in any language (see ``proto/README.md``).

Each kind of message is a dataclass. The class is the schema: ``encode`` and
``decode`` (``reading``) use the types of its fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from gliaflow_proto.errors import ProtocolError
from gliaflow_proto.geometry import Forms, Geometry
from gliaflow_proto.tensors import DTYPES, MAX_TENSOR_BYTES, pack_tensor

SCHEMA = "gliaflow/1"
SEQUENCES = ("flair", "t1", "t1ce", "t2")
"""The sequences that a bundle may take, in the order of its channels: FLAIR, T1, T1 after contrast, T2."""
NO_TUMOUR: Literal["no tumour"] = "no tumour"  # the status of a prediction without a grade
MAX_MESSAGE_BYTES = 8 * 2**20  # RabbitMQ 4 refuses messages over 16 MiB
MAX_DECODED_BYTES = 16 * 2**20
MAX_TEXT = 4096
MAX_WARNINGS = 32
SUBMISSION = re.compile(r"[A-Za-z0-9_-]{0,64}")
MAX_ATTEMPTS = 2**31
MAX_SHARDS = 4  # so many assemblers do more than the queues before them

Tensor = NDArray[Any]
MAPS = {"dtype": DTYPES["FP16"], "dimensions": 4}  # dtype and dimensions of a field's tensor
MASKS = {"dtype": DTYPES["UINT8"], "dimensions": 3}
LOGITS = {"dtype": DTYPES["FP64"], "dimensions": 1}


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The scan of a message. ``label`` and ``split`` are None if they are unknown.

    ``id`` is unique within a ``submission``: a second scan with the same id counts as a copy of the first.
    ``attempt`` counts how often the scan was sent again, by its sender or by an operator from the dead letters; a
    higher attempt replaces the lower ones. ``sent`` is when it was first sent, in seconds since 1970, or None.
    ``replayed``: an operator sent it from the dead letters, so no client may be waiting that sends it again.
    ``shard``: the number of the assembler that combines its parts. The preprocessor chooses it.
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
    replayed: bool = False
    shard: int = 0


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
class SequenceSource:
    """Where a sequence beside the FLAIR is. ``channel`` is the number of its volume in a 4-D file, from 0."""

    source: Source
    channel: str | None = None


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
    """A scan to process. ``channel`` is the number of the FLAIR volume in a 4-D file, from 0.

    ``source`` is the FLAIR. ``sequences``: the other sequences of the same study, by their names in ``SEQUENCES``. Each
    may be on a grid of its own. A bundle uses those that it was trained on.
    """

    kind: ClassVar[str] = "scan"

    source: Source
    channel: str | None = None
    sequences: dict[str, SequenceSource] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SlicesMessage(Message):
    """Slices for the U-Net: ``image`` FP16 [n, C, rows, columns], normalised for ``bundle`` (may be empty).

    C is the number of the bundle's sequences; the FLAIR is the first.
    """

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
    ``slice_numbers``: the canonical z of each slice with tumour, rising; ``slice_p_hgg``: the probability of HGG in
    each of them. The logit of ``p_hgg`` is the mean of theirs. Both are empty in a prediction of an earlier version.
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
    slice_numbers: list[int] = field(default_factory=list)
    slice_p_hgg: list[float] = field(default_factory=list)


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
    """A stage could not process a scan. The message that it rejected is in the dead letters of ``stage``.

    ``retry``: the scan itself is fine, but messages of this attempt belong to another bundle than the stage's. There is
    no dead letter. Send the scan again, with ``scan.attempt`` one higher.
    """

    kind: ClassVar[str] = "failure"

    stage: str
    reason: str
    retry: bool = False


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


def expect(message: Message, kind: type[AnyKind]) -> AnyKind:
    """The message, if it is of ``kind``. Raises ProtocolError if not."""
    if not isinstance(message, kind):
        raise ProtocolError(f"kind: expected {kind.kind!r}, got {message.kind!r}")
    return message
