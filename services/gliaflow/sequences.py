"""The sequences beside the FLAIR that a client sends: which, and from where."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts.dicom_scans import as_series, folder_of, only_series, volume_key
from gliaflow_plugins.cohorts.other_formats import is_other_format
from gliaflow_plugins.cohorts.scan_files import ScanFile
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import SequenceFile, Volume
from gliaflow_plugins.sequence_names import OTHERS
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.series import DicomSeries

CHANNEL = re.compile(r"(.*):(\d+)", re.DOTALL)
UNUSED = " is not used: "  # in a doubt: the sequence in front of it, and the reason behind
OWN_FILE = Path()  # of a sequence that is in the scan's own file


@dataclass(frozen=True)
class SequenceInput:
    """A sequence beside the FLAIR of a scan. The fields are those of ``Input``."""

    path: Path
    channel: str | None = None
    volume: Volume | None = None
    uri: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for the same image."""
        return volume_key(as_series(self.volume) or self.uri or self.path, self.channel)

    @property
    def root(self) -> str:
        """As of ``Input``."""
        return self.uri.rpartition("/")[0] or str(Path(os.path.realpath(self.path)).parent)


@dataclass(frozen=True)
class GivenSequences:
    """What a user named for each sequence: a file, or a DICOM series of the study.

    Parameters
    ----------
    files: by sequence. series: by sequence, as ``--series`` takes it.
    """

    files: Mapping[str, SequenceInput] = field(default_factory=dict)
    series: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Mapping[str, str | PathLike[str]]) -> GivenSequences:
        """Read ``FILE``, ``FILE:CHANNEL`` of a 4-D file (``:CHANNEL``: of the scan's own), a folder of one series of
        DICOM, or a series of the study.

        Raises
        ------
        UsageError: a name is no sequence, a text is empty, or a folder has no DICOM series.
        """
        files: dict[str, SequenceInput] = {}
        series: dict[str, str] = {}
        for name, given in texts.items():
            if name not in OTHERS:
                raise UsageError(f"{name}: not a sequence beside the FLAIR: {', '.join(OTHERS)}")
            text = fspath(given)
            if not text.strip():
                raise UsageError(
                    f"--{name} is empty: give a file, or the number or SeriesInstanceUID of a DICOM series"
                )
            match = CHANNEL.fullmatch(text)
            if match and not match[1]:
                files[name] = SequenceInput(OWN_FILE, match[2])
            elif Path(text).exists():
                files[name] = _of_file(name, Path(text))
            elif match and Path(match[1]).is_file():
                files[name] = sequence_input(NiftiFile(Path(match[1])), match[2])
            elif isinstance(given, PathLike) or re.search(r"[/\\]|\.(nii|gz|dcm|mha|nrrd|mgz)$", text):
                raise UsageError(f"--{name} {text}: no such file")
            else:
                series[name] = text.strip()
        return cls(files, series)

    def beside(self, flair: SequenceInput, found: Mapping[str, SequenceInput]) -> dict[str, SequenceInput]:
        """The named files and what was found for the scan ``flair``, without a file that was found for another name.

        Raises
        ------
        UsageError: a file is the FLAIR scan, or is named twice.
        """
        own = {
            name: replace(each, path=flair.path, volume=flair.volume, uri=flair.uri) if each.path == OWN_FILE else each
            for name, each in self.files.items()
        }
        names = {flair.key: "the FLAIR scan"}
        for name, each in own.items():
            if each.key in names:
                raise UsageError(f"--{name} {each.path}: the same image as {names[each.key]}")
            names[each.key] = f"--{name}"
        return {name: each for name, each in found.items() if each.key not in names} | own


def require_read(named: Iterable[str], channels: Sequence[str]) -> None:
    """Raise UsageError if a user named a sequence that is not among the ``channels`` of the bundle."""
    if unread := [f"--{name}" for name in named if name not in channels]:
        raise UsageError(f"{', '.join(unread)}: the bundle reads {', '.join(channels)}; choose another with --bundle")


def _of_file(name: str, path: Path) -> SequenceInput:
    if not path.is_dir():
        return sequence_input(NiftiFile(path))
    try:
        return sequence_input(only_series(path))
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from None


def wanted_sequences(settings: Settings, bundle: Bundle | None = None) -> tuple[str, ...]:
    """The sequences that a client looks for and sends: those of the setting ``sequences``.

    Without it, stages in this process get what their bundle reads, and stages on a broker nothing but the FLAIR: their
    bundle is not known here. Stages in this process never get what their bundle does not read.

    ``bundle``: of stages in this process, if it is loaded already.
    """
    asked = settings.sequences
    if bundle is None and not settings.broker.startswith("memory:"):
        return tuple(asked or ())
    bundle = bundle or load_bundle(
        settings.bundle, settings.tap, settings.bundle_sha256, settings.state, settings.bundles
    )
    channels = bundle.manifest.input.channels[1:]
    return channels if asked is None else tuple(name for name in channels if name in asked)


def sequence_input(volume: Volume, channel: str | None = None) -> SequenceInput:
    """A volume as a sequence to send. A NIfTI file is sent as it is; what else there is, as NIfTI bytes."""
    if series := as_series(volume):
        return SequenceInput(folder_of(series), volume=series)
    path = volume.path if isinstance(volume, NiftiFile) else Path(str(volume))
    plain = isinstance(volume, NiftiFile) and not is_other_format(path)
    return SequenceInput(path, channel, None if plain else volume)


def case_sequences(files: Mapping[str, SequenceFile], wanted: Sequence[str]) -> dict[str, SequenceInput]:
    """The wanted sequences of a cohort's case."""
    return {name: sequence_input(files[name].volume, files[name].channel) for name in wanted if name in files}


def scan_sequences(
    scan: ScanFile, path: Path, uris: Mapping[PurePath, str]
) -> tuple[dict[str, SequenceInput], list[str]]:
    """The sequences that were found for a scan, and doubts about them.

    ``path``: of the scan, as it is sent. ``uris``: of files in a store.
    """
    if scan.series is not None:
        return series_sequences(scan.series)
    found = {}
    for name, each in scan.sequences.found.items():
        uri = uris.get(each.path, "")
        file = path if each.path == scan.path else Path(each.path)
        found[name] = (
            SequenceInput(file, each.channel, uri=uri) if uri else sequence_input(NiftiFile(file), each.channel)
        )
    return found, [f"{name}{UNUSED}{why}" for name, why in scan.sequences.problems.items()]


def series_sequences(series: DicomSeries) -> tuple[dict[str, SequenceInput], list[str]]:
    """The sequences that were found in the study of a FLAIR series, and doubts about them."""
    doubts = [f"{name}{UNUSED}{why}" for name, why in series.sequence_problems.items()]
    doubts += [f"{name}: {doubt}" for name, each in series.sequences.items() for doubt in each.warnings]
    return {name: sequence_input(each) for name, each in series.sequences.items()}, doubts
