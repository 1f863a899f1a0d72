"""UIDs and series numbers of the objects. They are derived, so a scan that is sent again gives the same objects."""

from __future__ import annotations

from uuid import UUID, uuid5

from gliaflow_plugins.dicom.series import DicomSeries

NAMESPACE = UUID("6f0c7a52-90b4-4b7f-8d0e-3f1d8a1c5e27")
KINDS = ("SEG", "SR", "SC")
FIRST_NUMBER = 10_000  # scanners and their workstations number series below it
LARGEST_NUMBER = 1_000_000  # of a source series whose number is taken over


def derived_uid(*parts: str) -> str:
    """The UID of these parts: ``2.25.`` and a UUID of version 5 (DICOM PS3.5, B.2), 44 characters at most."""
    return f"2.25.{uuid5(NAMESPACE, '/'.join(parts)).int}"


def object_uid(series: DicomSeries, bundle: str, kind: str) -> str:
    """The UID of one thing (``kind``) that this bundle makes of the images of ``series``.

    It follows from the series' UID, its images (and frames, since two echoes may share a file), the same of the other
    sequences that were sent with it, and the digest in ``bundle`` (``name@digest``), but not from the answer.
    """
    others = [f"{name}:{part}" for name, each in sorted(series.sequences.items()) for part in _parts(each)]
    return derived_uid(*_parts(series), *others, bundle.rpartition("@")[2], kind)


def _parts(series: DicomSeries) -> list[str]:
    return [series.uid, *sorted(f"{each.sop_uid}:{each.frame}" for each in series.slices)]


def series_number(series: DicomSeries, kind: str) -> int:
    """The number of the series in which an object of this kind is: of series 4 it is 10041 (SEG), 10042 or 10043.

    Objects of a series without a number, or with an implausible one, are numbered as those of series 0.
    """
    number = series.number if series.number is not None and 0 <= series.number <= LARGEST_NUMBER else 0
    return FIRST_NUMBER + 10 * number + 1 + KINDS.index(kind)
