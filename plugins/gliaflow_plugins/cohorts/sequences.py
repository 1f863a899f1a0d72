"""The other sequences of a FLAIR scan's study, by the names of their files: T1, T1 after contrast (T1ce) and T2.

``P1_t1ce`` belongs to ``P1_flair``: the names differ in the sequence, or in words that describe the series, and in
nothing else. A number in a name may be that of a series, a visit or a patient, so it must be the same. Only in the name
of a folder, ``9_ax_t1`` in a patient's, it is known to be that of a series. What has two candidates is not used, and a
problem names both.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePath

from gliaflow_plugins.cohorts.image_names import (
    INTO,
    PART,
    is_noise,
    is_visit,
    judge_text,
    own_part,
    says_only_its_kind,
    simplicity,
    stem,
)
from gliaflow_plugins.image_words import CACHED, FLAIR, OTHER, words
from gliaflow_plugins.sequence_names import (
    JOINED,
    KINDS,
    SHOWN,
    T1,
    T1CE,
    meaning,
    name_words,
    says_sequence,
)

SERIES = re.compile(r"[1-9]\d{0,3}")  # the number of one
RUN = re.compile(r"(?<![^\W_])run-?\d+(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class Siblings:
    """The other sequences of one FLAIR scan.

    Parameters
    ----------
    files: by sequence. problems: why one is not used, though there are candidates; by sequence.
    passed_over: other versions of a sequence that is used, and that one's file.
    """

    files: Mapping[str, PurePath] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    passed_over: Mapping[PurePath, PurePath] = field(default_factory=dict)


def place_of(path: PurePath) -> PurePath:
    """The folder of a case's images: above ``T1`` of ``P1/T1/image.nii.gz`` and of ``P1/T1/nifti/image.nii.gz``."""
    for up in path.parents[:4]:
        if is_sequence_folder(up.name):
            said = _sequence_in(own_part(path)), _sequence_in(up.name)
            return up.parent if "" in said or said[0] == said[1] else path.parent  # FLAIR in T1: it is a visit's folder
        if not (words(up.name) and all(map(is_noise, words(up.name)))):
            break
    return path.parent


@lru_cache(CACHED)
def _sequence_in(name: str) -> str:
    """FLAIR, T1 (also after contrast) or T2, if the name says one of them alone."""
    if judge_text(name).kind == "FLAIR":
        return "flair"
    said = name_words(name)
    found = {kind[:2] for kind, pattern in KINDS.items() if any(map(pattern.fullmatch, said))}
    return found.pop() if len(found) == 1 else ""


@lru_cache(CACHED)
def is_sequence_folder(name: str) -> bool:
    """Whether a folder is called after a sequence alone: ``FLAIR``, ``3_ax_t1``."""
    return says_only_its_kind(name) and judge_text(name, folder=True).kind in ("FLAIR", "other sequence")


def siblings(flair: PurePath, others: Iterable[PurePath], *, alone: bool) -> Siblings:
    """The other sequences of ``flair`` among the images with the same ``place_of``.

    Parameters
    ----------
    alone: whether no other image there may be a scan. Then the numbers in the names of series' folders may differ.
    """
    place = place_of(flair)
    flair_words = _in_place(flair, place, alone)
    candidates: dict[str, list[tuple[tuple[bool, ...], PurePath]]] = defaultdict(list)
    doubtful = []
    numbered: dict[str, list[PurePath]] = defaultdict(list)
    for path in (path for path in others if path != flair and not PART.search(stem(path))):
        said = _in_place(path, place, alone)
        possible = meaning(tuple(filter(None, map(_without_flair, said))), frozenset(flair_words))
        rank = _rank(said, flair_words)
        if rank is None:
            if _rank(_without_numbers(said), _without_numbers(flair_words)) is not None:
                for sequence in possible:
                    numbered[sequence].append(path)
            continue
        if len(possible) > 1:
            doubtful.append(path)
        for sequence in possible if len(possible) == 1 else ():
            candidates[sequence].append(((*rank, path.parent == flair.parent), path))
    files: dict[str, PurePath] = {}
    problems: dict[str, str] = {}
    passed_over: dict[PurePath, PurePath] = {}
    for sequence, ranked in candidates.items():
        best = max(rank for rank, _ in ranked)
        chosen = _one([path for rank, path in ranked if rank == best])
        if len(chosen) > 1:
            problems[sequence] = f"several files may be its {SHOWN[sequence]}: {_names(chosen)}. {_choice(sequence)}"
        else:
            files[sequence] = chosen[0]
            passed_over |= {path: chosen[0] for _, path in ranked if path != chosen[0]}
    for sequence in ("t1", "t1ce"):
        if doubtful and sequence not in files:
            why = f"before or after contrast? The names do not say it: {_names(doubtful)}. {_choice(sequence)}"
            problems.setdefault(sequence, why)
    for sequence in numbered.keys() - files.keys() - problems.keys():
        why = f"another number than in {flair.relative_to(place)}: of the same visit?"
        listing = ", ".join(str(path.relative_to(place)) for path in numbered[sequence])
        problems[sequence] = f"{listing}: {why} {_choice(sequence)}"
    return Siblings(files, problems, passed_over)


def all_words(path: PurePath) -> tuple[str, ...]:
    """The words of an image's name, sorted."""
    return tuple(sorted(_in_place(path, place_of(path))))


def with_t1_for_t2(flair: PurePath) -> tuple[str, ...]:
    """``all_words`` with t1 for t2; nothing without a t2. If an image has this name too, t1 and t2 may be visits."""
    said = all_words(flair)
    return tuple(sorted("t1" if word == "t2" else word for word in said)) if "t2" in said else ()


def case_words(path: PurePath) -> tuple[str, ...]:
    """The words of an image's name that may identify its case: those that do not describe the series."""
    said = _in_place(path, place_of(path))
    return tuple(sorted(word for word in said if not (says_sequence(word) or _joins(word) or _describes(word))))


def _in_place(path: PurePath, place: PurePath, alone: bool = False) -> list[str]:
    """The words of the name, with the folder below the case's folder; of an only scan, without that folder's number."""
    said = name_words(own_part(path))
    if path.parent == place:
        return said
    inside = name_words(path.relative_to(place).parts[0])
    if alone:
        inside = [word for word in inside if not SERIES.fullmatch(word)]
    return [*inside, *said] if not any(_is_sequence(word) for word in said) else said


def _is_sequence(word: str) -> bool:
    return any(each.fullmatch(word) for each in (FLAIR, OTHER, T1CE, T1))


def _joins(word: str) -> bool:
    """Whether the word says onto what an image was registered."""
    return INTO.fullmatch(word) is not None or FLAIR.fullmatch(word) is not None


def _without_flair(word: str) -> str:
    """The word without what it says of the FLAIR onto which the image was registered."""
    joined = JOINED.fullmatch(word)
    return joined[1] if joined else "" if _joins(word) else word


def _without_numbers(said: Sequence[str]) -> list[str]:
    return [word for word in said if not word.isdecimal()]


def _choice(sequence: str) -> str:
    return f"Name it with --{sequence}, or in a table"


def _rank(said: Sequence[str], flair: Sequence[str]) -> tuple[bool, bool] | None:
    """How surely a name is that of another sequence of the FLAIR's case; None: it is not.

    Registered onto the FLAIR comes first, then a name that differs in the sequence alone.
    """
    joined = any(map(JOINED.fullmatch, said))
    onto = joined or (any(map(FLAIR.fullmatch, said)) and any(map(INTO.fullmatch, said)))
    mine = Counter(said) - Counter(flair)
    its = Counter(flair) - Counter(said)
    rest = [word for word in mine if not says_sequence(word) and not (onto and _joins(word))]
    rest += [word for word in its if not _names_flair(word, flair)]
    if not all(map(_describes, rest)):
        return None
    return onto, not rest


def _names_flair(word: str, flair: Collection[str]) -> bool:
    return FLAIR.fullmatch(word) is not None or word in ("t2", "t2w", "tirm", "tir", "dark", "fluid")


def _describes(word: str) -> bool:
    return is_noise(word) and not is_visit(word)


def _one(paths: Sequence[PurePath]) -> list[PurePath]:
    """One path of one image with several endings, and the first of several runs; else all."""
    images: dict[object, PurePath] = {}
    for path in sorted(paths, key=simplicity, reverse=True):
        images[path.parent, RUN.sub("", stem(path)).casefold()] = path
    return sorted(images.values())


def _names(paths: Sequence[PurePath]) -> str:
    apart = len({path.parent for path in paths}) > 1
    return ", ".join(f"{path.parent.name}/{path.name}" if apart else path.name for path in sorted(paths))
