"""Files whose names do not say what they are: which of them are in doubt, because of the files beside them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from gliaflow_plugins.cohorts.image_names import (
    NameSays,
    case_key,
    is_noise,
    names_patient,
    numbered,
    own_part,
    patient_folder,
    stem,
)
from gliaflow_plugins.image_words import words

CHANNEL = re.compile(r"(.*\d.*)_(000\d)")
SHOWN = 3


def doubts(
    unknown: Sequence[PurePath], flairs: Sequence[PurePath], named: Mapping[PurePath, NameSays]
) -> dict[PurePath, str]:
    """Why each of these files may not be a FLAIR scan; a file without such a reason is missing.

    Parameters
    ----------
    unknown: the files whose names say nothing. flairs: those that are FLAIR scans.
    named: the masks, other sequences and derivatives.
    """
    if not unknown:
        return {}
    flair_in = {path.parent: path for path in reversed(flairs)}
    flair_under = {_patients(path): path for path in reversed(flairs) if _is_of_folder(path)}
    sequences: dict[PurePath, set[str]] = defaultdict(set)
    masks: set[PurePath] = set()
    for path, verdict in named.items():
        if not case_key(path):  # the folder, and not the file's name, says whose image it is
            masks.add(path.parent)
            if verdict.kind == "other sequence":
                sequences[_patients(path)].add(verdict.word)
    stems = {(path.parent, stem(path).casefold()): path for path in unknown}
    channels = _channels(unknown)
    vague: dict[PurePath, dict[PurePath, str]] = defaultdict(dict)  # by folder: the files and their names
    for path in unknown:
        if not names_patient(path) or (path.parent in masks and not _names_case(path)):
            vague[path.parent][path] = path.name
    reasons = {}
    for path in unknown:
        flair = flair_in.get(path.parent) or next((flair_under[up] for up in path.parents if up in flair_under), None)
        whole = _shorter(path, stems)
        beside = sequences.get(_patients(path), ())
        rivals = vague.get(path.parent, {})
        if flair is not None:
            where = "beside it" if flair.parent == path.parent else f"in {flair.parent.name}"
            reasons[path] = f"its name does not say FLAIR, and {flair.name} {where} is the FLAIR scan"
        elif path in channels:
            reasons[path] = "it may be one of several channels (nnU-Net), and no dataset.json says which is FLAIR"
        elif whole is not None:
            reasons[path] = f"its name does not say FLAIR, and {whole.name} is beside it"
        elif beside and not _names_case(path):
            names = ", ".join(sorted(beside)[:SHOWN])
            reasons[path] = f"its name does not say FLAIR, and the files beside it are called {names}"
        elif len(rivals) > 1 and path in rivals:
            names = ", ".join([*rivals.values()][:SHOWN])
            reasons[path] = f"nothing says which of {len(rivals)} files is the FLAIR scan ({names})"
    return reasons


def _patients(path: PurePath) -> PurePath:
    """The patient's folder; the file's own folder if none is."""
    _, inside = patient_folder(path)
    return path.parents[len(inside) - 1] if inside else path.parent


def _is_of_folder(path: PurePath) -> bool:
    """Whether the patient's folder, and not the file's name alone, says whose scan it is: ``P1/3_AX_FLAIR/P1_3``."""
    folder = patient_folder(path)[0]
    repeats = folder not in ("", path.parent.name) and stem(path).casefold().startswith(folder.casefold())
    return repeats or not names_patient(path) or numbered(path)


def _names_case(path: PurePath) -> bool:
    """Whether the file's name identifies a case, as ``P17`` does, and as ``localizer`` or ``image_004`` do not."""
    repeats = stem(path).casefold().startswith(path.parent.name.casefold())
    return any(character.isdigit() for character in own_part(path)) and not numbered(path) and not repeats


def _shorter(path: PurePath, stems: Mapping[tuple[PurePath, str], PurePath]) -> PurePath | None:
    """The file beside, whose name this one's continues: P1 for ``P1_brain``; not for ``P1_2``, which may be a case."""
    name = stem(path).casefold()
    for match in reversed(list(re.finditer(r"[\W_]+", name))):
        rest = words(name[match.end() :])
        other = stems.get((path.parent, name[: match.start()]))
        if other is not None and rest and all(is_noise(word) or not re.search(r"\d", word) for word in rest):
            return other
    return None


def _channels(paths: Sequence[PurePath]) -> set[PurePath]:
    """The files that seem to be nnU-Net's channels: several of a case, from 0000; and the case has a number itself."""
    cases: dict[tuple[PurePath, str], dict[int, PurePath]] = defaultdict(dict)
    for path in paths:
        if match := CHANNEL.fullmatch(stem(path)):
            cases[path.parent, match[1]][int(match[2])] = path
    return {path for files in cases.values() if 0 in files and len(files) > 1 for path in files.values()}
