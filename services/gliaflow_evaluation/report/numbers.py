"""Figures as text, with no more digits than their intervals support."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gliaflow_evaluation.score import Score


def number(score: Score, signed: bool = False, digits: int | None = None) -> str:
    """The mean: ``0.61``; ``–`` where there is none. ``digits``: decimals; None: those that the interval supports."""
    if score.mean is None:
        return "–"
    return fixed(score.mean, decimals(score) if digits is None else digits, signed)


def interval(score: Score, signed: bool = False, digits: int | None = None) -> str:
    """``0.55–0.67``; ``−0.04 to +0.08`` where ``signed`` or an end is negative; empty where there is no interval."""
    if score.ci95 is None:
        return ""
    low, high = (fixed(end, decimals(score) if digits is None else digits, signed) for end in score.ci95)
    return f"{low} to {high}" if signed or score.ci95[0] < 0 else f"{low}–{high}"


def with_interval(score: Score, signed: bool = False) -> str:
    """``0.61 (0.55–0.67)``; ``signed``: ``+0.02 (−0.04 to +0.08)``."""
    ends = interval(score, signed)
    return number(score, signed) + (f" ({ends})" if ends else "")


def two_digits(value: float | None) -> str:
    """Two significant digits, for a figure without an interval."""
    return "–" if value is None else fixed(float(f"{value:.1e}"), decimals_of_values([value]))


def decimals(score: Score) -> int:
    """The Particle Data Group's rule, on half the interval: two digits of an error up to 354, one of a larger one."""
    half = (score.ci95[1] - score.ci95[0]) / 2 if score.ci95 is not None else 0
    return 2 if half <= 0 else max(1, min(3, 2 + math.floor(math.log10(0.355 / half))))


def decimals_of_page(scores: Iterable[Score]) -> int:
    """One number of decimals for many scores: the one that most of their intervals support, but at least two."""
    known = sorted(decimals(score) for score in scores if score.ci95 is not None and score.ci95[0] < score.ci95[1])
    return max(2, known[len(known) // 2]) if known else 2


def decimals_of_values(values: Iterable[float]) -> int:
    """One number of decimals, up to three, that gives the smallest of the values two significant digits."""
    sizes = [abs(value) for value in values if value]
    return max(0, min(3, 1 - math.floor(math.log10(min(sizes))))) if sizes else 2


def fixed(value: float, digits: int, signed: bool = False) -> str:
    """The value with this many decimals and a true minus; never ``−0``."""
    text = f"{abs(value):,.{digits}f}"
    if not text.strip("0.,"):
        return text
    return f"−{text}" if value < 0 else f"+{text}" if signed else text
