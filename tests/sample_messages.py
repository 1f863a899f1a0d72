"""A message of each kind, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
from gliaflow_proto import (
    FailureMessage,
    FeaturesMessage,
    Forms,
    GenerateMessage,
    Geometry,
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
    new_trace,
)

GEOMETRY = Geometry(
    affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    shape=[4, 5, 6],
    orientation=[0, 1, 1, -1, 2, 1],
    origin=[-1.0, 0.0],
    step=[1.0, 0.5],
    size=[8, 8],
    slices=[1, 3],
)
FORMS = Forms(
    pixdim=[1.0, 1.0, 1.0, 1.0],
    units=10,
    qform_code=1,
    sform_code=2,
    quatern=[0.0, 0.0, 0.0, -5.0, 3.0, 2.0],
    srow=[1.0, 0, 0, -5.0, 0, 1, 0, 3.0, 0, 0, 1, 2.0],
)
SCAN = Scan(id="s1", submission="sub", name="brain", patient="p1", label="HGG")
COMMON: dict[str, Any] = {"id": "m1", "scan": SCAN, "part": [1, 3], "trace": new_trace()}
ONE_OF_EACH: list[Message] = [
    ScanMessage(
        **COMMON,
        source=Source(uri="file:///a.nii.gz"),
        channel="0",
        sequences={"t1ce": SequenceSource(source=Source(data=b"after contrast"), channel="2")},
    ),
    SlicesMessage(
        **COMMON,
        warnings=["sform, qform: they differ"],
        geometry=replace(GEOMETRY, forms=FORMS),
        image=np.ones((2, 1, 8, 8), np.float16),
    ),
    FeaturesMessage(
        **COMMON,
        bundle="b@1",
        tap="enc5",
        geometry=GEOMETRY,
        features=np.ones((2, 4, 3, 3), np.float16),
        mask=np.ones((2, 8, 8), np.uint8),
    ),
    GradedMessage(**COMMON, bundle="b@1", geometry=GEOMETRY, logit=np.zeros(2), mask=np.zeros((2, 8, 8), np.uint8)),
    PredictionMessage(
        **COMMON,
        bundle="b@1",
        grade="HGG",
        p_hgg=0.75,
        tumour_ml=1.5,
        slices=2,
        tumour_slices=1,
        affine=GEOMETRY.affine,
        mask=np.zeros((4, 5, 6), np.uint8),
        status="no tumour",
        trained_on="phantoms",
        forms=FORMS,
        slice_numbers=[2],
        slice_p_hgg=[0.75],
    ),
    GenerateMessage(**COMMON, label="LGG", count=3, seed=5),
    SyntheticMessage(
        **COMMON, bundle="b@1", generator="acgan", tap="enc5", label="LGG", seed=0, features=np.ones((1, 4, 3, 3), "f2")
    ),
    FailureMessage(**COMMON, stage="extractor", reason="because"),
]
SCAN_MESSAGE, SLICES, FEATURES = ONE_OF_EACH[:3]


def changed(message: Message, **changes: Any) -> bytes:
    """The encoded message with other values: ``scan__name`` names a nested field, ``...`` deletes a field."""
    document = msgpack.unpackb(encode(message))
    for path, value in changes.items():
        put(document, path.split("__"), value)
    return bytes(msgpack.packb(document))


def put(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a nested field; ``...`` deletes it."""
    *parents, last = path
    for parent in parents:
        document = document[parent]
    if value is ...:
        del document[last]
    else:
        document[last] = value
