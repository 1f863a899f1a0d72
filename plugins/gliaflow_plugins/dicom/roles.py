"""Which series of a FLAIR series' study are its other sequences: T1, T1 after contrast (t1ce) and T2.

A role is read from the description (``sequences_of``); without one, from AcquisitionContrast or the timing of a spin
echo. What a T1 does not say of contrast itself, ContrastBolusAgent says, unless it may be stated in the whole study. Of
several series with one role, one is taken only if the rules below leave one: a series is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gliaflow_plugins.dicom.doubts import arranged
from gliaflow_plugins.dicom.geometry import affine_of, normal_of
from gliaflow_plugins.dicom.images import DicomImage, DicomSlice
from gliaflow_plugins.image_words import DERIVATIVE, FLAIR, MASK, OTHER, words
from gliaflow_plugins.sequence_names import ANOTHER, DOUBTFUL, SHOWN, sequences_of, states_contrast

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import Candidate

COVERED = 0.5  # of the FLAIR's box: the least that another sequence must cover
SAME_PLANE = 0.94  # cosine of 20° between two normals
POINTS = 9  # along each side of the box
OTHER_IMAGES = {"ADC", "DIFFUSION", "TRACEW", "FA", "SUBTRACTION", "SUB", "MIP", "MINIP", "MIN_IP", "PROJECTION IMAGE"}
OTHER_IMAGES |= {"PERFUSION", "SWI", "P", "R", "I", "PHASE", "PHASE MAP", "PHASE_MAP", "REAL", "IMAGINARY"}
NO_CONTRAST = re.compile(r"loc|survey|calib\w*|b0|epi|asset|shim\w*")  # words of series that are neither T1 nor T2
T1_MS, T2_MS = (1000.0, 30.0), (2000.0, 70.0)  # TR and TE of a spin echo: at most, for T1; at least, for T2


@dataclass(frozen=True)
class Roles:
    """The series with a role beside one FLAIR series.

    Parameters
    ----------
    taken: by sequence. problems: why none is taken, though there are candidates; by sequence.
    doubts: of a series that is taken.
    """

    taken: Mapping[str, Candidate] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_roles(flair: Candidate, others: Sequence[Candidate]) -> Roles:
    """The other sequences of a FLAIR series among the series of its study, as far as the rules want them."""
    taken: dict[str, Candidate] = {}
    problems: dict[str, str] = {}
    doubts: dict[str, tuple[str, ...]] = {}
    if arranged(flair.images, flair.slices)[1]:  # then nothing is sent
        return Roles()
    wanted = flair.rules.sequence_series
    named = {name: [each for each in others if each.is_called(value)] for name, value in wanted.items()}
    given = {id(series[0]) for series in named.values() if len(series) == 1}
    roles = [(each, may_be) for each, may_be in _all_roles(flair, others) if id(each) not in given]
    for name in flair.rules.sequences:
        chosen = named.get(name, [])
        if name in wanted and not chosen:
            problems[name] = f"no series of the study matches --{name} {wanted[name]}"
            continue
        pool = chosen or [each for each, may_be in roles if may_be == (name,)]
        fitting = {id(each): _misfit(flair, each) for each in pool}
        best = [each for each in pool if not fitting[id(each)]]
        if best and not chosen:
            rank = max(_rank(flair, each, name) for each in best)
            best = [each for each in best if _rank(flair, each, name) == rank]
        if same := [other for other, each in taken.items() if each in best and chosen]:
            problems[name] = f"{best[0].shown(False)} is its {SHOWN[same[0]]}, by --{same[0]}"
        elif len(best) == 1:
            taken[name] = best[0]
            doubts[name] = _doubts(flair, best[0])
        elif best:
            options = " or ".join(f"--{name} {each.choice(False)}" for each in best)
            listing = "; ".join(each.shown(False) for each in best)
            problems[name] = f"{len(best)} series may be its {SHOWN[name]}: {listing}. Choose one: {options}"
        elif pool:
            problems[name] = "; ".join(f"{each.shown(False)}: {fitting[id(each)]}" for each in pool)
        elif unclear := [each for each, may_be in roles if len(may_be) > 1 and name in may_be]:
            listing = "; ".join(each.shown(False) for each in unclear)
            problems[name] = f"before or after contrast? The headers do not say it: {listing}. --{name} takes a series"
    return Roles(taken, problems, doubts)


def _all_roles(flair: Candidate, others: Sequence[Candidate]) -> list[tuple[Candidate, tuple[str, ...]]]:
    """The sequences that each series may be, by its own headers and those of the study's other T1."""
    beside = flair.head.description
    roles = [(each, _roles(each, beside)) for each in others]
    stating = {id(each) for each in others if states_contrast(each.head.description, beside)}
    t1s = [(each, may_be) for each, may_be in roles if may_be and may_be != ("t2",)]
    agent = any(each.head.agent for each, _ in t1s)
    none = any(not (each.head.agent or ("t1ce" in may_be and id(each) in stating)) for each, may_be in t1s)

    def by_agent(each: Candidate, may_be: tuple[str, ...]) -> tuple[str, ...]:
        if not may_be or may_be == ("t2",) or id(each) in stating:
            return may_be
        plain = may_be == ("t1",)
        if each.head.agent:
            return ("t1ce",) if none or (plain and len(t1s) == 1) else DOUBTFUL
        return ("t1",) if agent or plain else DOUBTFUL

    return [(each, by_agent(each, may_be)) for each, may_be in roles]


def _roles(each: Candidate, beside: str) -> tuple[str, ...]:
    """The sequences that a series may be: none, one, or both T1. ``beside``: the description of the FLAIR."""
    head = each.head
    if each.never or each.count < each.rules.min_slices or not each.slices or OTHER_IMAGES & {*head.image_type[:4]}:
        return ()
    named = sequences_of(head.description, beside)
    if named == ("t2",) and (each.is_named or each.is_timed):
        return ()
    if not named and (each.not_flair == "" or head.contrast == "FLUID_ATTENUATED"):
        return ()
    if not named and not _says_other(head.description):
        return _by_headers(head, each.echo)
    return named


def _says_other(description: str) -> bool:
    said = words(description)
    return any(each.fullmatch(word) for word in said for each in (FLAIR, OTHER, DERIVATIVE, MASK, ANOTHER, NO_CONTRAST))


def _by_headers(head: DicomImage, echo_ms: float) -> tuple[str, ...]:
    """T1 or T2 of a series whose description says nothing."""
    if head.contrast in ("T1", "T2"):
        return (head.contrast.casefold(),)
    repetition = head.repetition_ms or 0.0
    if head.inversion or "SE" not in head.pulses or {"EP", "GR"} & {*head.pulses} or not (repetition and echo_ms):
        return ()
    if repetition <= T1_MS[0] and echo_ms <= T1_MS[1]:
        return ("t1",)
    return ("t2",) if repetition >= T2_MS[0] and echo_ms >= T2_MS[1] else ()


def _misfit(flair: Candidate, each: Candidate) -> str:
    """Why a series cannot be laid over the FLAIR series; empty: it can."""
    if each.head.patient != flair.head.patient:
        return "another PatientID than the FLAIR series"
    slices, problem = arranged(each.images, each.slices)
    if problem:
        return problem
    share = covered(arranged(flair.images, flair.slices)[0], slices)
    if share >= COVERED:
        return ""
    if each.head.frame_of_reference != flair.head.frame_of_reference:
        return f"another frame of reference than the FLAIR series, and it covers {share:.0%} of that"
    return f"it covers {share:.0%} of the FLAIR series; at least {COVERED:.0%} are needed"


def covered(flair: Sequence[DicomSlice], other: Sequence[DicomSlice]) -> float:
    """The share of the box of one volume that is inside the box of the other. Both are slices in order."""
    shapes = [np.array([each[0].shape[1], each[0].shape[0], len(each)], float) for each in (flair, other)]
    grid = np.meshgrid(*([np.linspace(0, 1, POINTS)] * 3), indexing="ij")
    points = np.stack([axis.ravel() for axis in grid]) * (shapes[0][:, None] - 1)
    to_other = np.linalg.inv(affine_of(other)) @ affine_of(flair)
    places = (to_other @ np.vstack([points, np.ones(points.shape[1])]))[:3]
    return float(((places > -0.5) & (places < shapes[1][:, None] - 0.5)).all(axis=0).mean())


def _rank(flair: Candidate, each: Candidate, name: str) -> tuple[bool, bool, bool, bool]:
    """First comes what the description says, then the FLAIR's frame of reference, then not derived, then its plane."""
    said = sequences_of(each.head.description, flair.head.description) == (name,)
    same_plane = abs(float(normal_of(each.slices[0]) @ normal_of(flair.slices[0]))) >= SAME_PLANE
    return said, each.head.frame_of_reference == flair.head.frame_of_reference, not each.is_derived, same_plane


def _doubts(flair: Candidate, each: Candidate) -> tuple[str, ...]:
    doubts = []
    if each.head.frame_of_reference != flair.head.frame_of_reference:
        doubts.append("another frame of reference than the FLAIR series: did the patient move between them?")
    if not sequences_of(each.head.description) and each.head.contrast not in ("T1", "T2"):
        doubts.append(f"known by its timing alone (TR {each.head.repetition_ms or 0:g} ms, TE {each.echo:g} ms)")
    return tuple(doubts)
