"""Fuzz target: an untrusted bundle's manifest and networks, up to the point where onnxruntime loads them.

Only BundleError may be raised, and an accepted bundle keeps the limits that the stages rely on. onnxruntime itself is
not fuzzed: it is native code that runs a network like a program, so an operator must trust the source of a bundle.
"""

from __future__ import annotations

import json
import random
from contextlib import suppress

import numpy as np
import onnx
from fuzz.bounds import readable
from fuzz.tiny import network, networks, scratch, write_bundle
from gliaflow_preprocessor.slices import UnusableScan, prepare
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import MANIFEST, BundleError
from gliaflow_runtime.inference import _cut

MAX_BYTES = 2**12
PEAK_BYTES = 64 * 2**20
BLIND = 0.4

_folder = scratch()
write_bundle(_folder)
_manifest = (_folder / MANIFEST).read_bytes()
_volume = np.zeros((6, 6, 2), np.float32)
_volume[1:5, 2:5] = 5


def run(data: bytes) -> None:
    if data[:1] in b"{[ \"'":
        _run_manifest(data)
    else:
        _run_network(data)


def _run_manifest(data: bytes) -> None:
    (_folder / MANIFEST).write_bytes(data)
    try:
        bundle = Bundle(_folder)
    except BundleError as error:
        readable(error)
        return
    for name in [*bundle.manifest.files][:8]:
        with suppress(BundleError):
            bundle.read(name)
    for name in [*bundle.manifest.generators][:8]:
        with suppress(BundleError):
            bundle.model(f"generator-{bundle.require_generator(name)}")
    assert 1 <= bundle.slices_per_part(8 * 2**20) <= 16
    assert all(side >= 0 for side in bundle.tap_shape)
    if np.prod(bundle.manifest.input.size) <= 2**20:
        with suppress(UnusableScan):
            assert np.isfinite(prepare(_volume, np.diag([15.0, 15, 20, 1]), bundle.manifest.input).image).all()


def _run_network(data: bytes) -> None:
    try:
        cut = _cut(data, ["logit"], "a.onnx")
    except BundleError as error:
        readable(error)
        return
    model = onnx.load_model_from_string(cut)
    assert [output.name for output in model.graph.output] == ["logit"]
    assert "external_data {" not in str(model)
    assert "data_location: EXTERNAL" not in str(model)


def seeds() -> list[bytes]:
    node = onnx.helper.make_node
    branch = onnx.helper.make_graph(
        [node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.zeros(2, np.float32)))],
        "b",
        [],
        [onnx.helper.make_tensor_value_info("c", 1, [2])],
    )
    choice = network(
        [node("If", ["yes"], ["logit"], then_branch=branch, else_branch=branch), node("Identity", ["x"], ["other"])],
        {"x": [1, "n"]},
        {"logit": [2], "other": ["n"]},
        yes=np.array(True),
    )
    outside = onnx.load_model_from_string(networks()["classifier"])
    weights = outside.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*")
    loose = json.loads(_manifest)
    loose |= {"cropped": True, "metrics": {"auc": [0.5, None]}}
    loose["input"]["steps"] = [{"name": "n4", "options": {"shrink": 2}}]
    return [*networks().values(), choice, outside.SerializeToString(), _manifest, json.dumps(loose).encode()]


WORDS = [
    b'"schema"',
    b'"files"',
    b'"input"',
    b'"size"',
    b'"taps"',
    b'"steps"',
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"null",
    b"\\u0000",
    b"\\ud800",
    b"[[[[[[[[",
    b'{"":{"":{"":',
    b"../",
    b"*/_ORT_MEM_ADDR_/*",
    b"location",
    b"\x70\x01",
]
UNUSUAL = [
    None,
    True,
    0,
    -1,
    1,
    2**16,
    2**31,
    2**63,
    10**30,
    0.0,
    -1.0,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x" * 300,
    "../../etc/passwd",
    "/etc/passwd",
    "a/b.onnx",
    "a\0b",
    "UNET.onnx",
    "é",
    "unet.onnx",
    [],
    {},
    [1, 2],
    [0, 0],
    [1, 2, 3],
    {"x": 1},
    [[1, 2, 3]],
    {"x.onnx": "00"},
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change, delete or duplicate a value of the manifest or a part of the network."""
    if data[:1] == b"{":
        with suppress(ValueError, RecursionError):
            document = json.loads(data)
            _spoil(document, rng)
            return json.dumps(document).encode()
        return data
    try:
        model = onnx.load_model_from_string(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _spoil_message(model, rng)
        return model.SerializeToString()
    except Exception:  # not a network, or invalid texts in it
        return data[: rng.randrange(len(data) + 1)] + rng.choice(WORDS) + data[rng.randrange(len(data) + 1) :]


def _spoil(node: dict | list, rng: random.Random) -> None:
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and rng.random() < 0.7:
            node = node[key]
            continue
        match rng.randrange(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[str(rng.choice(UNUSUAL))[:40]] = node[key]
            case _:
                node[key] = rng.choice(UNUSUAL)
        return


def _spoil_message(message: object, rng: random.Random) -> None:
    """Descend into a protobuf message at random, and change one field."""
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = rng.choice(fields)
        if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
            action = rng.randrange(4)
            if action == 0:
                del value[rng.randrange(len(value))]
                return
            if action == 1:
                value.extend([value[rng.randrange(len(value))]])
                return
            if field.message_type is None:
                at = rng.randrange(len(value))
                value[at] = _unusual(value[at], rng)
                return
            message = rng.choice(value)
        elif field.message_type is not None:
            message = value
        else:
            with suppress(ValueError, TypeError):
                setattr(message, field.name, _unusual(value, rng))
            return


def _unusual(value: object, rng: random.Random) -> object:
    if isinstance(value, str):
        return rng.choice(
            ["", "x", "logit", "features", "a" * 300, "../x", "*/_ORT_MEM_ADDR_/*", "Loop", "If", "ai.onnx.ml"]
        )
    if isinstance(value, bytes):
        return value[: rng.randrange(len(value) + 1)] + rng.randbytes(rng.randrange(5))
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    return rng.choice([0, 1, -1, 2, 7, 2**31 - 1, -(2**31), int(value) + 1])
