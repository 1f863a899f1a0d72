"""Which sequence a name or a description means: T1, T1 after contrast (t1ce) or T2. In doubt, it has two meanings."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from gliaflow_proto import SEQUENCES

from gliaflow_plugins.image_words import CACHED, DARK_FLUID, DERIVATIVE, FLAIR, MASK, NOISE, OTHER, words

JOINED = re.compile(r"(t[12][a-z]{0,3}|adc|dwi|swi|ct|pet)(to|2|in|on|reg)flair\w*")  # T1toFLAIR is a T1 image
OTHERS = SEQUENCES[1:]
SHOWN = {"t1": "T1", "t1ce": "T1 after contrast", "t2": "T2"}
DOUBTFUL = ("t1", "t1ce")

_AGENT = (  # whole words: GD001 and Gaddis are names
    r"gd(c|pa|dtpa|bopta)?|gad(o|ol|ovist|avist|olin\w*|obutrol|oter\w*|odiamide?|oben\w*|opent\w*|oxet\w*)?|km"
    r"|[ck]ontr(ast(e|o|s|u|ed|mittel|medium|enhanced)?)?"
)
_PLANE = r"ax(ial)?|sag|cor|tra"
T1 = re.compile(
    rf"(3d|fs|s|e)?t1(w|wi|n|weighted|{_PLANE}|pre(c|{_AGENT})?|nativ\w*|tse|fse|se|fl[23]d|mprage|mpr|space|vibe)?"
    r"|mprage|bravo"
)
T1CE = re.compile(rf"(3d|fs|s|e)?t1(w|wi|weighted)?(c|ce|cm|enh(anced)?|{_AGENT}|post(c|{_AGENT})?)")
T2 = re.compile(rf"(3d|fs|s|e)?t2(w|wi|weighted|{_PLANE}|tse|fse|se|blade|propeller|space)?")
KINDS = {"t1": T1, "t1ce": T1CE, "t2": T2}
AGENT = re.compile(
    rf"c|ce|cm|{_AGENT}|gbca|dotarem|magnevist|prohance|omniscan|clariscan|enh(anced)?|mdc|inj(ect(ed|ion|ee?|ée?)?)?|iv|civ|plus"
)
AFTER = re.compile(rf"(post|nach)(c|{_AGENT})?|after|dopo|apr[eè]s|despu[eé]s|depois|efter|etter")
BEFORE = re.compile(
    rf"pre(c|{_AGENT})?|nativ\w*|un?enh(anced)?|non?({_AGENT}|enhanced)?|without|wo|woc|nc|ohne|sans|plain|vor|vorher|before|sin|senza"
    r"|zonder|avant|prior|prima|antes|minus|neg|bez|uten|utan"
)
WITH, WITHOUT = {"w", "with", "mit"}, {"wo", "without", "ohne", "woc"}
BESIDE = re.compile(r"w|weighted|with|mit")
ANOTHER = re.compile(
    r"sub(s|t|s?tr\w*)?|soustr\w*|diff\w*|dyn\w*|star|rho|mapping|ir|tirm?|flr|inv\d?|ratio|synth\w*|rms|phase|pd|fa|md|map"
    r"|\w*spine|[hbl]ws|orbits?|neck|iacs?|pituitary|sella"
)
T1_PULSES = re.compile(r"f?spgr|gre|flash|vibe")  # with T1 in front; alone they may be anything
ORDINARY = re.compile(  # in a description of T1, as the words of NOISE: it does not say whether there was contrast
    r"transv(ersal)?|axiale?|[ck]oronale?|sagittale?|fl[23]d\d?|spc\d?|tfl(3d)?|turbo|ffe|tfe|fgre|lava|thrive|caipi|asset|arc|ipat|mtc?|dl"
    r"|recon(struction)?|reformat(ted)?|routine|standard|thin|slices?|mm|cm|(p|i|s|v|q|te|tr|ti|tse|fov|acc)?\d+(mm|cm|sl|t)?|\d+x\d+\w*"
    r"|whole|neuro|cranial|cerebral|kopf|gehirn|sch(ä|ae)del|cr[aâ]ne|cr[aá]neo|enc[eé]falo|cerveau|tumou?r|glioma|protocol|stealth"
    r"|navi(gation)?|brainlab|repeat|again|volumetric|preop|postop|avec|met|med"
)
ENTITY = re.compile(r"(?<![^_])(acq|rec|run|echo|space|desc|res|den|mod)-([^_]+)", re.IGNORECASE)  # of BIDS
PLACE = re.compile(r"(?<![^_])(sub|ses)-(?=[^_])", re.IGNORECASE)  # of BIDS: a label says nothing about the sequence
DESCRIPTION_BEFORE = re.compile(r"\bw/o\b|(?<=\s)-(c|gd|gad|km)\b|\b(c|gd|gad|km)-(?=\s|$)", re.IGNORECASE)
PLUS = re.compile(rf"\+(?=\s*($|/|(c|k|ce|iv|{_AGENT})(?![^\W_])))", re.IGNORECASE)
POST_OPERATION = re.compile(r"(pre|post)[-_ ]?op(erative|erativ)?(?![^\W_])", re.IGNORECASE)


def sequences_of(text: str, beside: str = "") -> tuple[str, ...]:
    """The sequences that the description of a series may mean: none, one, or T1 before and after contrast.

    A word of a T1's description that is in no list here may be "without" in another language: then it may be both.

    ``beside``: the description of the FLAIR. A word that is in both, such as the name of a protocol, is ignored.
    """
    if re.search(r"t[12]\*", text, re.IGNORECASE):  # T2*, a gradient echo
        return ()
    said, shared = _description_words(text), frozenset(_description_words(beside))
    if any(map(FLAIR.fullmatch, said)) and not any(map(T1.fullmatch, said)):  # T2-FLAIR
        return ()
    found = meaning(said, shared)
    own = [word for word in said if word not in shared]
    is_said = any(each.fullmatch(word) for word in own for each in (BEFORE, AFTER, T1CE))
    unknown = not is_said and not all(says_sequence(word) or _is_ordinary(word) for word in own)
    return DOUBTFUL if unknown and found[:1] in (DOUBTFUL[:1], DOUBTFUL[1:]) else found


def states_contrast(text: str, beside: str = "") -> bool:
    """Whether the description of a T1 itself says that it was made before or after contrast; as ``sequences_of``."""
    shared = _description_words(beside)
    own = [word for word in _description_words(text) if word not in shared]
    return sequences_of(text, beside)[:1] in (DOUBTFUL[:1], DOUBTFUL[1:]) and bool(_by_contrast(own))


def is_sequence_name(text: str) -> bool:
    """Whether a text, the name of a column say, names a sequence and nothing else."""
    return all(map(says_sequence, words(text)))


def name_words(name: str) -> list[str]:
    """The words of a name. Of the entities of BIDS that only describe a series, those that say its sequence."""
    plain = POST_OPERATION.sub(r"\1op", PLUS.sub(" plus ", DARK_FLUID.sub("darkfluid", name)))
    return words(ENTITY.sub(lambda entity: " ".join(filter(says_sequence, words(entity[2]))), PLACE.sub(r"\1", plain)))


def _description_words(text: str) -> tuple[str, ...]:
    return tuple(name_words(DESCRIPTION_BEFORE.sub(" without ", re.sub(r"^sub-[^_]+", "", text))))


@lru_cache(CACHED)
def meaning(said: tuple[str, ...], shared: frozenset[str]) -> tuple[str, ...]:
    """The sequences that the words of a name may mean. ``shared``: words that the FLAIR's name has too.

    What only shared words say of contrast may be said of a visit or a patient: then it may be both.
    """
    kinds = {kind for kind, pattern in KINDS.items() if any(map(pattern.fullmatch, said))}
    if len(kinds) != 1:  # none, or a visit that is called t1
        return ()
    (kind,) = kinds
    known = [*KINDS.values(), *([T1_PULSES, BEFORE] if kind != "t2" else [])]
    for word in said:
        if word in shared or any(each.fullmatch(word) for each in known):
            continue
        if any(each.fullmatch(word) for each in (ANOTHER, DERIVATIVE, MASK, OTHER)):
            return ()
    if kind == "t2":
        return ("t2",)
    if own := _by_contrast([word for word in said if word not in shared]):
        return own
    return DOUBTFUL if "t1ce" in _by_contrast(said) else ("t1",)


def _by_contrast(said: Collection[str]) -> tuple[str, ...]:
    """What the words of a T1 say of contrast: nothing, before, after, or both."""
    before = any(BEFORE.fullmatch(word) or (T1.fullmatch(word) and re.search("pre|nativ", word)) for word in said)
    after = any(AFTER.fullmatch(word) or T1CE.fullmatch(word) for word in said) or bool(
        WITH & {*said} and WITHOUT & {*said}
    )
    if before:
        return DOUBTFUL if after else ("t1",)
    return ("t1ce",) if after or any(map(AGENT.fullmatch, said)) else ()


def says_sequence(word: str) -> bool:
    """Whether a word of a name says its sequence, or whether it was made before or after contrast."""
    return any(each.fullmatch(word) for each in (T1, T1CE, T2, AGENT, AFTER, BEFORE, JOINED, BESIDE))


def _is_ordinary(word: str) -> bool:
    return any(each.fullmatch(word) for each in (NOISE, ORDINARY, T1_PULSES, FLAIR))
