"""The preprocessor: a scan comes in as NIfTI, leaves as slices that the U-Net takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
import structlog
from gliaflow_proto import MAX_MESSAGE_BYTES, Message, ScanMessage, SlicesMessage, expect, message_id
from gliaflow_proto.routing import PREPROCESSOR
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Broker, Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage

from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.slices import Prepared, UnusableScan, part, prepare
from gliaflow_preprocessor.sources import SourceError, UploadGone, read_source
from gliaflow_preprocessor.steps import Steps

log = structlog.get_logger()


class Preprocessor(Stage):
    """``scan`` → ``slices``, in parts of as many slices as leave their features under the message limit.

    Parameters
    ----------
    bundle: gives the input size, spacing and statistics.
    broker: where uploads lie.
    roots: where a scan's URI may point.

    Raises
    ------
    PluginError: a step that the bundle asks for cannot be had.
    """

    name = "preprocessor"
    queue = PREPROCESSOR

    def __init__(self, bundle: Bundle, broker: Broker, roots: Sequence[str]) -> None:
        self._bundle, self._broker, self._roots = bundle, broker, roots
        self._steps = Steps(bundle.manifest.input.steps)

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        scan = expect(message, ScanMessage)
        try:
            data = read_source(scan.source, self._roots, self._broker)
            volume, affine = read_nifti(data, scan.channel)
            prepared = prepare(self._steps(volume, affine), affine, self._bundle.manifest.input)
        except (SourceError, NiftiError, UnusableScan) as error:
            if isinstance(error, UploadGone) and delivery.attempts:
                # its sender has cleared it away: most likely answered, an earlier delivery having got so far
                log.info("passed over", stage=self.name, scan=scan.scan.id, reason=str(error))
                return Outcome()
            raise InvalidInput(str(error)) from None
        metrics.SLICES.labels(self.name).inc(len(prepared.image))
        return Outcome(self._parts(scan, prepared))

    def _parts(self, scan: ScanMessage, prepared: Prepared) -> Iterator[SlicesMessage]:
        size = self._bundle.slices_per_part(MAX_MESSAGE_BYTES)
        count = ceil(len(prepared.image) / size)
        for index in range(count):
            some = part(prepared, index * size, (index + 1) * size)
            yield SlicesMessage(
                id=message_id(scan.scan.submission, scan.scan.id, index, self.name, self._bundle.id),
                scan=scan.scan,
                part=[index, count],
                trace=scan.trace,
                bundle=self._bundle.id,
                geometry=some.geometry,
                image=some.image[:, None].astype(np.float16),
            )
