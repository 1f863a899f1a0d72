"""The other sequences of a FLAIR scan's study, by the names of their files: T1, T1 after contrast (T1ce) and T2.

``P1_t1ce`` belongs to ``P1_flair``: the names differ in the sequence alone. In a patient's own folder, the names may
also differ in words that describe the series. What has two candidates is not used, and a problem names both.
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
    names_nothing,
    own_part,
    says_only_its_kind,
    simplicity,
    stem,
)
from gliaflow_plugins.image_words import CACHED, FLAIR, OTHER, words
from gliaflow_plugins.sequence_names import (
    JOINED,
    SHOWN,
    T1,
    T1CE,
    meaning,
    name_words,
    says_sequence,
)

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
            return up.parent
        if not (words(up.name) and all(map(is_noise, words(up.name)))):
            break
    return path.parent


@lru_cache(CACHED)
def is_sequence_folder(name: str) -> bool:
    """Whether a folder is called after a sequence alone: ``FLAIR``, ``3_ax_t1``."""
    return says_only_its_kind(name) and judge_text(name, folder=True).kind in ("FLAIR", "other sequence")


def siblings(flair: PurePath, others: Iterable[PurePath], *, alone: bool) -> Siblings:
    """The other sequences of ``flair`` among the images with the same ``place_of``.

    Parameters
    ----------
    alone: whether it is the only FLAIR scan there, so that numbers in names may be those of series.
    """
    place = place_of(flair)
    flair_words = _in_place(flair, place)
    numbered = alone and not names_nothing(place.name)
    candidates: dict[str, list[tuple[tuple[bool, ...], PurePath]]] = defaultdict(list)
    doubtful = []
    for path in (path for path in others if path != flair):
        said = _in_place(path, place)
        rank = _rank(said, flair_words, numbered)
        if rank is None or PART.search(stem(path)):
            continue
        possible = meaning(tuple(each for each in said if not _joins(each)), frozenset(flair_words))
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
            problems[sequence] = f"several files may be its {SHOWN[sequence]}: {_names(chosen)}"
        else:
            files[sequence] = chosen[0]
            passed_over |= {path: chosen[0] for _, path in ranked if path != chosen[0]}
    for sequence in ("t1", "t1ce"):
        if doubtful and sequence not in files:
            problems.setdefault(sequence, f"before or after contrast? The names do not say it: {_names(doubtful)}")
    return Siblings(files, problems, passed_over)


def case_words(path: PurePath) -> tuple[str, ...]:
    """The words of an image's name that may identify its case: those that do not describe the series."""
    said = _in_place(path, place_of(path))
    return tuple(sorted(word for word in said if not (says_sequence(word) or _joins(word) or _describes(word, False))))


def _in_place(path: PurePath, place: PurePath) -> list[str]:
    """The words of the name, with the folders below the case's folder."""
    said = name_words(own_part(path))
    if path.parent == place:
        return said
    inside = name_words(path.relative_to(place).parts[0])
    return [*inside, *said] if not any(_is_sequence(word) for word in said) else said


def _is_sequence(word: str) -> bool:
    return any(each.fullmatch(word) for each in (FLAIR, OTHER, T1CE, T1))


def _joins(word: str) -> bool:
    """Whether the word says onto what an image was registered."""
    return INTO.fullmatch(word) is not None or FLAIR.fullmatch(word) is not None


def _rank(said: Sequence[str], flair: Sequence[str], numbered: bool) -> tuple[bool, bool] | None:
    """How surely a name is that of another sequence of the FLAIR's case; None: it is not.

    Registered onto the FLAIR comes first, then a name that differs in the sequence alone.
    """
    joined = any(JOINED.fullmatch(word) for word in said)
    onto = joined or (any(map(FLAIR.fullmatch, said)) and any(map(INTO.fullmatch, said)))
    mine = Counter(said) - Counter(flair)
    its = Counter(flair) - Counter(said)
    rest = [word for word in mine if not says_sequence(word) and not (onto and _joins(word))]
    rest += [word for word in its if not _names_flair(word, flair)]
    if not all(_describes(word, numbered) for word in rest):
        return None
    return onto, not rest


def _names_flair(word: str, flair: Collection[str]) -> bool:
    return FLAIR.fullmatch(word) is not None or word in ("t2", "t2w", "tirm", "tir", "dark", "fluid")


def _describes(word: str, numbered: bool) -> bool:
    return (is_noise(word) and not is_visit(word)) or (numbered and word.isdecimal())


def _one(paths: Sequence[PurePath]) -> list[PurePath]:
    """One path of one image with several endings, and the first of several runs; else all."""
    images: dict[object, PurePath] = {}
    for path in sorted(paths, key=simplicity, reverse=True):
        images[path.parent, RUN.sub("", stem(path)).casefold()] = path
    return sorted(images.values())


def _names(paths: Sequence[PurePath]) -> str:
    apart = len({path.parent for path in paths}) > 1
    return ", ".join(f"{path.parent.name}/{path.name}" if apart else path.name for path in sorted(paths))
