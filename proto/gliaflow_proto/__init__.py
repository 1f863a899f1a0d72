"""The wire contract of gliaflow: tensors, messages and routing. Needs numpy, msgpack and lz4 only."""

from gliaflow_proto.classes import CLASSES
from gliaflow_proto.errors import ProtocolError
from gliaflow_proto.fragments import MessageOrigin, read_origin
from gliaflow_proto.geometry import Forms, Geometry, restore, voxel_ml
from gliaflow_proto.messages import (
    KINDS,
    MAX_MESSAGE_BYTES,
    NO_TUMOUR,
    SCHEMA,
    SEQUENCES,
    FailureMessage,
    FeaturesMessage,
    GenerateMessage,
    GradedMessage,
    Message,
    PredictionMessage,
    Scan,
    ScanMessage,
    SequenceSource,
    SlicesMessage,
    Source,
    SyntheticMessage,
    encode,
    expect,
    message_id,
    new_trace,
)
from gliaflow_proto.reading import decode
from gliaflow_proto.routing import Queue, is_announcement, routing_key, submission_queue, upload_queue
from gliaflow_proto.tensors import FP16_MAX, pack_tensor, unpack_tensor

__all__ = [
    "CLASSES",
    "FP16_MAX",
    "KINDS",
    "MAX_MESSAGE_BYTES",
    "NO_TUMOUR",
    "SCHEMA",
    "SEQUENCES",
    "FailureMessage",
    "FeaturesMessage",
    "Forms",
    "GenerateMessage",
    "Geometry",
    "GradedMessage",
    "Message",
    "MessageOrigin",
    "PredictionMessage",
    "ProtocolError",
    "Queue",
    "Scan",
    "ScanMessage",
    "SequenceSource",
    "SlicesMessage",
    "Source",
    "SyntheticMessage",
    "decode",
    "encode",
    "expect",
    "is_announcement",
    "message_id",
    "new_trace",
    "pack_tensor",
    "read_origin",
    "restore",
    "routing_key",
    "submission_queue",
    "unpack_tensor",
    "upload_queue",
    "voxel_ml",
]
