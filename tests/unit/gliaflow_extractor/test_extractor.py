"""The U-Net gives each core a slice of its own."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from gliaflow_extractor.extractor import UNetSession
from gliaflow_runtime.bundle.load import load_bundle


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_batch_change_no_bit_of_the_answer(threads: int, batch: int) -> None:
    """Compared with onnxruntime alone, on all slices at once."""
    bundle = load_bundle(None)
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    head = (rows**2 + columns**2 < 0.8) * 1.0
    lesions = [4.0 * ((rows - x) ** 2 + columns**2 < 0.05) for x in (-0.4, 0, 0.4, 0.6)]
    image = np.stack([head + lesion for lesion in [*lesions, 0 * head]])[:, None].astype(np.float16)
    alone = onnxruntime.InferenceSession(bundle.model("unet"), providers=["CPUExecutionProvider"])
    tap, probability = alone.run([bundle.tap, "mask"], {"image": image.astype(np.float32)})

    features, masks = UNetSession(bundle, threads=threads, batch=batch, cropped=False)(image)

    assert masks.any()
    assert (features.dtype, masks.dtype) == (np.float16, np.uint8)
    assert np.array_equal(features, tap.astype(np.float16))
    assert np.array_equal(masks, probability[:, 0] > 0.5)
    assert len(UNetSession(bundle, threads=threads, batch=batch)(image[:0])[0]) == 0


def test_a_fault_in_a_thread_is_a_fault_of_the_call() -> None:
    unet = UNetSession(load_bundle(None), threads=3)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        unet(np.zeros((6, 2, 128, 128), np.float16))
