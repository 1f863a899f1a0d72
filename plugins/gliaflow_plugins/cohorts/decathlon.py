"""Folders with a ``dataset.json``: the Medical Segmentation Decathlon (MSD) and nnU-Net.

``imagesTr`` and its like hold 4-D files (MSD: ``BRATS_306.nii.gz``) or one file for each channel (nnU-Net:
``BRATS_306_0000.nii.gz``); ``labelsTr`` holds the masks. ``dataset.json`` names the channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

from gliaflow_plugins.cohorts.image_names import NameSays, is_image, judge_text, stem
from gliaflow_plugins.sequence_names import sequences_of

DATASET = "dataset.json"
MAX_JSON_BYTES = 16 * 2**20
LEVELS = 4  # nnU-Net's results are so many folders below their dataset.json
IMAGES = re.compile(r"images\w*", re.IGNORECASE)
LABELS = re.compile(r"labels\w*", re.IGNORECASE)
CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")


class Files(Protocol):
    """Where the files are: on this machine, or in a store."""

    def names(self, folder: PurePath) -> list[str]:
        """The names in a folder; none if it does not exist."""
        ...

    def read(self, path: PurePath) -> bytes | None:
        """A small file's bytes; None: it does not exist."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A folder with a ``dataset.json``.

    Parameters
    ----------
    folder: where ``dataset.json`` is. channels: the names by their numbers.
    split: whether each channel has a file of its own.
    beside: whether the files beside ``dataset.json`` are images; else the folders ``images…`` hold all of them.
    """

    folder: PurePath
    channels: dict[int, str]
    split: bool
    beside: bool

    def flair(self, wanted: str | None = None) -> int | None:
        """The number of the FLAIR channel, or of the channel ``wanted`` (a name or a number); None: there is none."""
        if wanted is not None and wanted.isdecimal():
            return int(wanted)
        for number, name in self.channels.items():
            if name.casefold() == wanted.casefold() if wanted else judge_text(name).kind == "FLAIR":
                return number
        return None

    def channels_of(self, *sequences: str) -> list[int]:
        """The numbers of the channels whose names mean a sequence: t1, t1ce or t2; or may mean all of several."""
        return [number for number, name in self.channels.items() if sequences_of(name) == sequences]

    def case(self, path: PurePath) -> tuple[str, int | None]:
        """The case's name, and the number of the channel if the file has one channel only."""
        match = CHANNEL_FILE.fullmatch(stem(path)) if self.split else None
        return (match[1], int(match[2])) if match else (stem(path), None)

    def judge(self, path: PurePath, wanted: str | None = None) -> NameSays:
        """Whether a file of this dataset is a FLAIR scan; ``wanted``: the channel to take in place of FLAIR."""
        place = path.relative_to(self.folder).parts[0]
        if LABELS.fullmatch(place):
            return NameSays("mask", place, f"a label map, in {place}")
        if not (IMAGES.fullmatch(place) or (self.beside and place == path.name)):
            return NameSays(
                "derivative", "nnU-Net", f"not in an images folder of {self.folder.name}/{DATASET} (nnU-Net's output?)"
            )
        flair = self.flair(wanted)
        if flair is None:
            names = ", ".join(self.channels.values())[:200]
            return NameSays(
                "other sequence", names, f"{DATASET} names no {wanted or 'FLAIR'} among its channels ({names})"
            )
        number = self.case(path)[1]
        if number is None or number == flair:
            return NameSays("FLAIR", DATASET)
        name = self.channels.get(number, f"not in {DATASET}")
        return NameSays("other sequence", name, f"channel {number} is {name}")


def parse_channels(data: bytes) -> dict[int, str]:
    """The channels that ``dataset.json`` names. Raises ValueError: it names none."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"over {MAX_JSON_BYTES} bytes")
    try:
        described: Any = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    named = described.get("channel_names", described.get("modality")) if isinstance(described, dict) else None
    if isinstance(named, list):
        named = {str(number): name for number, name in enumerate(named)}
    elif isinstance(named, str):
        named = {"0": named}
    if not isinstance(named, dict):
        raise ValueError("no 'modality' or 'channel_names' that says which channel is FLAIR")
    return {int(number): str(name) for number, name in named.items() if re.fullmatch("[0-9]{1,4}", number)}


class Datasets:
    """Finds the dataset to which a file belongs. Each folder is read once."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._in: dict[PurePath, Dataset | None] = {}  # by the folder that may have a dataset.json
        self._of: dict[PurePath, Dataset | None] = {}  # by the folder of a file

    def of(self, path: PurePath) -> Dataset | None:
        """The dataset of the nearest ``dataset.json`` that names channels."""
        parent = path.parent
        if parent not in self._of:
            near = map(self._at, path.parents[:LEVELS])
            # a dataset.json above, with no images folder beside it, is a file for another purpose
            self._of[parent] = next(
                (each for each in near if each and (not each.beside or each.folder == parent)), None
            )
        return self._of[parent]

    def _at(self, folder: PurePath) -> Dataset | None:
        if folder not in self._in:
            self._in[folder] = self._read(folder)
        return self._in[folder]

    def _read(self, folder: PurePath) -> Dataset | None:
        data, names = self._files.read(folder / DATASET), self._files.names
        if data is None:
            return None
        try:
            channels = parse_channels(data)
        except ValueError:
            return None
        inside = names(folder)
        images = [name for name in inside if IMAGES.fullmatch(name) and not is_image(name)]
        output = any(name.endswith(("plans.json", "Plans.json", "predict_from_raw_data_args.json")) for name in inside)
        labels = {stem(PurePath(name)) for place in inside if LABELS.fullmatch(place) for name in names(folder / place)}
        stems = [stem(PurePath(name)) for place in images for name in names(folder / place) if is_image(name)]
        stems = stems or [stem(PurePath(name)) for name in inside if is_image(name)]
        split = _is_split([name for name in stems if name[:1] != "."], labels, channels)
        return Dataset(folder, channels, split, not images and not output)


def _is_split(stems: Sequence[str], labels: set[str], channels: dict[int, str]) -> bool:
    """Whether the numbers at the ends of the names are channels; else they are a part of the cases' names.

    The names of the label maps show it. Without them, a channel's number is one that ``dataset.json`` has, and the
    name before it has a number of its own, unless all cases have one channel.
    """
    matches = [match for name in stems if (match := CHANNEL_FILE.fullmatch(name))]
    whole = sum(name in labels for name in stems)
    cut = sum(match[1] in labels for match in matches)
    if whole != cut:
        return cut > whole
    if not matches or len(matches) < len(stems) or any(int(match[2]) not in channels for match in matches):
        return False
    cases = {match[1] for match in matches}
    return len(cases) > 1 or len(matches) == 1 or any(character.isdigit() for character in cases.pop())
