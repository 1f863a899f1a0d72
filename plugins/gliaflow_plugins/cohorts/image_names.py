"""What an image's name says: FLAIR, a mask, another sequence or a derivative; and the patient it belongs to.

Every command judges file names here, and nowhere else. Names are read without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePath
from typing import Literal

from gliaflow_plugins.image_words import CACHED, DARK_FLUID, DERIVATIVE, FLAIR, MASK, NOISE, OTHER, WORD, words
from gliaflow_plugins.sequence_names import JOINED

Kind = Literal["FLAIR", "mask", "other sequence", "derivative", "doubtful file", "unknown"]

ENDING = re.compile(r"\.(nii(\.(gz|bz2|xz|zst|zip))?|(hdr|img|mgh)(\.gz)?|mgz|nrrd|nhdr|mha|mhd)$", re.IGNORECASE)
VARIANT = re.compile(r"(^|_)(run|desc|space|res|den|rec)-[^_]+", re.IGNORECASE)  # entities of one BIDS scan's versions
BIDS_PLACE = re.compile(
    r"(^|_)(sub|ses|acq|ce|rec|dir|run|mod|space|res|den|echo|part|hemi|atlas)-[^_]+", re.IGNORECASE
)

# A patient's name may begin with one of these: tumor_001_flair is a FLAIR scan, and flair_tumor is a mask.
WEAK_MASK = re.compile(r"tumou?rs?|lesions?|l(ä|ae)sion(en)?|o?edema|necrosis|enhancing|[gcp]tv|gt|truth")
INTO = re.compile(r"to|2|in|into|on|onto|reg|registered|coreg|warped|aligned")
T1_FLAIR = re.compile(r"t1[a-z]*flair\w*")
SESSION = re.compile(
    r"(ses|session|visit|time|timepoint|tp|followup|follow-up|fu|week|day|month|year)[-_ ]?(\d{1,8}|[a-z])|ses-\w+"
    r"|baseline|bl|fu|follow[-_ ]?up|session|ses|visit|pre-?op|post-?op|pre|post|[vt]\d"
    r"|(\d{4}[-_.]?[01]\d[-_.]?[0-3]\d|[0-3]\d[-_.][0-3]\d[-_.]\d{4})([-_ tT]?\d{6})?"
    r"|hgg|lgg|train(ing)?|val(idation)?|test(ing)?",
    re.IGNORECASE,
)
COPY = re.compile(r" ?\(\d+\)$|[ _-]+(copy|kopie)( ?\(?\d+\)?)?$", re.IGNORECASE)  # of a file, by a file manager
NUMBERED = re.compile(r"(image|img|scan|exam|mri?|mrt|study|vol|volume|series|im|i|slice)?\d+")
DATE = re.compile(r"\d{4}[-_.]?[01]\d[-_.]?[0-3]\d")
PART = re.compile(r"(?:^|_)(part-(?:phase|real|imag))(?=_|$)", re.IGNORECASE)  # BIDS: not a magnitude image
RESULT = re.compile(
    r"gts?|gold([-_ ]?standard)?|truths?|manual|manuals|outputs?|results?|inference|inferred", re.IGNORECASE
)
FOLD = re.compile(r"fold_(\d+|all)", re.IGNORECASE)  # nnU-Net's results: fold_0/validation holds label maps
ANY_SESSION = re.compile(rf"(?<![^\W_])({SESSION.pattern})(?![^\W_])", re.IGNORECASE)
TRAILING_SESSION = re.compile(rf"[-_. ]({SESSION.pattern})$", re.IGNORECASE)


@dataclass(frozen=True)
class NameSays:
    """What a file is, by the word in its name that says it, or for another reason."""

    kind: Kind
    word: str = ""
    reason: str = ""

    @property
    def why(self) -> str:
        """The reason, for a message."""
        return self.reason or f"its name says {self.word}: {_a(self.kind)}"


UNKNOWN = NameSays("unknown")


def _a(kind: Kind) -> str:
    return {"other sequence": "another sequence", "doubtful file": "a visit or another sequence?"}.get(
        kind, f"a {kind}"
    )


def is_image(name: str) -> bool:
    """Whether the name ends as the name of an image does."""
    return ENDING.search(name) is not None


def stem(path: PurePath) -> str:
    """The file's name without the ending of an image."""
    return ENDING.sub("", path.name) or path.name


def own_part(path: PurePath) -> str:
    """The stem without the folder's name in front, which says nothing about the image: ``P_T1/P_T1_flair`` → flair."""
    name, folder = stem(path), path.parent.name
    rest = name[len(folder) :]
    repeated = folder and name.casefold().startswith(folder.casefold()) and not rest[:1].isalnum()
    return rest if repeated and WORD.search(rest) else name


def judge(path: PurePath, root: PurePath | None = None) -> NameSays:
    """What the file's name says, or else the folders between ``root`` and the file, or ``root`` if the file is in it.

    A folder that is called masks says more than a file in it that is called FLAIR.
    """
    own = judge_text(own_part(path))
    folders = list(reversed(path.parent.parts[len(root.parts) :])) if root is not None else []
    if root is not None and path.parent == root and says_only_its_kind(root.name):
        folders.append(root.name)
    if own.kind == "unknown":
        for name, above in pairwise(folders):
            if name.casefold() == "validation" and FOLD.fullmatch(above):
                return NameSays("mask", f"{above}/{name}", f"it is in {above}/{name}: nnU-Net's predictions")
        if own_part(path).strip("-_.").casefold() == "trans" and own_part(path) != stem(path):
            return NameSays("doubtful file", path.name, f"named as MONAI names its results, in {path.parent.name}")
    is_case_folder = own.kind == "FLAIR" and own_part(path) != stem(path)  # a patient may be called scan_as_mask
    for name in folders[is_case_folder:]:
        verdict = judge_text(name, folder=True)
        strong = verdict.kind == "mask" and own.kind == "FLAIR" and MASK.fullmatch(words(name)[-1])
        if strong or (own.kind == "unknown" and verdict.kind != "unknown"):
            return NameSays(verdict.kind, verdict.word, f"it is in {name}: {_a(verdict.kind)}")
    return own


@lru_cache(CACHED)
def judge_text(name: str, *, folder: bool = False) -> NameSays:
    """What a stem or, with ``folder``, a folder's name says."""
    if match := PART.search(name):
        return NameSays("other sequence", match[1])
    if folder and RESULT.fullmatch(name):
        return NameSays("mask", name)
    said = words(BIDS_PLACE.sub("", DARK_FLUID.sub("darkfluid", name)))
    original = {word.casefold(): word for word in WORD.findall(name)}

    def verdict(kind: Kind, *of: str) -> NameSays:
        return NameSays(kind, " and ".join(original.get(word, word) for word in of))

    joined = next((word for word in said if JOINED.fullmatch(word)), None)
    flair = next((n for n, word in enumerate(said) if FLAIR.fullmatch(word)), None)
    mask = next((word for word in said if MASK.fullmatch(word)), None)
    if mask is not None:
        return verdict("mask", mask)
    weak = [] if folder else [n for n, word in enumerate(said) if WEAK_MASK.fullmatch(word)]
    last = max((n for n, word in enumerate(said) if not word.isdecimal()), default=-1)
    if weak and (weak[-1] == last or (flair is not None and not _patient_between(said, weak[-1], flair))):
        return verdict("mask", said[weak[-1]])
    derivative = next((word for word in said if DERIVATIVE.fullmatch(word)), None)
    if derivative is not None:
        return verdict("derivative", derivative)
    others = [n for n, word in enumerate(said) if OTHER.fullmatch(word) or (n and word in ("pd", "fa", "md"))]
    if joined is not None:
        return verdict("other sequence", joined)
    if flair is None:
        return verdict("other sequence", said[others[0]]) if others else UNKNOWN
    if T1_FLAIR.fullmatch(said[flair]):
        return verdict("other sequence", said[flair])
    if not others or _patient_between(said, others[-1], flair):
        return verdict("FLAIR", said[flair])
    first, second = sorted((flair, others[0]))
    if any(INTO.fullmatch(word) for word in said[first + 1 : second]):  # the first is registered to the second
        return verdict("FLAIR" if first == flair else "other sequence", said[first])
    if all(said[n].startswith("t2") and said[n] != "t2star" for n in others):  # T2-FLAIR
        return verdict("FLAIR", said[flair])
    return verdict("doubtful file", said[first], said[second])


def case_key(path: PurePath) -> tuple[str, ...]:
    """What names of one case's images have in common: nothing where the folder alone names the case."""
    name = COPY.sub("", VARIANT.sub("", own_part(path)))
    said = words(DARK_FLUID.sub("darkfluid", name))
    first = next((n for n, word in enumerate(said) if _is_kind(word)), len(said))
    before, after = said[:first], said[first:]
    described = bool(before) and is_noise(before[-1])
    while before and is_noise(before[-1]) and not is_visit(before[-1]):
        before.pop()
    return (*before, *(word for word in after if not _describes(word, described) or is_visit(word)))


def case_place(path: PurePath) -> tuple[str, ...]:
    """Where the images of one case are: in one folder, or in several such as ``orig`` and ``anat`` of one visit."""
    if names_patient(path):
        return path.parent.parts
    _, inside = patient_folder(path)
    outside = path.parent.parts[: len(path.parent.parts) - len(inside)]
    return (*outside, *(each for each in inside if SESSION.fullmatch(each) or not all(map(is_noise, words(each)))))


def simplicity(path: PurePath) -> tuple[int, int, int, int, str]:
    """Sorts the images of one case: the outermost first, then fewest words, the first run, the usual ending."""
    run = re.search(r"run-(\d+)", path.name, re.IGNORECASE)
    ending = path.name[len(stem(path)) :].casefold()
    rank = {".nii.gz": 0, ".nii": 1, ".hdr": 2}.get(ending, 3)
    return (len(path.parts), len(words(stem(path))), int(run[1]) if run else 0, rank, path.name)


def patient_of(path: PurePath) -> str:
    """The patient by the file's name, or else by the nearest folder that is not a visit, a sequence or a date."""
    return name_patient(path) or folder_patient(path) or stem(path)


def folder_patient(path: PurePath) -> str:
    """The patient by the nearest folder that names one."""
    folder = patient_folder(path)[0]
    return _patient_in(folder) or folder


def name_patient(path: PurePath) -> str:
    """The part of the file's own name that names its patient or case, if there is one."""
    return _patient_in(stem(path))


def names_patient(path: PurePath) -> bool:
    """Whether the file's own name has a part that names its patient or case."""
    return bool(name_patient(path))


def name_of(path: PurePath) -> str:
    """The scan's name: the stem; with the folders from the patient's in front if the stem names no patient."""
    if names_patient(path):
        return stem(path)
    return "_".join([*patient_folder(path)[1], stem(path)])


def numbered(path: PurePath) -> bool:
    """Whether the name identifies the scan by a number alone, which another patient's scan may have too."""
    own = [word for word in words(_patient_in(stem(path))) if not is_noise(word)]
    return all(NUMBERED.fullmatch(word) for word in own)


def patient_folder(path: PurePath) -> tuple[str, Sequence[str]]:
    """The name of the patient's folder, and the folders from there to the file; nothing if no folder names one."""
    return _patient_folder(path.parent)


@lru_cache(CACHED)
def _patient_folder(folder: PurePath) -> tuple[str, Sequence[str]]:
    parts = [part for part in folder.parts if part != folder.anchor]
    for number in range(len(parts) - 1, -1, -1):
        if not names_nothing(parts[number]):
            return parts[number], parts[number:]
    return "", ()


@lru_cache(CACHED)
def _patient_in(name: str) -> str:
    """The part of a stem that names a patient: before the sequence's name, or else after it."""
    if match := re.match(r"sub-[^_]+", name, re.IGNORECASE):
        return match[0]
    name = COPY.sub("", DARK_FLUID.sub("darkfluid", name))
    spans = [(match.start(), match.end(), match[0].casefold()) for match in WORD.finditer(name)]
    says = [
        n
        for n, (_, _, word) in enumerate(spans)
        if FLAIR.fullmatch(word) or OTHER.fullmatch(word) or MASK.fullmatch(word)
    ]
    sequence = next((n for n in says if n), 0 if says else len(spans))
    after = spans[sequence + 1 :]
    described = sequence > 0 and is_noise(spans[sequence - 1][2])
    if [word for _, _, word in after] == ["sub"]:  # FLAIR_SUB: a subtraction
        after = []
    while after and _describes(after[0][2], described):
        after = after[1:]
    for part in (spans[:sequence], after):
        text = _without_sessions(name[part[0][0] : part[-1][1]] if part else "")
        if part is after and DATE.match(text) and not re.search(r"[^\W\d_]", text):  # FLAIR_20190105_5
            continue
        if any(not is_noise(word) for word in words(text)):
            return text
    return ""


def _without_sessions(text: str) -> str:
    """The text without words at its end that name a visit, a date or the processing."""
    while True:
        end = WORD.findall(text)[-1:]
        if match := TRAILING_SESSION.search(text):
            text = text[: match.start()]
        elif end and is_noise(end[0].casefold()) and len(text) > len(end[0]):
            text = text[: text.rindex(end[0])].rstrip("-_. ()")
        else:
            return "" if SESSION.fullmatch(text) else text


@lru_cache(CACHED)
def names_nothing(folder: str) -> bool:
    """Whether a folder's name is that of a visit, a sequence or a kind of file, and so names no patient."""
    if folder in ("", ".", "..") or SESSION.fullmatch(folder):
        return True
    said = words(ANY_SESSION.sub(" ", folder))
    numbered_series = len(words(folder)) > 1 or not folder.isdecimal()  # a number alone is a patient's
    if not any(map(_is_kind, said)):  # scan_001 is a patient's, scan1 is a visit's, 301_AX_FLAIR is a series
        numbered_series &= not re.search(r"\d{3}", " ".join(said))
    return all(is_noise(word) or _is_kind(word) or (NUMBERED.fullmatch(word) and numbered_series) for word in said)


def says_only_its_kind(folder: str) -> bool:
    """Whether a folder's name says what the images in it are, and names no patient."""
    said = words(folder)
    return any(map(_is_kind, said)) and all(is_noise(word) or _is_kind(word) or word.isdecimal() for word in said)


def _is_kind(word: str) -> bool:
    return any(kind.fullmatch(word) for kind in (FLAIR, MASK, WEAK_MASK, OTHER, DERIVATIVE))


def is_visit(word: str) -> bool:
    """Whether the word names a visit: baseline, pre."""
    return SESSION.fullmatch(word) is not None and not _is_kind(word)


def is_noise(word: str) -> bool:
    """Whether the word describes a series or its processing, and so names no patient."""
    return NOISE.fullmatch(word) is not None


def _describes(word: str, described: bool) -> bool:
    """Whether a word after the sequence's name belongs to the description, as p2 does in ``ax_flair_p2``."""
    return is_noise(word) or _is_kind(word) or (described and re.fullmatch(r"p[2346]", word) is not None)


def _patient_between(said: list[str], before: int, after: int) -> bool:
    """Whether a word between the two may be a patient's name: ``CT_001_flair``."""
    between = said[before + 1 : after]
    return any(re.search(r"\d", word) and not _is_kind(word) and not is_noise(word) and word != "2" for word in between)
