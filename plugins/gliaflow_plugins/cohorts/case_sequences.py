"""Finds the files of the other sequences of FLAIR scans: beside them, or as their datasets say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePath

from gliaflow_plugins.cohorts import image_names
from gliaflow_plugins.cohorts.decathlon import Dataset, Files
from gliaflow_plugins.cohorts.image_names import is_image, stem
from gliaflow_plugins.cohorts.sequences import (
    Siblings,
    all_words,
    case_words,
    is_sequence_folder,
    place_of,
    siblings,
    with_t1_for_t2,
)
from gliaflow_plugins.cohorts.walk import is_hidden
from gliaflow_plugins.left_out import LeftOut
from gliaflow_plugins.sequence_names import DOUBTFUL, SHOWN

MAY_BE_SCANS = ("FLAIR", "unknown", "doubtful file")
LEVELS = 3  # a sequence's image is at most so many folders below the folder that is called after the sequence


@dataclass(frozen=True)
class SequencePath:
    """An image of another sequence. ``channel``: the number of its volume in a 4-D file."""

    path: PurePath
    channel: str | None = None


@dataclass(frozen=True)
class CaseSequences:
    """The other sequences of one scan, by name. ``problems``: why one is not used though it may be there."""

    found: Mapping[str, SequencePath] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Images:
    """The images in the folder of a case or of several.

    Parameters
    ----------
    others: the other sequences, by the words that name their case (``case_words``).
    scans: the words of all images that may be scans, taken or not. flairs: of those that are called FLAIR.
    names: the images that may be scans, by all words of their names.
    """

    others: Mapping[tuple[str, ...], Sequence[PurePath]]
    scans: Set[tuple[str, ...]]
    flairs: Set[tuple[str, ...]]
    names: Mapping[tuple[str, ...], PurePath]


class SequenceFinder:
    """Finds the other sequences. Each folder is read once.

    Parameters
    ----------
    wanted: the sequences to look for.
    """

    def __init__(self, files: Files, wanted: Sequence[str]) -> None:
        self._files, self.wanted = files, tuple(wanted)
        self._names: dict[PurePath, list[str]] = {}
        self._places: dict[PurePath, Images] = {}
        self.left_out: list[LeftOut] = []

    def beside(self, flairs: Sequence[PurePath]) -> dict[PurePath, CaseSequences]:
        """Of scans that are in no dataset: by the names of the files beside them."""
        found = {}
        for flair in flairs:
            place = place_of(flair)
            images = self._images(place)
            case = case_words(flair)
            others = [*images.others.get(case, ())]
            if images.flairs <= {case}:
                others += [
                    path for each in images.others.keys() - images.scans - {case} for path in images.others[each]
                ]
            of = siblings(flair, others, alone=images.scans <= {case})
            if (as_t1 := with_t1_for_t2(flair)) in images.names:
                visit = images.names[as_t1].name
                why = f"is {visit} of another visit? Name the files with --t1, --t1ce and --t2, or in a table"
                of = Siblings(problems=dict.fromkeys(self.wanted, why))
            self.left_out += [
                LeftOut(path, f"another version of the same sequence: {taken.name} is taken", "other version")
                for path, taken in of.passed_over.items()
            ]
            files = {name: SequencePath(path) for name, path in of.files.items() if name in self.wanted}
            problems = {name: why for name, why in of.problems.items() if name in self.wanted}
            found[flair] = CaseSequences(files, problems)
        return found

    def in_dataset(self, scan: PurePath, dataset: Dataset) -> CaseSequences:
        """Of a scan in a dataset: the other channels that ``dataset.json`` names, in its file or in files of theirs."""
        found: dict[str, SequencePath] = {}
        problems: dict[str, str] = {}
        case, number = dataset.case(scan)
        for name in self.wanted:
            numbers = dataset.channels_of(name)
            doubtful = dataset.channels_of(*DOUBTFUL) if name in DOUBTFUL and not numbers else []
            listing = ", ".join(f"{each} ({dataset.channels[each]})" for each in [*numbers, *doubtful])
            if len(numbers) > 1:
                problems[name] = f"several channels may be its {SHOWN[name]}: {listing}"
            elif doubtful:
                problems[name] = f"before or after contrast? dataset.json does not say it of channel {listing}"
            elif numbers and number is None:
                found[name] = SequencePath(scan, str(numbers[0]))
            elif numbers:
                own = scan.with_name(f"{case}_{numbers[0]:04}{scan.name[len(stem(scan)) :]}")
                if own.name in self._names_in(scan.parent):
                    found[name] = SequencePath(own)
        return CaseSequences(found, problems)

    def _names_in(self, folder: PurePath) -> list[str]:
        if folder not in self._names:
            self._names[folder] = [name for name in self._files.names(folder) if not is_hidden(name)]
        return self._names[folder]

    def _images(self, place: PurePath) -> Images:
        """The images in the folder of a case or of several, and in their sequences' folders."""
        if place not in self._places:
            names = self._names_in(place)
            images = [place / name for name in names if is_image(name)]
            for name in names:
                if not is_image(name) and is_sequence_folder(name):
                    images += [path for path in self._below(place / name, LEVELS) if place_of(path) == place]
            kinds = {path: image_names.judge(path, place).kind for path in sorted(images)}
            others: dict[tuple[str, ...], list[PurePath]] = defaultdict(list)
            for path in (path for path, kind in kinds.items() if kind == "other sequence"):
                others[case_words(path)].append(path)
            scans = {path: case_words(path) for path, kind in kinds.items() if kind in MAY_BE_SCANS}
            flairs = {case for path, case in scans.items() if kinds[path] == "FLAIR"}
            self._places[place] = Images(others, {*scans.values()}, flairs, {all_words(path): path for path in scans})
        return self._places[place]

    def _below(self, folder: PurePath, levels: int) -> list[PurePath]:
        paths = [folder / name for name in self._names_in(folder)]
        images = [path for path in paths if is_image(path.name)]
        if levels > 1 and not images:
            images = [image for path in paths if not path.suffix for image in self._below(path, levels - 1)]
        return images
