"""The U-Net as each peer serves it: a batch of slices in, tap and mask out, as raw bytes.

Raw bytes are the cheapest form of a tensor: nothing is parsed or converted. The answer is what onnxruntime returns, but
for the mask: its threshold is applied here, since one byte a pixel is cheaper to send than four.
"""

import os

import numpy as np
import onnxruntime as ort

PORT = int(os.environ["BENCH_PORT"])
REPLICAS = int(os.environ["BENCH_REPLICAS"])  # of the network, one a core, each with one thread
SIDE = 240


class Network:
    """One replica of the U-Net."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["BENCH_UNET"], options, providers=["CPUExecutionProvider"])

    def __call__(self, body: bytes) -> bytes:
        """``body``: slices, float32 [n, 1, 240, 240]. Returns the tap, float32 [n, C, H, W], then the mask, uint8."""
        image = np.frombuffer(body, np.float32).reshape(-1, 1, SIDE, SIDE)
        tap, probability = self._session.run(["enc5", "mask"], {"image": image})
        return b"".join((tap.data, (probability > 0.5).data))
