"""Tensors on the wire: ``{dtype, shape, encoding, data}``, little-endian, row-major, unpadded.

The dtype names are those of the KServe v2 inference protocol ("Tensor Data Types"). The byte length is checked
against dtype and shape before memory is allocated, so a message cannot take more than ``MAX_TENSOR_BYTES``. Pickle is
never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from gliaflow_proto.errors import ProtocolError, shown, type_name

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ENCODINGS = ("raw", "lz4")
FP16_MAX = float(np.finfo(np.float16).max)
MAX_TENSOR_BYTES = 2**28
MAX_DIMENSIONS = 8
LZ4_MAX_RATIO = 256  # one byte of an LZ4 block makes at most 255 bytes (LZ4 block format)


def pack_tensor(array: NDArray[Any], encoding: str = "raw") -> dict[str, Any]:
    """Convert an array to a wire tensor.

    Parameters
    ----------
    array: any shape, of a dtype in ``DTYPES`` (big-endian input is converted).
    encoding: ``raw`` (the bytes, not copied) or ``lz4`` (one LZ4 block without a size prefix; lossless).

    Raises
    ------
    ProtocolError: the dtype is not allowed, the encoding is unknown, or the tensor is too large.
    """
    name = NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise ProtocolError(f"tensor dtype {array.dtype} is not allowed; use one of {', '.join(DTYPES)}")
    contiguous = np.ascontiguousarray(array, dtype=DTYPES[name])
    if contiguous.nbytes > MAX_TENSOR_BYTES:
        raise ProtocolError(f"tensor of {contiguous.nbytes} bytes is over the limit of {MAX_TENSOR_BYTES}")
    # an empty array cannot be cast to a flat buffer
    data: Any = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
    if encoding == "lz4":
        data = lz4.block.compress(data, store_size=False)
    elif encoding != "raw":
        raise ProtocolError(f"tensor encoding {encoding!r} is unknown; use one of {', '.join(ENCODINGS)}")
    return {"dtype": name, "shape": list(array.shape), "encoding": encoding, "data": data}


def unpack_tensor(packed: object, where: str = "tensor", limit: int = MAX_TENSOR_BYTES) -> NDArray[Any]:
    """Convert a wire tensor to an array. For ``raw``, it is a read-only view of the message's bytes, not a copy.

    Parameters
    ----------
    packed: the decoded msgpack map.
    where: the field's name, for the error.
    limit: bytes after unpacking.

    Raises
    ------
    ProtocolError: a field is missing or of the wrong type, the dtype or encoding is unknown, the shape is
        negative or too large, or the data do not have exactly the length that dtype and shape need.
    """
    dtype, shape, encoding, data = _checked(packed, where, limit)
    length = prod(shape) * dtype.itemsize
    if encoding == "lz4":
        try:
            data = lz4.block.decompress(data, uncompressed_size=length) if length else b""
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise ProtocolError(f"{where}.data: not a valid lz4 block: {error}") from None
    if len(data) != length:
        raise ProtocolError(f"{where}.data: {len(data)} bytes, but {shape} of {NAMES[dtype]} needs {length}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def outline_tensor(packed: object, where: str = "tensor", limit: int = MAX_TENSOR_BYTES) -> NDArray[Any]:
    """As ``unpack_tensor``, but without the content: an array of zeros that takes no memory."""
    dtype, shape, _, _ = _checked(packed, where, limit)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _checked(packed: object, where: str, limit: int) -> tuple[np.dtype[Any], list[int], str, bytes]:
    """Dtype, shape, encoding and packed data of a wire tensor. Raises as ``unpack_tensor`` does."""
    if not isinstance(packed, Mapping):
        raise ProtocolError(f"{where}: {'missing' if packed is None else f'expected a map, got {type_name(packed)}'}")
    dtype = DTYPES.get(packed["dtype"]) if isinstance(packed.get("dtype"), str) else None
    if dtype is None:
        raise ProtocolError(f"{where}.dtype: {shown(packed.get('dtype'))} is not one of {', '.join(DTYPES)}")
    shape, data, encoding = packed.get("shape"), packed.get("data"), packed.get("encoding")
    encoding = "raw" if encoding is None else encoding
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"{where}.shape: expected an array of at most {MAX_DIMENSIONS} sizes")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ProtocolError(f"{where}.shape: a size is not a whole number from 0 to 2³¹")
    if not isinstance(data, bytes):
        raise ProtocolError(f"{where}.data: expected binary data (msgpack bin), got {type_name(data)}")
    length = prod(shape) * dtype.itemsize
    if length > limit:
        raise ProtocolError(f"{where}.shape: {shape} of {dtype} is over the limit of {limit} bytes")
    if encoding == "lz4":
        if length > LZ4_MAX_RATIO * len(data) or (not length and len(data) > 1):
            raise ProtocolError(f"{where}.data: {len(data)} lz4 bytes cannot hold {length} bytes")
    elif encoding != "raw":
        raise ProtocolError(f"{where}.encoding: {shown(encoding)} is not one of {', '.join(ENCODINGS)}")
    return dtype, shape, encoding, data
