"""The scans in an upload, as ``gliaflow submit`` finds them, in texts without the store's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gliaflow.scans import Input, NoScanError, ScanRequest, find_inputs
from gliaflow_plugins.left_out import LeftOut
from gliaflow_runtime.errors import UsageError

from gliaflow_console.uploads import Upload


@dataclass(frozen=True)
class FoundScans:
    """The scans of an upload, and the files that are left out: (name, why)."""

    inputs: list[Input]
    left_out: list[tuple[str, str]]


class NotTaken(UsageError):
    """An upload has no scan that the pipeline can answer. ``left_out``: its files, as (name, why)."""

    def __init__(self, message: str, left_out: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.left_out = left_out


def find_scans(upload: Upload, series: Sequence[str], sequences: Sequence[str] = (), *, alone: bool) -> FoundScans:
    """The scans of an upload. Reads files.

    Parameters
    ----------
    series, sequences: the DICOM series to take, and the sequences to look for, as for ``ScanRequest``.
    alone: it is one file, which is always a scan. Otherwise it is a folder, of which the FLAIR scans are taken.

    Raises
    ------
    NotTaken: there is no scan, or it cannot be read here. The text names files as their sender did.
    """
    root = upload.files.resolve()
    files = (path for path in root.rglob("*") if path.is_file())
    place = next(files, None) if alone else upload.named_root().resolve()
    if place is None:
        raise NotTaken("the upload has no file: send the file, or a folder of files", [])
    try:
        found = find_inputs([place], ScanRequest(series=series, sequences=sequences), root=root)
    except UsageError as error:
        left_out = _left_out(upload, error.left_out) if isinstance(error, NoScanError) else []
        raise NotTaken(sender_text(upload, str(error)), left_out) from None
    inputs = [
        replace(item, warnings=tuple(sender_text(upload, text) for text in item.warnings)) for item in found.inputs
    ]
    return FoundScans(inputs, _left_out(upload, found.left_out))


def sender_text(upload: Upload, text: str) -> str:
    """The text with files named as their sender named them, not by their paths in the store."""
    for root in (str(upload.files.resolve()), str(upload.files)):
        text = text.replace(f"{root}/", "").replace(root, "the upload")
    return text


def _left_out(upload: Upload, left_out: Sequence[LeftOut]) -> list[tuple[str, str]]:
    return [(sender_text(upload, str(each.path)), sender_text(upload, each.why)) for each in left_out]
