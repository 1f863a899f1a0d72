"""The extractor: runs slices through the U-Net for deep features and tumour masks."""

from __future__ import annotations

import numpy as np
from gliaflow_proto import (
    FP16_MAX,
    MAX_MESSAGE_BYTES,
    FeaturesMessage,
    Message,
    ProtocolError,
    SlicesMessage,
    expect,
    message_id,
)
from gliaflow_proto.routing import EXTRACTOR
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.in_threads import in_threads
from gliaflow_runtime.inference import Network
from gliaflow_runtime.settings import available_cores
from gliaflow_runtime.stage import OtherBundle, Outcome, Stage
from numpy.typing import NDArray


class UNetSession:
    """The bundle's U-Net in onnxruntime, cut to the outputs for the tap and the mask.

    On the CPU, each core computes a slice of its own (ADR 21). If a part of the bundle or ``batch`` has fewer slices
    than there are cores, the session's runs share the spare ones. A smaller part leaves cores idle.
    Other devices take whole batches.

    Parameters
    ----------
    batch: the most slices in work at a time, which bounds the memory.
    cropped: whether features are cropped to the mask (see ``crop``; the paper's last suggestion). By default, as the
        bundle's generators and classifier were fitted.
    threads: 0: one for each core that this process may use.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch: int = 16,
        cropped: bool | None = None,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        self.size = bundle.manifest.input.size
        self.channels = len(bundle.manifest.input.channels)
        self._cropped = bundle.manifest.cropped if cropped is None else cropped
        self._shape = bundle.features_shape(self._cropped)
        threads = threads or available_cores()
        on_cpu = device == "cpu"
        self._batch = 1 if on_cpu else batch
        self._runs = min(threads, batch, bundle.slices_per_part(MAX_MESSAGE_BYTES)) if on_cpu else 1
        spare = threads - self._runs
        self._network = Network(bundle, "unet", [bundle.tap, "mask"], device=device, threads=1 + spare)
        self._network.warm(image=(self._batch, self.channels, *self.size))

    def __call__(self, image: NDArray[np.floating]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Features FP16 [n, C, H, W] and masks UINT8 [n, rows, columns] of slices [n, channels, rows, columns]."""
        features = np.empty((len(image), *self._shape), np.float16)
        masks = np.empty((len(image), *self.size), np.uint8)

        def run(start: int) -> None:
            part = slice(start, start + self._batch)
            tap, probability = self._network(image=image[part].astype(np.float32, copy=False))
            mask = np.greater(probability[:, 0], 0.5, out=masks[part].view(np.bool_))
            if self._cropped:
                tap = crop(tap, mask)
            features[part] = np.minimum(tap, FP16_MAX)

        in_threads(run, range(0, len(image), self._batch), self._runs)
        return features, masks


def crop(features: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Crop features [n, C, H, W] to a window [n, C, H/2, W/2] around the middle of the tumour.

    Each position is weighted by the share of its pixels in the mask [n, rows, columns], so that positions without
    tumour are 0. A tumour larger than the window loses its margin.
    """
    samples, channels, height, width = features.shape
    window = np.zeros((samples, channels, height // 2, width // 2), np.float32)
    for n in np.flatnonzero(mask.any(axis=(1, 2))):
        cells = mask[n].reshape(height, mask.shape[1] // height, width, mask.shape[2] // width)
        share = cells.sum(axis=1, dtype=np.uint16).sum(axis=2, dtype=np.float32) / (cells.shape[1] * cells.shape[3])
        inside = []
        for axis, side in enumerate((height, width)):
            along = np.count_nonzero(share, axis=1 - axis)  # positions with tumour in each row, or each column
            middle = (along * np.arange(side)).sum() / along.sum()
            low = int(np.rint(middle)) - side // 4
            start, stop = max(0, low), min(side, low + side // 2)
            inside.append((slice(start, stop), slice(start - low, stop - low)))
        (rows, to_rows), (columns, to_columns) = inside
        np.multiply(features[n, :, rows, columns], share[rows, columns], out=window[n, :, to_rows, to_columns])
    return window


class Extractor(Stage):
    """``slices`` → ``features``."""

    name = "extractor"
    queue = EXTRACTOR

    def __init__(self, bundle: Bundle, unet: UNetSession) -> None:
        self._bundle, self._unet = bundle, unet

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        slices = expect(message, SlicesMessage)
        if slices.bundle not in ("", self._bundle.id):
            raise OtherBundle("slices", slices.bundle, self.name, self._bundle.id)
        if len(slices.geometry.slices) > (most := self._bundle.slices_per_part(MAX_MESSAGE_BYTES)):
            raise ProtocolError(f"geometry.slices: {len(slices.geometry.slices)}, but a part has at most {most}")
        expected = (len(slices.geometry.slices), self._unet.channels, *self._unet.size)
        if slices.image.shape != expected:
            raise ProtocolError(f"tensors.image: shape {slices.image.shape}, but this bundle takes {expected}")
        features, mask = self._unet(slices.image)
        metrics.SLICES.labels(self.name).inc(len(mask))
        return Outcome(
            [
                FeaturesMessage(
                    id=message_id(slices.scan.submission, slices.scan.id, *slices.part, self.name, self._bundle.id),
                    scan=slices.scan,
                    part=slices.part,
                    trace=slices.trace,
                    warnings=slices.warnings,
                    bundle=self._bundle.id,
                    tap=self._bundle.tap,
                    geometry=slices.geometry,
                    features=features,
                    mask=mask,
                )
            ]
        )
