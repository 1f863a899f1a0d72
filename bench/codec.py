"""Time to encode and decode a feature message of 16 slices, compared with a memcpy of the same bytes.

python bench/codec.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from gliaflow_proto import FeaturesMessage, Geometry, Scan, decode, encode

ROUNDS = 15


def milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((16, 1024, 15, 15), dtype=np.float32), 0).astype(np.float16)
    geometry = Geometry(
        affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        shape=[240, 240, 155],
        orientation=[0, 1, 1, 1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=[240, 240],
        slices=list(range(16)),
    )
    mask = np.zeros((16, 240, 240), np.uint8)
    mask[:, 100:140, 80:130] = 1
    scan = Scan(id="s")
    message = FeaturesMessage(
        id="m", scan=scan, bundle="b", tap="enc5", geometry=geometry, features=features, mask=mask
    )
    size = features.nbytes + mask.nbytes
    source = bytes(size)
    memcpy = milliseconds(lambda: bytearray(source))
    print(f"16 slices: {size / 2**20:.2f} MiB of tensors; memcpy {memcpy:.2f} ms")
    for encoding in ("raw", "lz4"):
        body = encode(message, encoding)
        encoding_ms = milliseconds(lambda e=encoding: encode(message, e))
        decoding_ms = milliseconds(lambda b=body: decode(b))
        print(
            f"{encoding:4} {len(body) / 2**20:5.2f} MiB"
            f"   encode {encoding_ms:6.2f} ms ({encoding_ms / memcpy:.1f} × memcpy)"
            f"   decode {decoding_ms:6.2f} ms ({decoding_ms / memcpy:.1f} × memcpy)"
        )


if __name__ == "__main__":
    main()
