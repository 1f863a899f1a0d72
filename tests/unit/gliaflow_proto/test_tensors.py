"""Tensors on the wire: arrays round-trip, and malformed tensors are refused before memory is allocated."""

import tracemalloc

import msgpack
import numpy as np
import pytest
from gliaflow_proto import ProtocolError, pack_tensor, unpack_tensor
from gliaflow_proto.tensors import DTYPES, MAX_TENSOR_BYTES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

arrays = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


def over_the_wire(packed):
    return msgpack.unpackb(msgpack.packb(packed))


@given(arrays, st.sampled_from(["raw", "lz4"]))
def test_every_dtype_and_shape_round_trips(array, encoding):
    back = unpack_tensor(over_the_wire(pack_tensor(array, encoding)))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_big_endian_and_transposed_arrays_become_little_endian_and_row_major():
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    back = unpack_tensor(over_the_wire(pack_tensor(array)))
    assert back.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(back, array)


def test_a_raw_tensor_is_a_view_of_the_message():
    packed = over_the_wire(pack_tensor(np.arange(1000, dtype=np.float16)))
    back = unpack_tensor(packed)
    assert not back.flags.owndata
    assert np.shares_memory(back, np.frombuffer(packed["data"], np.uint8))


def test_lz4_halves_features_with_half_their_channels_zero():
    features = np.random.default_rng(0).standard_normal((4, 64, 15, 15)).astype(np.float16)
    features[:, ::2] = 0
    assert len(pack_tensor(features, "lz4")["data"]) < 0.55 * features.nbytes


GOOD = {"dtype": "FP16", "shape": [2, 3], "encoding": "raw", "data": bytes(12)}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": "OBJECT"}, "tensor.dtype"),
        ({"dtype": 7}, "tensor.dtype"),
        ({"dtype": None}, "tensor.dtype"),
        ({"shape": [2, -3]}, "tensor.shape"),
        ({"shape": [2, 3.0]}, "tensor.shape"),
        ({"shape": [True, 6]}, "tensor.shape"),
        ({"shape": "23"}, "tensor.shape"),
        ({"shape": [1] * 9}, "tensor.shape"),
        ({"shape": [2**40, 2**40]}, "tensor.shape"),
        ({"shape": [0, 2**63]}, "tensor.shape"),
        ({"shape": [2, 4]}, "tensor.data"),
        ({"data": bytes(11)}, "tensor.data"),
        ({"data": "text"}, "tensor.data"),
        ({"encoding": "zip"}, "tensor.encoding"),
        ({"encoding": "lz4", "data": b"\xff" * 12}, "tensor.data"),
        ({"encoding": "lz4", "data": b"\x10", "shape": [2**20, 100]}, "tensor.data"),
    ],
)
def test_an_error_names_the_malformed_field(change, field):
    with pytest.raises(ProtocolError, match=field):
        unpack_tensor({**GOOD, **change})


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_a_false_shape_takes_no_memory(encoding):
    packed = {"dtype": "FP64", "shape": [MAX_TENSOR_BYTES // 8], "encoding": encoding, "data": b"\0" * 64}
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        unpack_tensor(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_an_array_of_python_objects_is_refused():
    with pytest.raises(ProtocolError, match="dtype object is not allowed"):
        pack_tensor(np.array([object()]))
