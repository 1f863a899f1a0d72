"""Which sequence a name or a description means: T1, T1 after contrast (t1ce) or T2. In doubt, it has two meanings."""

from __future__ import annotations

import re
from functools import lru_cache

from gliaflow_proto import SEQUENCES

from gliaflow_plugins.image_words import CACHED, DARK_FLUID, DERIVATIVE, FLAIR, MASK, OTHER, words

JOINED = re.compile(r"(t[12][a-z]{0,3}|adc|dwi|swi|ct|pet)(to|2|in|on|reg)flair\w*")  # T1toFLAIR is a T1 image
OTHERS = SEQUENCES[1:]
SHOWN = {"t1": "T1", "t1ce": "T1 after contrast", "t2": "T2"}

_PLANE = r"ax(ial)?|sag|cor|tra"
T1 = re.compile(
    rf"(3d|fs|s|e)?t1(w|wi|n|weighted|{_PLANE}|pre(gd|gad\w*|con\w*|c|km)?|nativ\w*|tse|fse|se|fl[23]d|mprage|mpr|space|vibe)?"
    r"|mprage|bravo"
)
T1CE = re.compile(
    r"(3d|fs|s|e)?t1(w|wi|weighted)?(c|ce|cm|gd\w*|gad\w*|post(gd|gad\w*|con\w*|c|km)?|contrast\w*|km|enh\w*)"
)
T2 = re.compile(rf"(3d|fs|s|e)?t2(w|wi|weighted|{_PLANE}|tse|fse|se|blade|propeller|space)?")
AFTER = re.compile(r"ce|cm|gd\w*|gad\w*|gbca|dotarem|magnevist|prohance|omniscan|clariscan|contrast\w*|km|enhanced")
AFTER_POST = re.compile(r"(post|nach)(gd|gad\w*|con\w*|c|km)")
BEFORE = re.compile(
    r"pre(gd|gad\w*|con\w*|c|km)|nativ\w*|un?enhanced|non?(contrast|gd|gad|enhanced)?|without|wo|woc|nc|ohne|sans|plain"
)
# Each may also name a visit: before or after surgery. ``c`` may be a part of a patient's name.
POST, PRE, LETTER = "post", "pre", "c"
BESIDE = re.compile(rf"{POST}|{PRE}|{LETTER}|w|weighted|with|mit")
ANOTHER = re.compile(
    r"sub(tr\w*)?|diff\w*|dyn\w*|star|rho|mapping|ir|inv\d?|ratio|synth\w*|rms|phase|pd|fa|md|map"
    r"|\w*spine|[hbl]ws|orbits?|neck|iacs?|pituitary|sella"
)
T1_PULSES = re.compile(r"f?spgr|gre|flash|vibe")  # with T1 in front; alone they may be anything
ENTITY = re.compile(r"(?<![^_])(acq|rec|run|echo|space|desc|res|den|mod)-([^_]+)", re.IGNORECASE)  # of BIDS
DESCRIPTION_BEFORE = re.compile(r"\bw/o\b|(?<=\s)-(c|gd|gad|km)\b|\b(c|gd|gad|km)-(?=\s|$)", re.IGNORECASE)
POST_OPERATION = re.compile(r"(pre|post)[-_ ]?op(erative|erativ)?(?![^\W_])", re.IGNORECASE)


def sequences_of(text: str) -> tuple[str, ...]:
    """The sequences that a name or the description of a series may mean: none, one, or T1 before and after contrast."""
    if re.search(r"t[12]\*", text, re.IGNORECASE):  # T2*, a gradient echo
        return ()
    said = name_words(re.sub(r"^sub-[^_]+", "", text))  # of BIDS, and no subtraction
    if any(map(FLAIR.fullmatch, said)) and not any(map(T1.fullmatch, said)):  # T2-FLAIR
        return ()
    found = meaning(tuple(said), frozenset())
    return ("t1",) if found and found[0] != "t2" and DESCRIPTION_BEFORE.search(text) else found


def is_sequence_name(text: str) -> bool:
    """Whether a text, the name of a column say, names a sequence and nothing else."""
    return all(map(says_sequence, words(text)))


def says_before_contrast(text: str) -> bool:
    """Whether a description of T1 says that it was made before contrast, or without."""
    said = name_words(text)
    return bool(DESCRIPTION_BEFORE.search(text)) or any(BEFORE.fullmatch(word) or word == PRE for word in said)


def name_words(name: str) -> list[str]:
    """The words of a name. Of the entities of BIDS that only describe a series, those that say its sequence."""
    plain = POST_OPERATION.sub(r"\1op", DARK_FLUID.sub("darkfluid", name))
    return words(ENTITY.sub(lambda entity: " ".join(filter(says_sequence, words(entity[2]))), plain))


@lru_cache(CACHED)
def meaning(said: tuple[str, ...], shared: frozenset[str]) -> tuple[str, ...]:
    """As ``sequences_of``, of words. ``shared``: words that the FLAIR's name has too."""
    t1 = [word for word in said if T1.fullmatch(word)]
    t1ce = [word for word in said if T1CE.fullmatch(word)]
    t2 = [word for word in said if T2.fullmatch(word)]
    known = {*t1, *t1ce, *t2, *(word for word in said if (t1 or t1ce) and T1_PULSES.fullmatch(word))}
    if any(
        ANOTHER.fullmatch(word) or DERIVATIVE.fullmatch(word) or MASK.fullmatch(word) or OTHER.fullmatch(word)
        for word in said
        if word not in known and word not in shared
    ):
        return ()
    if t2:
        return () if t1 or t1ce else ("t2",)
    if t1ce:
        return ("t1ce",)
    if not t1:
        return ()
    visits = {POST, PRE, LETTER} & shared & {*said}
    own = [word for word in said if word not in visits]
    before = any(BEFORE.fullmatch(word) for word in own) or PRE in own or any("pre" in w or "nativ" in w for w in t1)
    after = any(AFTER_POST.fullmatch(word) for word in own) or POST in own
    if before and after:
        return ("t1", "t1ce")
    if before:
        return ("t1",)
    if after or LETTER in own or any(AFTER.fullmatch(word) for word in own):
        return ("t1ce",)
    return ("t1", "t1ce") if visits - {PRE, LETTER} else ("t1",)


def says_sequence(word: str) -> bool:
    """Whether a word of a name says its sequence, or whether it was made before or after contrast."""
    return any(each.fullmatch(word) for each in (T1, T1CE, T2, AFTER, AFTER_POST, BEFORE, JOINED, BESIDE))
