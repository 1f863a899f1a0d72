"""The preprocessor: turns a NIfTI scan into slices for the U-Net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import structlog
from gliaflow_proto import MAX_MESSAGE_BYTES, Message, ScanMessage, SlicesMessage, expect, message_id
from gliaflow_proto.messages import MAX_WARNINGS
from gliaflow_proto.routing import PREPROCESSOR, shard_of
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Broker, Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage

from gliaflow_preprocessor.intensities import doubts
from gliaflow_preprocessor.nifti import NiftiError, read_scan
from gliaflow_preprocessor.slices import Prepared, UnusableScan, prepare
from gliaflow_preprocessor.sources import SourceError, UploadGone, read_source
from gliaflow_preprocessor.steps import Steps
from gliaflow_preprocessor.typical import doubt

log = structlog.get_logger()


class Preprocessor(Stage):
    """``scan`` → ``slices``, in parts whose features fit into one message.

    Parameters
    ----------
    bundle: has the input size, spacing and statistics.
    broker: has the uploads.
    roots: allowed roots of a scan's URI.
    shards: how many assemblers the scans are spread over.

    Raises
    ------
    PluginError: a preprocessing step of the bundle is not available.
    """

    name = "preprocessor"
    queue = PREPROCESSOR

    def __init__(self, bundle: Bundle, broker: Broker, roots: Sequence[str], *, shards: int = 1) -> None:
        self._bundle, self._broker, self._roots, self._shards = bundle, broker, roots, shards
        self._steps = Steps(bundle.manifest.input.steps)

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        scan = expect(message, ScanMessage)
        try:
            data = self._fetch(scan)
            nifti = read_scan(data, scan.channel)
            volume = self._steps(nifti.volume, nifti.affine)
            prepared = prepare(volume, nifti.affine, self._bundle.manifest.input)
        except (SourceError, NiftiError, UnusableScan) as error:
            sent_again = scan.scan.attempt and not scan.scan.replayed  # by its sender
            if isinstance(error, UploadGone) and (delivery.attempts or sent_again):
                # the sender deleted its upload: an earlier delivery or attempt was most likely answered
                log.info("passed over", stage=self.name, scan=scan.scan.id, reason=str(error))
                return Outcome()
            if isinstance(error, SourceError) and error.detail:
                log.warning("source not read", stage=self.name, scan=scan.scan.id, reason=error.detail)
            raise InvalidInput(str(error)) from None
        metrics.SLICES.labels(self.name).inc(len(prepared.image))
        prepared = replace(prepared, geometry=replace(prepared.geometry, forms=nifti.forms))
        manifest = self._bundle.manifest
        unlike = doubt(prepared.image, manifest.input, manifest.typical)
        warnings = [*scan.warnings, *nifti.warnings, *doubts(nifti.volume), *unlike]
        return Outcome(self._parts(scan, prepared, warnings[:MAX_WARNINGS]))

    def _fetch(self, scan: ScanMessage) -> bytes:
        self.fetching = True
        try:
            return read_source(scan.source, self._roots, self._broker)
        finally:
            self.fetching = False

    def _parts(self, scan: ScanMessage, prepared: Prepared, warnings: list[str]) -> Iterator[SlicesMessage]:
        size = self._bundle.slices_per_part(MAX_MESSAGE_BYTES)
        count = ceil(len(prepared.image) / size)
        # chosen here alone, so that all parts go to one assembler, whatever number of shards other processes have
        about = replace(scan.scan, shard=shard_of(scan.scan, self._shards))
        for index in range(count):
            some = prepared.part(index * size, (index + 1) * size)
            yield SlicesMessage(
                id=message_id(scan.scan.submission, scan.scan.id, index, self.name, self._bundle.id),
                scan=about,
                part=[index, count],
                trace=scan.trace,
                warnings=warnings,
                bundle=self._bundle.id,
                geometry=some.geometry,
                image=some.image[:, None].astype(np.float16),
            )
