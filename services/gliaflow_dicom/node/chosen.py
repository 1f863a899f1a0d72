"""The FLAIR series of a study that goes to the pipeline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from gliaflow.scans import Input
from gliaflow.sequences import series_sequences
from gliaflow_plugins.dicom.series import DicomSeries

from gliaflow_dicom.node.answers import AnswerOrigin
from gliaflow_dicom.node.spool import hashed


@dataclass(frozen=True)
class Chosen:
    """A series that goes to the pipeline, and what its answer will be made from."""

    series: DicomSeries
    origin: AnswerOrigin

    @property
    def item(self) -> Input:
        """It as the pipeline's input: its name and its patient are hashes."""
        name = f"{self.origin.series}{'' if self.series.echo_ms is None else f'-{self.series.echo_ms:g}'}"
        sequences, doubts = series_sequences(self.series)
        warnings = (*self.series.warnings, *doubts)
        return Input(Path(name), name, self.origin.study, volume=self.series, warnings=warnings, sequences=sequences)


def origin_of(study: str, series: DicomSeries, received: dict[str, int]) -> AnswerOrigin:
    """What the answer to a series of a study will be made from. ``received``: the study's images in the spool."""
    folder = hashed(series.uid)
    images = sorted(name.rpartition("/")[2] for name in received if name.startswith(f"{folder}/"))
    return AnswerOrigin(study, folder, images, received, time.time())
