"""The deep features of a scan, computed in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Unpack

import numpy as np
from gliaflow_plugins.contracts import PluginError
from gliaflow_proto import FeaturesMessage, Scan, ScanMessage, SequenceSource, Source, expect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import load_settings
from gliaflow_runtime.stage import InvalidInput, TemporarilyUnavailable
from numpy.typing import NDArray

from gliaflow.scans import Input, ScanRequest, find_one
from gliaflow.sequences import GivenSequences, SequenceInput, require_read, wanted_sequences
from gliaflow.stage_settings import StageSettings, as_flags


@dataclass(frozen=True, eq=False)
class ScanFeatures:
    """The deep features of a scan, slice by slice.

    Parameters
    ----------
    features: float32 [n, C, H, W], a sample for each slice that holds some of the head.
    slices: the slices' numbers [n], from 0 at the feet.
    tumour: whether the U-Net found tumour in the slice: bool [n].
    tap, bundle: where in the network they were read, and which bundle's network it is.
    warnings: doubts about the scan, as in its answer.
    """

    features: NDArray[np.float32]
    slices: NDArray[np.int64]
    tumour: NDArray[np.bool_]
    tap: str
    bundle: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """``np.asarray(found)`` is the features."""
        return np.array(self.features, dtype=dtype, copy=copy)


def extract(
    scan: str | PathLike[str],
    tap: str | None = None,
    *,
    channel: str | None = None,
    series: str | None = None,
    sequences: Mapping[str, str | PathLike[str]] | None = None,
    **settings: Unpack[StageSettings],
) -> ScanFeatures:
    """The features of a scan's slices, as the extractor computes them for the pipeline (so rounded to fp16).

    Preprocessor and extractor run in this process, without a broker. An argument that is not given comes from
    ``GLIAFLOW_*`` in the environment, as for the command.

    Parameters
    ----------
    scan: the path or URL of a FLAIR scan (NIfTI), or a folder with one: of DICOM, the FLAIR series in it.
    tap: a tap of the bundle: ``enc5`` (the paper's), ``enc4``, ``dec1``, ``dec2`` or ``dec3``. Default: the tap that
        the bundle grades by.
    channel: of a 4-D file, the number of the FLAIR volume, from 0.
    series: the DICOM series to take: its SeriesInstanceUID, its number, or a part of its description.
    sequences: as for ``Flow.submit``.
    settings: ``bundle``, ``device`` and ``threads``: ``gliaflow.StageSettings``.

    Raises
    ------
    UsageError: there is no such file, it is not a usable scan, or bundle, tap or device cannot be used.
    """
    from gliaflow_extractor.extractor import Extractor, UNetSession
    from gliaflow_preprocessor.preprocessor import Preprocessor

    loaded = load_settings({"tap": tap, **as_flags(settings, extract)})
    served = load_bundle(loaded.bundle, loaded.tap, loaded.bundle_sha256, loaded.state, loaded.bundles)
    require_read(sequences or {}, served.manifest.input.channels)
    request = ScanRequest(
        channel=channel,
        series=() if series is None else (series,),
        sequences=wanted_sequences(loaded, served),
        given=GivenSequences.of(sequences or {}),
    )
    item = find_one(scan, request)
    message = ScanMessage(
        id="scan",
        scan=Scan(id="scan"),
        source=_source(item),
        channel=item.channel,
        sequences={
            name: SequenceSource(source=_source(each), channel=each.channel) for name, each in item.sequences.items()
        },
    )
    delivery = Delivery("", "", b"")
    try:
        roots = [item.root, *(each.root for each in item.sequences.values())]
        preprocessor = Preprocessor(served, MemoryBroker(), roots)
        unet = UNetSession(served, batch=loaded.batch, device=loaded.device, threads=loaded.threads)
        extractor = Extractor(served, unet)
        parts = [
            expect(features, FeaturesMessage)
            for slices in preprocessor.handle(message, delivery).publish
            for features in extractor.handle(slices, delivery).publish
        ]
    except (PluginError, InvalidInput, TemporarilyUnavailable) as error:
        raise UsageError(f"{item.source}: {error}") from None
    return ScanFeatures(
        np.concatenate([part.features for part in parts]).astype(np.float32),
        np.array([z for part in parts for z in part.geometry.slices]),
        np.concatenate([part.mask.any(axis=(1, 2)) for part in parts]),
        served.tap,
        served.id,
        tuple(dict.fromkeys([*item.warnings, *(text for part in parts for text in part.warnings)])),
    )


def _source(item: Input | SequenceInput) -> Source:
    if item.volume is None:
        return Source(uri=item.uri or item.path.resolve().as_uri())
    try:
        return Source(data=item.volume.read())
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
