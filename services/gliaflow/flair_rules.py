"""Which DICOM series is FLAIR: the rules of the settings (``dicom_*``), and the series that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts.dicom_scans import INSTALL, has_dicom
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import load_settings

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules

SETTINGS = ("dicom_flair", "dicom_min_slices", "dicom_inversion_ms", "dicom_echo_ms")


def flair_rules(
    series: Sequence[str] = (),
    *,
    describe: bool = False,
    sequences: Sequence[str] = (),
    sequence_series: Mapping[str, str] | None = None,
) -> FlairRules | None:
    """The rules; None: the default ones, so that scans which are not DICOM need no DICOM library.

    Parameters
    ----------
    series: the values of ``--series``.
    describe: what is left out is described in the headers' words, which may name the patient: for the terminal alone.
    sequences, sequence_series: as for ``FlairRules``.

    Raises
    ------
    UsageError: ``series`` needs a library that is not installed, or a value is empty.
    """
    settings = load_settings()
    if not series and not describe and not sequences and settings.model_fields_set.isdisjoint(SETTINGS):
        return None
    if not all(text.strip() for text in series):
        raise UsageError("--series is empty: give a SeriesInstanceUID, a SeriesNumber or a part of the description")
    if not has_dicom():
        if series or sequence_series:
            flag = "--series" if series else f"--{next(iter(sequence_series or ()))}"
            raise UsageError(f"{flag}: reading DICOM needs: {INSTALL}")
        return None
    from gliaflow_plugins.dicom.choose import FlairRules

    return FlairRules(
        pattern=settings.dicom_flair,
        min_slices=settings.dicom_min_slices,
        inversion_ms=settings.dicom_inversion_ms,
        echo_ms=settings.dicom_echo_ms,
        wanted=tuple(text.strip() for text in series),
        describe=describe,
        sequences=tuple(sequences),
        sequence_series=dict(sequence_series or {}),
    )
