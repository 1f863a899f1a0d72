"""Which DICOM files are series, and which series of each study is FLAIR."""

from __future__ import annotations

import filecmp
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gliaflow_plugins.dicom.doubts import arranged, warnings_of
from gliaflow_plugins.dicom.geometry import listed
from gliaflow_plugins.dicom.headers import OtherFile, quiet
from gliaflow_plugins.dicom.images import DicomImage, DicomSlice, read_image
from gliaflow_plugins.dicom.roles import Roles, find_roles
from gliaflow_plugins.dicom.series import DicomSeries
from gliaflow_plugins.left_out import NO_FLAIR, LeftOut

MAX_FILES = 500_000
MAX_KNOWN = 50_000  # images, some KiB each
SUFFIXES = ("", ".dcm", ".ima")  # of files that should be DICOM
T1_FLAIR = re.compile(r"(?<![^\W_])t1(?:(?!t2)[^/])*?(flair|tirm|dark.?fluid)", re.IGNORECASE)  # a T1 sequence
NEVER = {"LOCALIZER": "a localizer", "MOSAIC": "a Siemens mosaic, many slices in one picture"}

Stamp = tuple[int, int, int]
KnownImages = dict[Path, tuple[Stamp, DicomImage]]
"""Images by file, with the size and times that the file had when it was read."""


@dataclass(frozen=True)
class FlairRules:
    """Which series is FLAIR.

    Parameters
    ----------
    pattern: regular expression, found in the description or protocol of a FLAIR series; case does not matter.
    min_slices: a series with fewer is not FLAIR.
    inversion_ms, echo_ms: a series not so described is FLAIR if its inversion time is between these, and its echo time
        is at least this.
    wanted: the series to take, whatever the other rules say: a SeriesInstanceUID, a SeriesNumber, one of both with
        ``:ECHO_MS``, or a text in the description. In a study where none matches, the other rules choose.
    must_match: such a study is refused instead.
    sequences: the other sequences to look for in the study of each FLAIR series: of ``t1``, ``t1ce`` and ``t2``.
    sequence_series: by sequence, the series to take for it, written as in ``wanted``.
    describe: whether the reasons of what is left out quote descriptions. People write names into them, so: only on the
        user's own terminal.
    """

    pattern: str = r"flair|tirm|dark.?fluid"
    min_slices: int = 10
    inversion_ms: tuple[float, float] = (1500.0, 3000.0)
    echo_ms: float = 70.0
    wanted: tuple[str, ...] = ()
    must_match: bool = False
    describe: bool = True
    sequences: tuple[str, ...] = ()
    sequence_series: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"the pattern of FLAIR series is not a regular expression: {error}") from None


@dataclass(frozen=True)
class FoundSeries:
    """The series among DICOM files.

    Parameters
    ----------
    flair: at most one for each study.
    left_out: the other series, the studies without FLAIR, and files that cannot be read.
    matched: the values of ``FlairRules.wanted`` and ``sequence_series`` that a series has.
    every: all series, as messages name them.
    """

    flair: list[DicomSeries] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)
    every: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """One series, or one echo of it, before the choice."""

    images: tuple[DicomImage, ...]
    slices: tuple[DicomSlice, ...]
    echo_ms: float | None
    rules: FlairRules

    @property
    def head(self) -> DicomImage:
        return self.images[0]

    @property
    def count(self) -> int:
        return len(self.slices) + sum(not image.slices for image in self.images)

    @property
    def text(self) -> str:
        """The series in the reason why it is left out."""
        return self.shown(self.rules.describe)

    def shown(self, describe: bool) -> str:
        """The series in a message. ``describe``: as in the rules."""
        number = f"series {self.head.number}" if self.head.number is not None else "a series without a number"
        name = f" '{self.head.description}'" if describe and self.head.description else ""
        count = f"{self.count} image{'s' if self.count != 1 else ''}"
        echo = f", echo {self.echo_ms:g} ms" if self.echo_ms is not None else ""
        return f"{number}{name}, {count}{echo}"

    def in_list(self, describe: bool) -> str:
        """The series in a list of all series."""
        return self.shown(describe) + (f": {self.never}" if self.never else "")

    def choice(self, by_number: bool) -> str:
        """The value of --series that takes it: its SeriesInstanceUID, or its number if that is enough."""
        number = str(self.head.number) if by_number and self.head.number is not None else self.head.series
        return f"{number}:{self.echo_ms:g}" if self.echo_ms is not None else number

    @property
    def not_flair(self) -> str:
        """Why it is not FLAIR; empty: it is."""
        if why := self.never:
            return why
        damaged = any(not image.slices and image.is_multi_frame for image in self.images)  # of how many slices?
        if self.count < self.rules.min_slices and not damaged:
            return f"fewer than {self.rules.min_slices} slices"
        return "" if self.is_named or self.is_timed else "not FLAIR by its description or timing"

    @property
    def never(self) -> str:
        """Why it cannot be taken, even if the user wants it."""
        if not self.head.is_mr:
            return "not MR images"
        types = {value for image in self.images for value in image.image_type}
        return next((f"{why} (ImageType {value})" for value, why in NEVER.items() if value in types), "")

    @property
    def is_named(self) -> bool:
        text = self.head.description
        is_t1 = T1_FLAIR.search(text) is not None and self.right_inversion is not True
        described = re.search(self.rules.pattern, text, re.IGNORECASE) is not None and not is_t1
        return described or self.head.contrast == "FLUID_ATTENUATED"

    @property
    def is_timed(self) -> bool:
        return self.head.inversion and self.right_inversion is True and self.echo >= self.rules.echo_ms

    @property
    def right_inversion(self) -> bool | None:
        """Whether the inversion time is one of FLAIR; None: it is not known."""
        low, high = self.rules.inversion_ms
        time = self.head.inversion_ms
        return None if not time else low <= time <= high

    @property
    def echo(self) -> float:
        return (self.slices[0].echo_ms if self.slices else None) or 0.0

    @property
    def is_derived(self) -> bool:
        return self.head.image_type[0] == "DERIVED"

    @property
    def rank(self) -> tuple[bool, bool]:
        return self.is_named, not self.is_derived

    @property
    def doubts(self) -> list[str]:
        """Why it may not be FLAIR."""
        if self.wanted_by:
            return []
        if not self.is_named:
            time, echo = self.head.inversion_ms or 0.0, self.echo
            return [
                f"FLAIR only by its timing (InversionTime {time:g} ms, EchoTime {echo:g} ms), not by its description"
            ]
        if self.right_inversion is False:
            return [f"called FLAIR, but InversionTime is {self.head.inversion_ms:g} ms"]
        return []

    @property
    def wanted_by(self) -> set[str]:
        """The values of ``FlairRules.wanted`` that take this series."""
        return {wanted for wanted in self.rules.wanted if self.is_called(wanted)}

    def is_called(self, wanted: str) -> bool:
        """Whether a value of ``FlairRules.wanted`` takes this series."""
        return wanted.strip() != "" and not self.never and self._matches(wanted)

    def _matches(self, wanted: str) -> bool:
        names = (self.head.series, str(self.head.number))
        start, _, echo = wanted.rpartition(":")
        if re.fullmatch(r"[\d.]+:\d+(\.\d+)?", wanted):
            return start in names and abs(self.echo - float(echo)) < 0.5
        if re.fullmatch(r"[\d.]+", wanted):
            return wanted in names
        return wanted.strip().casefold() in self.head.description.casefold()


def find_series(
    paths: Iterable[Path],
    rules: FlairRules = FlairRules(),
    known: KnownImages | None = None,
    *,
    part: bool = False,
) -> FoundSeries:
    """The FLAIR series of each study in these DICOM files. Whatever is in the files, nothing is raised.

    Parameters
    ----------
    known: the images of an earlier search. Only files that changed since are read; it then has the images of this
        search.
    part: these files are a part of those to which ``rules.wanted`` applies.
    """
    found = FoundSeries()
    before = {} if known is None else dict(known)
    if known is not None:
        known.clear()
    studies: dict[str, dict[str, list[DicomImage]]] = defaultdict(lambda: defaultdict(list))
    damaged: dict[Path, list[str]] = defaultdict(list)
    with quiet():
        for number, path in enumerate(paths):
            if number >= MAX_FILES:
                why = f"over the limit of {MAX_FILES} DICOM files in one folder: submit its folders one by one"
                found.left_out.append(LeftOut(path, why, "DICOM file"))
                break
            try:
                stamp = _stamp(path)
                old = before.get(path)
                image = old[1] if old is not None and old[0] == stamp else read_image(path)
            except Exception as error:  # pydicom raises many types for a damaged file
                found.left_out.append(LeftOut(path, _reason(error), "DICOM file"))
                if not isinstance(error, OtherFile) or path.suffix.casefold() in SUFFIXES:
                    damaged[path.parent].append(path.name)
                continue
            if known is not None and len(known) < MAX_KNOWN:
                known[path] = (stamp, image)
            studies[image.study][f"{image.series} {image.is_mr}"].append(image)  # a screenshot may be in a series
    for study in studies.values():
        group = [_once(images, found.left_out) for images in study.values()]
        candidates = [each for images in group for each in _candidates(images, rules)]
        found.every.extend(each.in_list(rules.describe) for each in candidates)
        found.matched.update(*(each.wanted_by for each in candidates))
        named = [value for value in rules.sequence_series.values() if any(each.is_called(value) for each in candidates)]
        found.matched.update(named)
        chosen = _choose(candidates, rules)
        others = [each for each in candidates if each not in chosen]
        roles = find_roles(chosen[0], others) if len(chosen) == 1 and rules.sequences else Roles()
        _leave_out([each for each in others if each not in roles.taken.values()], chosen, found.left_out)
        if chosen:
            by_number = not part and len(studies) == 1
            series = _series(chosen, damaged, by_number=by_number)
            sequences = {name: _sequence(each, roles.doubts[name], damaged) for name, each in roles.taken.items()}
            found.flair.append(replace(series, sequences=sequences, sequence_problems=roles.problems))
        else:
            place = _place([image for images in group for image in images])
            found.left_out.append(LeftOut(place, "a study without a FLAIR series", NO_FLAIR))
    return found


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _choose(candidates: Sequence[Candidate], rules: FlairRules) -> list[Candidate]:
    """The FLAIR series of one study; several, if the rules cannot choose; all, if one must match and none does."""
    wanted = [each for each in candidates if each.wanted_by]
    if rules.wanted and (wanted or rules.must_match):
        return wanted or list(candidates)
    flair = [each for each in candidates if not each.not_flair]
    best = max((each.rank for each in flair), default=None)
    return [each for each in flair if each.rank == best]


def _leave_out(others: Sequence[Candidate], chosen: Sequence[Candidate], left_out: list[LeftOut]) -> None:
    """Note why the other series of a study are not taken."""
    wanted = any(each.wanted_by for each in chosen)
    for each in others:
        why = each.never if wanted else each.not_flair
        why = why or ("not the one of --series" if wanted else f"{chosen[0].text}, is FLAIR more surely")
        left_out.append(LeftOut(_place(each.images), f"{each.text}: {why}", "DICOM series"))


def _sequence(each: Candidate, doubts: Sequence[str], damaged: dict[Path, list[str]]) -> DicomSeries:
    """A series that is another sequence of a study."""
    series = _series([each], damaged, by_number=False)
    warnings = (*warnings_of(each.images), *doubts, *_beside(each.images, damaged))
    return replace(series, problem="", warnings=warnings)  # ``find_roles`` takes only what can be read


def _once(images: Sequence[DicomImage], left_out: list[LeftOut]) -> tuple[DicomImage, ...]:
    """The images of a series without copies of the same file."""
    first: dict[str, DicomImage] = {}
    kept = []
    for image in images:
        other = first.setdefault(image.sop_uid, image)
        if other is not image and _same(other.path, image.path):
            left_out.append(LeftOut(image.path, f"a copy of {other.path}", "repeated file"))
        else:
            kept.append(image)
    return tuple(kept)


def _same(first: Path, second: Path) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError:
        return False


def _candidates(images: tuple[DicomImage, ...], rules: FlairRules) -> list[Candidate]:
    """A series, or each of its echoes if it has several at one place."""
    slices = tuple(each for image in images for each in image.slices)
    echoes: dict[float | None, list[DicomSlice]] = defaultdict(list)
    places: dict[tuple[float, ...], set[float | None]] = defaultdict(set)
    for each in slices:
        echoes[each.echo_ms].append(each)
        places[tuple(round(value, 2) for value in each.position)].add(each.echo_ms)
    if all(len(here) == 1 for here in places.values()):
        return [Candidate(images, slices, None, rules)]
    return [Candidate(images, tuple(group), echo, rules) for echo, group in echoes.items()]


def _series(chosen: Sequence[Candidate], damaged: dict[Path, list[str]], *, by_number: bool) -> DicomSeries:
    """The series that was chosen; if there are several, the first of them with the list of all as its problem."""
    first, head = chosen[0], chosen[0].head
    slices, problem = arranged(first.images, first.slices)
    unmatched = first.rules.must_match and first.rules.wanted and not first.wanted_by
    choices = () if unmatched or len(chosen) == 1 else _choices(chosen, by_number)
    if unmatched:
        every = "; ".join(each.in_list(False) for each in chosen)
        problem = f"no series matches --series {' or '.join(first.rules.wanted)}; the study has: {every}"
    elif choices:
        problem = _tie(chosen, choices)
    return DicomSeries(
        uid=head.series,
        study=head.study,
        number=head.number,
        description=head.description,
        echo_ms=first.echo_ms,
        slices=slices,
        problem=problem,
        warnings=(*warnings_of(first.images), *first.doubts, *_beside(first.images, damaged)),
        unusable=tuple(image.path for image in first.images if not image.slices),
        choices=choices,
        patient_id=head.patient,
    )


def _choices(chosen: Sequence[Candidate], by_number: bool) -> tuple[str, ...]:
    """The values of --series that choose. Numbers only if they choose nothing else: each study has a series 1."""
    choices = tuple(each.choice(by_number) for each in chosen)
    return choices if len(set(choices)) == len(choices) else tuple(each.choice(False) for each in chosen)


def _tie(chosen: Sequence[Candidate], choices: Sequence[str]) -> str:
    """Without descriptions: a problem is written into the table of answers."""
    listing = "; ".join(f"{each.shown(False)}, UID {each.head.series}" for each in chosen)
    options = " or ".join(f"--series {choice}" for choice in choices)
    return f"{len(chosen)} series of one study may be FLAIR: {listing}. Choose one: {options}"


def _beside(images: Sequence[DicomImage], damaged: dict[Path, list[str]]) -> list[str]:
    """Files in the folders of a series that cannot be read."""
    folders = dict.fromkeys(image.path.parent for image in images)
    names = [name for folder in folders for name in damaged.get(folder, ())]
    return (
        [f"{listed(names)} beside it cannot be read: if it belongs to the series, slices are missing"] if names else []
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "cannot be opened"
    return str(error) if isinstance(error, ValueError) else f"damaged ({type(error).__name__})"


def _place(images: Sequence[DicomImage]) -> Path:
    """The folder of the files; a single file itself."""
    paths = [image.path for image in images]
    return paths[0] if len(paths) == 1 else Path(os.path.commonpath([path.parent for path in paths]))
