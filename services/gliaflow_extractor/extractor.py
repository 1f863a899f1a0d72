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
from gliaflow_runtime.inference import Network
from gliaflow_runtime.stage import OtherBundle, Outcome, Stage
from numpy.typing import NDArray


class UNetSession:
    """The bundle's U-Net in onnxruntime, cut to the outputs for the tap and the mask.

    Parameters
    ----------
    batch: slices in one run.
    cropped: whether features are cropped to the mask (see ``crop``; the paper's last suggestion). By default, as the
        bundle's generators and classifier were fitted.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch: int = 4,
        cropped: bool | None = None,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        self.size = bundle.manifest.input.size
        self._cropped = bundle.manifest.cropped if cropped is None else cropped
        self._batch = batch
        self._network = Network(bundle, "unet", [bundle.tap, "mask"], device=device, threads=threads)
        self._network.warm(image=(1, 1, *self.size))

    def __call__(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Features FP16 [n, C, H, W] and masks UINT8 [n, rows, columns] of slices float32 [n, 1, rows, columns]."""
        features, masks = [], []
        for start in range(0, len(image), self._batch):
            tap, probability = self._network(image=image[start : start + self._batch])
            mask = probability[:, 0] > 0.5
            if self._cropped:
                tap = crop(tap, mask)
            features.append(np.minimum(tap, FP16_MAX).astype(np.float16))
            masks.append(mask.astype(np.uint8))
        return np.concatenate(features), np.concatenate(masks)


def crop(features: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Crop features [n, C, H, W] to a window [n, C, H/2, W/2] around the middle of the tumour.

    Each position is weighted by the share of its pixels in the mask [n, rows, columns], so that positions without
    tumour are 0. A tumour larger than the window loses its margin.
    """
    samples, channels, height, width = features.shape
    cells = mask.reshape(samples, height, mask.shape[1] // height, width, mask.shape[2] // width)
    share = cells.mean(axis=(2, 4), dtype=np.float32)
    low = [[(side - side // 2) // 2] * samples for side in (height, width)]
    for axis, side in enumerate((height, width)):
        along = (share > 0).sum(axis=2 - axis)  # positions with tumour in each row, or each column
        has_tumour = along.any(axis=1)
        middle = (along * np.arange(side)).sum(axis=1) / np.maximum(along.sum(axis=1), 1)
        low[axis] = np.where(has_tumour, np.rint(middle).astype(int) - side // 4, low[axis]).tolist()
    window = np.zeros((samples, channels, height // 2, width // 2), np.float32)
    for n in range(samples):
        inside = []
        for axis, side in enumerate((height, width)):
            start, stop = max(0, low[axis][n]), min(side, low[axis][n] + side // 2)
            inside.append((slice(start, stop), slice(start - low[axis][n], stop - low[axis][n])))
        (rows, to_rows), (columns, to_columns) = inside
        window[n, :, to_rows, to_columns] = features[n, :, rows, columns] * share[n, rows, columns]
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
        if slices.image.shape != (expected := (len(slices.geometry.slices), 1, *self._unet.size)):
            raise ProtocolError(f"tensors.image: shape {slices.image.shape}, but this bundle takes {expected}")
        features, mask = self._unet(slices.image.astype(np.float32))
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
