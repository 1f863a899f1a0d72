"""What an evaluation's intervals say, in sentences, and figures in no more digits than those intervals support."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gliaflow_evaluation.report.schema import Metrics, Score

FEW = 20  # patients of a class, below which the page warns

ARMS = {
    "real": "real features alone",
    "weights": "class weights",
    "oversample": "oversampling",
    "smote": "SMOTE",
    "gaussian": "class-conditional Gaussian",
    "mixup": "mixup of features",
    "threshold": "real features, line moved",
    "linear": "linear model",
    "size": "tumour size alone",
    "slices": "number of slices alone",
}
SHORTCUTS = ("size", "slices")  # arms that never look at the image


@dataclass(frozen=True)
class Verdict:
    """What the intervals say, in plain text. ``kind``: ``gain``, ``loss``, ``none`` or ``unknown``."""

    kind: str
    sentence: str
    more: tuple[str, ...]
    warnings: tuple[str, ...]


def verdict(metrics: Metrics) -> Verdict:
    """Whether synthetic features helped: the paired difference of balanced accuracy to the best comparator."""
    difference, best = metrics.augmented_minus_best, metrics.best_comparator
    more = []
    if difference is None or difference.balanced_accuracy.mean is None:
        kind, sentence = "unknown", "Whether synthetic features help was not measured."
    elif (ends := difference.balanced_accuracy.ci95) is None:
        change = number(difference.balanced_accuracy, signed=True)
        kind, sentence = "unknown", f"No verdict: balanced accuracy changed by {change}, but no interval is known."
    else:
        score, against = difference.balanced_accuracy, f"the best comparator, {arm_name(best or '')}"
        if ends[0] > 0:
            kind = "gain"
            sentence = (
                f"Synthetic features raised balanced accuracy by {number(score)} "
                f"(95 % interval {_beyond_zero(score)}) over {against}."
            )
        elif ends[1] < 0:
            kind, less = "loss", _negated(score)
            sentence = (
                f"Synthetic features lowered balanced accuracy by {number(less)} "
                f"(95 % interval {_beyond_zero(less)}) against {against}."
            )
        else:
            kind = "none"
            sentence = (
                f"No gain was shown: synthetic features changed balanced accuracy by {number(score, signed=True)} "
                f"against {against} (95 % interval {interval(score, signed=True)}, which includes 0)."
            )
        judged = arm_name(metrics.augmented_arm or "")
        if metrics.augmented_arm in metrics.made.generators:
            judged += ", with as many samples as validation patients chose"
        more.append(f"Judged: {judged}. AUC changed by {changed(difference.auc)}.")
        if best != "real" and metrics.table3 is not None and metrics.table3.difference is not None:
            alone = metrics.table3.difference
            more.append(
                f"Against real features alone: balanced accuracy {changed(alone.balanced_accuracy)}, "
                f"AUC {changed(alone.auc)}."
            )
        if best != "threshold" and metrics.table3 is not None and metrics.table3.beyond_line is not None:
            beyond = metrics.table3.beyond_line.balanced_accuracy
            more.append(f"Against real features with the line between the classes moved alike: {changed(beyond)}.")
    return Verdict(kind, sentence, tuple(more), tuple(_warnings(metrics)))


def number(score: Score, signed: bool = False) -> str:
    """The mean, with no more digits than its interval supports."""
    return "–" if score.mean is None else _fixed(score.mean, _decimals(score), signed)


def interval(score: Score, signed: bool = False) -> str:
    """``0.55–0.67``; ``−0.04 to +0.08`` where an end is negative or ``signed``; empty where it is not known."""
    if score.ci95 is None:
        return ""
    low, high = (_fixed(end, _decimals(score), signed) for end in score.ci95)
    return f"{low} to {high}" if signed or score.ci95[0] < 0 else f"{low}–{high}"


def two_digits(value: float | None) -> str:
    """Two significant digits, for what has no interval."""
    if value is None:
        return "–"
    text = f"{value:#.2g}" if 0.001 <= abs(value) < 10 else f"{float(f'{value:.2g}'):g}"
    return text.replace("-", "−")


def told(score: Score) -> str:
    """``0.61 (0.55–0.67)``."""
    ends = interval(score)
    return number(score) + (f" ({ends})" if ends else "")


def changed(score: Score) -> str:
    """``+0.02 (−0.04 to +0.08)``."""
    ends = interval(score, signed=True)
    return number(score, signed=True) + (f" ({ends})" if ends else "")


def arm_name(name: str) -> str:
    """An arm's name for people; a name that is not known is left as it is."""
    generator, at, count = name.rpartition("@")
    return f"{generator} with {count} synthetic samples" if at else ARMS.get(name, name)


def _decimals(score: Score) -> int:
    """The Particle Data Group's rule, on half the interval: two digits of an error up to 354, one of a larger one."""
    half = (score.ci95[1] - score.ci95[0]) / 2 if score.ci95 is not None else 0
    return 2 if half <= 0 else max(1, min(3, 2 + math.floor(math.log10(0.355 / half))))


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    text = f"{abs(value):.{decimals}f}"
    if not float(text):
        return text
    return f"−{text}" if value < 0 else f"+{text}" if signed else text


def _beyond_zero(score: Score) -> str:
    """The interval of a change for certain: where rounding hides that, in words."""
    assert score.ci95 is not None
    hidden = round(score.ci95[0], _decimals(score)) == 0
    return interval(score) + (", which excludes 0" if hidden else "")


def _negated(score: Score) -> Score:
    assert score.mean is not None
    assert score.ci95 is not None
    return Score(mean=-score.mean, ci95=(-score.ci95[1], -score.ci95[0]), n=score.n)


def _warnings(metrics: Metrics) -> Iterable[str]:
    control, made, arms = metrics.control, metrics.made, metrics.comparators
    if control is None:
        yield "No control with shuffled labels was run: a leak from training to test is not ruled out."
    elif not control.chance_inside:
        yield (
            f"Do not believe these figures: on shuffled labels a classifier is outside chance (real features: balanced "
            f"accuracy {told(control.balanced_accuracy)}, AUC {told(control.auc)}; 0.5 is chance). Something may leak "
            "from training to test; by bad luck alone this is seen in fewer than one run of ten."
        )
    for name, why in made.failed.items():
        yield f"The generator {name} failed and is not compared: {why}"
    if made.cohort.phantoms:
        yield "These patients are phantoms, that is, drawings. Nothing here says anything about people."
    if made.task == "grade":
        few, label = min((made.cohort.patients.get(label, 0), label) for label in made.classes)
        if few < FEW:
            yield (
                f"Only {few} patients of {label}: a single one moves its recall by {two_digits(1 / max(1, few))}, and "
                "intervals from so few are too narrow themselves."
            )
    elif (few := sum(made.cohort.patients.values())) < FEW:
        yield f"Only {few} patients: intervals from so few are too narrow themselves."
    if made.protocol.name == "paper":
        yield "The paper's protocol is one split, so few patients are tested; `grouped` tests every patient."
    augmented = arms.get(metrics.augmented_arm or "")
    if augmented is not None and (ends := augmented.balanced_accuracy.ci95) is not None and ends[0] <= 0.5:
        yield (
            f"The classifier with synthetic features is not shown to be better than chance: balanced accuracy "
            f"{told(augmented.balanced_accuracy)}."
        )
    if metrics.augmented_chosen_on == "test" and augmented is not None:
        yield "The judged arm is the best of several on these same patients, so its figures flatter it."
    real = arms.get("real")
    for name in SHORTCUTS:
        rival = arms.get(name)
        if real is None or rival is None or real.auc.mean is None or rival.auc.mean is None:
            continue
        if rival.auc.mean >= real.auc.mean:
            yield (
                f"{arm_name(name).capitalize()} grades no worse (AUC {told(rival.auc)}) than the features do (AUC "
                f"{told(real.auc)}): the classifier is not shown to know more than that."
            )
