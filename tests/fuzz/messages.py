"""Fuzz target: bytes from the broker are decoded, encoded again, and given to every stage and to a waiting client.

Only ProtocolError, or InvalidInput of a stage, may be raised.
"""

from __future__ import annotations

import dataclasses
import random
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from fuzz.bounds import readable
from fuzz.tiny import SIZE, TAP, scratch, write_bundle
from gliaflow.answer import Answer, write_image
from gliaflow.scans import Input
from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.grader import Grader
from gliaflow_client.table import ScanRow
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_generator.generator import Balancer, Generator
from gliaflow_generator.synthesis import Synthesizer
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_proto import (
    FailureMessage,
    FeaturesMessage,
    GenerateMessage,
    Geometry,
    GradedMessage,
    Message,
    PredictionMessage,
    ProtocolError,
    Scan,
    ScanMessage,
    SequenceSource,
    SlicesMessage,
    Source,
    SyntheticMessage,
    decode,
    encode,
    read_origin,
    routing_key,
)
from gliaflow_proto.fragments import outline
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.stage import InvalidInput, failure

MAX_BYTES = 2**12
PEAK_BYTES = 48 * 2**20
BLIND = 0.3
LARGE = 2**20  # voxels; larger grids, up to the contract's MAX_VOXELS, would take too long here

_folder = scratch()
_bundle = write_bundle(_folder)
_synthesizer = Synthesizer(_bundle, threads=1)


def _stages() -> list[Any]:
    return [
        Preprocessor(_bundle, connect("memory://fuzz"), ["/nowhere"]),
        Extractor(_bundle, UNetSession(_bundle, threads=1)),
        Grader(_bundle, threads=1),
        Assembler(_bundle, timeout_s=60),
        Generator(_bundle, _synthesizer),
        Balancer(_bundle, _synthesizer, share=0.5, seed=0),
    ]


_all_stages = _stages()


def run(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError as error:
        readable(error)
        origin, lines = read_origin(data), outline(data)
        "\n".join((origin.kind, origin.id, origin.scan, origin.submission or "", *lines)).encode()
        return
    for encoding in ("raw", "lz4"):
        _same(decode(encode(message, encoding)), message)
    routing_key(message)
    decode(encode(failure(message, "fuzz", "because")))
    _all_stages[3]._open.clear()
    for stage in _all_stages:
        if _too_slow(message):
            continue
        with suppress(ProtocolError, InvalidInput):
            outcome = stage.handle(message, Delivery(stage.queue.name, "", data))
            for result in outcome.publish:
                decode(encode(result, "lz4"))  # the next stage can read it
    if isinstance(message, PredictionMessage) and not _too_slow(message):
        answer = Answer.of_prediction(Input(Path("s"), "s", "p"), message, 1.0)
        ScanRow.of(answer)
        write_image(_folder / "mask.nii.gz", answer.mask)


def _too_slow(message: Message) -> bool:
    """Whether a valid message may take longer than the limit of fuzzing."""
    if isinstance(message, GenerateMessage):
        return message.count > 64
    if isinstance(message, GradedMessage):
        return prod(message.geometry.shape) > LARGE
    return isinstance(message, PredictionMessage) and message.mask.size > LARGE


def _same(one: Message, other: Message) -> None:
    for item in dataclasses.fields(other):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(b, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), item.name
        else:
            assert a == b, item.name


def seeds() -> list[bytes]:
    geometry = Geometry(
        affine=[5.0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 6, 0, 0, 0, 0, 1],
        shape=[9, 8, 4],
        orientation=[0, 1, 1, -1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=[*SIZE],
        slices=[1, 3],
    )
    scan = Scan(id="s", submission="sub", name="n", patient="p", cohort="c", label="HGG")
    mask = np.zeros((2, *SIZE), np.uint8)
    mask[:, 2:5, 3:6] = 1
    common: dict[str, Any] = {"id": "m", "scan": scan, "trace": "00-0-0-01"}
    with_bundle = {**common, "bundle": _bundle.id}
    features = np.ones((2, *TAP), np.float16)
    messages = [
        ScanMessage(**common, source=Source(data=b"\x1f\x8bnot a scan"), channel="0"),
        ScanMessage(**common, source=Source(uri="file:///nowhere/a.nii.gz")),
        ScanMessage(
            **common,
            source=Source(data=b"\x1f\x8bnot a scan"),
            sequences={"t1ce": SequenceSource(source=Source(uri="file:///nowhere/b.nii.gz"), channel="1")},
        ),
        ScanMessage(**common, source=Source(upload="gliaflow.upload.x", chunks=2)),
        SlicesMessage(**common, geometry=geometry, image=np.ones((2, 1, *SIZE), np.float16)),
        FeaturesMessage(**with_bundle, tap="tap", geometry=geometry, features=features, mask=mask),
        GradedMessage(**with_bundle, geometry=geometry, logit=np.array([1.0, -2.0]), mask=mask),
        GradedMessage(**with_bundle, part=[1, 3], geometry=geometry, logit=np.array([1.0, -2.0]), mask=mask),
        PredictionMessage(
            **with_bundle,
            grade="HGG",
            p_hgg=0.7,
            tumour_ml=1.0,
            slices=2,
            tumour_slices=1,
            affine=geometry.affine,
            mask=np.zeros(geometry.shape, np.uint8),
        ),
        GenerateMessage(**common, label="LGG", count=3, seed=1),
        SyntheticMessage(**with_bundle, generator="g", tap="tap", label="LGG", seed=0, features=features),
        FailureMessage(**common, stage="extractor", reason="because"),
    ]
    return [encode(message, encoding) for message in messages for encoding in ("raw", "lz4")]


WORDS = [
    b"\xc1",
    b"\xc7\x00\xff",
    b"\xd6\xff",
    b"\xd7\xff",
    b"\xd8\xff",
    b"\xdd\x7f\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xa3lz4",
]

NUMBERS = [
    0,
    1,
    -1,
    2,
    127,
    255,
    256,
    2**15 - 1,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**31),
    -(2**63),
]
FLOATS = [0.0, -0.0, 0.5, 1e-300, 5e-324, 1e300, -1e300, 1.7e308, float("inf"), float("-inf"), float("nan")]
OTHER: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    "\x00",
    "../../etc/passwd",
    "file:///nowhere/../etc/passwd",
    "http://[",
    "x" * 300,
    "é" * 50,
    b"",
    b"\xff" * 9,
    [],
    {},
    [[]],
    {"": {}},
    msgpack.ExtType(5, b""),
    msgpack.ExtType(5, b"abcd"),
    msgpack.Timestamp(1, 2),
    "FP64",
    "FP16",
    "UINT8",
    "BOOL",
    "INT64",
    "lz4",
    "raw",
    "gliaflow/2",
    "٣",
    "2",
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Replace one to three values of the message by unusual ones, or swap, delete or repeat them."""
    try:
        document = msgpack.unpackb(data, strict_map_key=False)
        for _ in range(rng.choice((1, 1, 2, 3))):
            _spoil(document, rng)
        return msgpack.packb(document)
    except Exception:  # not a message: change its bytes
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.choice(WORDS) + data[at + rng.randrange(8) :]


def _spoil(node: Any, rng: random.Random) -> None:
    places = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(node)
    container, key = rng.choice(places)
    value = container[key]
    match rng.randrange(6):
        case 0 if isinstance(container, dict):
            del container[key]
        case 1:
            other, name = rng.choice(places)
            container[key] = other.get(name) if isinstance(other, dict) else value
        case 2 if isinstance(value, list) and value:
            value[:] = value * 2 if rng.random() < 0.3 else value[:-1]
        case 3 if isinstance(value, bytes):
            cut = rng.randrange(len(value) + 1)
            container[key] = value[:cut] + rng.randbytes(rng.randrange(9)) + value[cut + rng.randrange(9) :]
        case 4 if isinstance(value, int | float):
            container[key] = rng.choice([value + 1, value - 1, -value, value * 2, float(value)])
        case _:
            container[key] = rng.choice(rng.choice((NUMBERS, FLOATS, OTHER)))
