"""The preprocessor: turns a NIfTI scan into slices for the U-Net."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil

import numpy as np
import structlog
from gliaflow_proto import MAX_MESSAGE_BYTES, Message, ScanMessage, SlicesMessage, Source, expect, message_id
from gliaflow_proto.messages import MAX_WARNINGS
from gliaflow_proto.routing import PREPROCESSOR, shard_of
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Broker, Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage
from numpy.typing import NDArray

from gliaflow_preprocessor.intensities import doubts
from gliaflow_preprocessor.nifti import NiftiError, SeveralVolumes, read_scan
from gliaflow_preprocessor.sequences import is_same_grid, missing_beside, prepare_beside
from gliaflow_preprocessor.slices import Prepared, UnusableScan, prepare
from gliaflow_preprocessor.sources import SOURCES_S, SourceError, UploadGone, read_source
from gliaflow_preprocessor.steps import Steps
from gliaflow_preprocessor.typical import doubt

log = structlog.get_logger()

Images = list[NDArray[np.float32]]
"""The slices [n, rows, columns] of each channel."""


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
        self._read_until = 0.0  # by time.monotonic, for the sources of the message in work
        self.channels = bundle.manifest.input.channels

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        scan = expect(message, ScanMessage)
        manifest = self._bundle.manifest
        if lacking := missing_sequence(manifest.input, scan.sequences):
            raise InvalidInput(lacking)
        self._read_until = time.monotonic() + SOURCES_S
        try:
            data = self._fetch(scan.source)
            nifti = read_scan(data, scan.channel)
            volume = self._steps(nifti.volume, nifti.affine)
            prepared = prepare(volume, nifti.affine, manifest.input)
            warnings = [*scan.warnings, *nifti.warnings, *doubts(nifti.volume)]
            warnings += doubt(prepared.image, manifest.input, manifest.typical)
            prepared = replace(prepared, geometry=replace(prepared.geometry, forms=nifti.forms))
            if scan.source not in (file.source for file in scan.sequences.values()):
                data = b""
            placed = nifti.is_placed
            del nifti, volume  # one volume is in memory at a time
            images = self._add_sequences(scan, data, prepared, placed, warnings)
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
        return Outcome(self._parts(scan, prepared, images, warnings[:MAX_WARNINGS]))

    def _add_sequences(
        self, scan: ScanMessage, data: bytes, flair: Prepared, placed: bool, warnings: list[str]
    ) -> Images:
        """The bundle's channels, of which only these sequences are fetched. Doubts are added to ``warnings``.

        Parameters
        ----------
        data: the FLAIR's file, which may have the other sequences, too.
        placed: it states where it is.
        """
        spec = self._bundle.manifest.input
        shape, grid = flair.geometry.shape, np.array(flair.geometry.affine).reshape(4, 4)
        images = [flair.image]
        for name in spec.channels[1:]:
            if (file := scan.sequences.get(name)) is None:
                warnings.append(answered_without(name))
                images.append(missing_beside(flair, spec))
                continue
            with _named(name):
                own = data if file.source == scan.source else self._fetch(file.source)
                nifti = read_scan(own, file.channel)
                volume, both = self._steps(nifti.volume, nifti.affine), placed and nifti.is_placed
                image, about = prepare_beside(volume, nifti.affine, flair, spec, placed=both)
                for earlier, other in zip(spec.channels, images, strict=False):
                    if np.array_equal(image, other):
                        raise UnusableScan(f"it is the image that came as {earlier}, too: name another file or volume")
            known = warnings if is_same_grid(volume, nifti.affine, shape, grid) else []  # said of the FLAIR
            of_file = [text for text in nifti.warnings if text not in known]
            warnings += [f"{name}: {text}" for text in (*of_file, *doubts(nifti.volume), *about)]
            images.append(image)
            del nifti, volume
        return images

    def _fetch(self, source: Source) -> bytes:
        self.fetching = True
        try:
            return read_source(source, self._roots, self._broker, self._read_until)
        finally:
            self.fetching = False

    def _parts(
        self, scan: ScanMessage, prepared: Prepared, images: Images, warnings: list[str]
    ) -> Iterator[SlicesMessage]:
        size = self._bundle.slices_per_part(MAX_MESSAGE_BYTES)
        count = ceil(len(prepared.image) / size)
        # chosen here alone, so that all parts go to one assembler, whatever number of shards other processes have
        about = replace(scan.scan, shard=shard_of(scan.scan, self._shards))
        for index in range(count):
            part = slice(index * size, (index + 1) * size)
            yield SlicesMessage(
                id=message_id(scan.scan.submission, scan.scan.id, index, self.name, self._bundle.id),
                scan=about,
                part=[index, count],
                trace=scan.trace,
                warnings=warnings,
                bundle=self._bundle.id,
                geometry=replace(prepared.geometry, slices=prepared.geometry.slices[part]),
                image=np.stack([image[part] for image in images], axis=1).astype(np.float16),
            )


def answered_without(name: str) -> str:
    """The warning of a scan that came without a sequence which the bundle can do without."""
    return f"{name}: the scan came without it; the bundle can do without it"


def missing_sequence(spec: InputSpec, sent: Collection[str]) -> str:
    """Why a scan with these sequences beside the FLAIR cannot be used; empty: it can."""
    lacking = [name for name in spec.channels[1:] if name not in sent and name not in spec.optional]
    if not lacking:
        return ""
    return (
        f"{', '.join(lacking)}: the scan came without it, and this bundle needs {', '.join(spec.channels)}: put it "
        f"beside the FLAIR, under a name that says so (docs/scans.md), or name it (--{lacking[0]} FILE); to stages on "
        f"a broker, send it with --sequences {','.join(lacking)}"
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """The block's errors about a file begin with the name of its sequence."""
    try:
        yield
    except UploadGone:
        raise
    except SeveralVolumes as error:
        raise NiftiError(
            f"{name}: 4-D image {list(error.shape)}: name its volume (--{name} FILE:NUMBER; in a cohort, the column "
            f"{name}_channel of a table; in a message, sequences.{name}.channel)"
        ) from None
    except (SourceError, NiftiError, UnusableScan) as error:
        error.args = (f"{name}: {error}",)
        raise
