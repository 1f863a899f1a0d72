"""What an evaluation's intervals say, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gliaflow_evaluation.comparators import COMPARATORS, comparators
from gliaflow_evaluation.measures import AGAINST_CHANCE, MEASURES, chance_inside
from gliaflow_evaluation.report.numbers import decimals, interval, number, two_digits, with_interval
from gliaflow_evaluation.report.schema import Control, Metrics, Scarce
from gliaflow_evaluation.score import Score

FEW = 20  # patients of a class, below which the page warns


@dataclass(frozen=True)
class Verdict:
    """What the intervals say, in plain text. ``kind``: ``gain``, ``loss``, ``none`` or ``unknown``."""

    kind: str
    sentence: str
    more: tuple[str, ...]
    warnings: tuple[str, ...]


def verdict(metrics: Metrics) -> Verdict:
    """Whether synthetic features helped: the paired difference of balanced accuracy to the best comparator."""
    kind, sentence = _answer(metrics)
    return Verdict(kind, sentence, tuple(_details(metrics)), tuple(_warnings(metrics)))


def arm_name(name: str) -> str:
    """An arm's name for people; a name that is not known stays as it is."""
    generator, at, count = name.rpartition("@")
    if at:
        return f"{generator} with {count} synthetic samples"
    return COMPARATORS[name].title if name in COMPARATORS else name


def _answer(metrics: Metrics) -> tuple[str, str]:
    score = metrics.augmented_minus_best["balanced_accuracy"] if metrics.augmented_minus_best is not None else None
    if score is None or score.mean is None:
        return "unknown", "Whether synthetic features help was not measured."
    change = number(score, signed=True)
    if score.ci95 is None:
        return "unknown", f"No verdict: balanced accuracy changed by {change}, but there is no interval."
    best = f"the best comparator, {arm_name(metrics.best_comparator or '')}"
    low, high = score.ci95
    if low > 0:
        ends = f"(95 % interval {_beyond_zero(score)})"
        return "gain", f"Synthetic features raised balanced accuracy by {number(score)} {ends} over {best}."
    if high < 0:
        less = Score(mean=-score.mean, ci95=(-high, -low), n=score.n)
        ends = f"(95 % interval {_beyond_zero(less)})"
        return "loss", f"Synthetic features lowered balanced accuracy by {number(less)} {ends} against {best}."
    return "none", (
        f"No gain was shown: synthetic features changed balanced accuracy by {change} against {best} "
        f"(95 % interval {interval(score, signed=True)}, which includes 0)."
    )


def _beyond_zero(score: Score) -> str:
    """An interval that excludes 0; says so in words where rounding hides it."""
    assert score.ci95 is not None
    hidden = round(score.ci95[0], decimals(score)) == 0
    return interval(score) + (", which excludes 0" if hidden else "")


LENT = " This holds only if it learned from none of these patients, which the control cannot show."


def _details(metrics: Metrics) -> Iterator[str]:
    yield from _of_the_verdict(metrics)
    for name in comparators("carried", "lent"):
        if (against := metrics.against_best_auc.get(name)) is not None:
            change = with_interval(against.minus_best["auc"], signed=True)
            best = arm_name(against.best_comparator)
            yield (
                f"Without synthetic features, {arm_name(name)}: AUC changed by {change} against {best}, the best "
                f"comparator on these same patients.{LENT if name in comparators('lent') else ''}"
            )
    yield from _by_auc(metrics.augmented_arm, metrics, "")
    for point in metrics.scarce or []:
        yield from _by_auc(
            point.augmented_arm, point, f"With {point.rare_patients} {rare_class(metrics)} patients to fit on: "
        )


def rare_class(metrics: Metrics) -> str:
    """The name of the class that is thinned (``protocol.rare_class``)."""
    classes, patients = metrics.made.classes, metrics.made.cohort.patients
    return classes[0] if metrics.made.task == "tumour" else min(classes, key=lambda name: patients.get(name, 0))


def _by_auc(judged: str | None, point: Metrics | Scarce, prefix: str) -> Iterator[str]:
    """The judged generator against the best of both kinds of arms; nothing where no other patients' labels are."""
    own, others = (of.get(judged or "") for of in (point.against_best_auc, point.against_others_auc))
    if judged is not None and own is not None and others is not None:
        yield (
            f"{prefix}{arm_name(judged)} changed AUC by {with_interval(own.minus_best['auc'], signed=True)} against "
            f"{arm_name(own.best_comparator)}, the best comparator on these same patients, and by "
            f"{with_interval(others.minus_best['auc'], signed=True)} against {arm_name(others.best_comparator)}, the "
            "best that other patients' labels taught."
        )


def _of_the_verdict(metrics: Metrics) -> Iterator[str]:
    difference, best, table = metrics.augmented_minus_best, metrics.best_comparator, metrics.table3
    if difference is None or difference["balanced_accuracy"].ci95 is None:
        return
    judged = arm_name(metrics.augmented_arm or "")
    if metrics.augmented_arm in metrics.made.generators:
        judged += ", with as many samples as validation patients chose"
    yield f"Judged: {judged}. AUC changed by {with_interval(difference['auc'], signed=True)}."
    alone = metrics.comparators[metrics.augmented_arm].difference if metrics.augmented_arm is not None else None
    if best != "real" and alone is not None:
        changes = [f"{MEASURES[name].title} {with_interval(alone[name], signed=True)}" for name in AGAINST_CHANCE]
        yield f"Against real features alone: {', '.join(changes)}."
    if best != "threshold" and table is not None and table.beyond_threshold is not None:
        beyond = with_interval(table.beyond_threshold["balanced_accuracy"], signed=True)
        yield f"Against real features with the threshold moved by the same rule: {beyond}."


def _warnings(metrics: Metrics) -> Iterator[str]:
    control, made = metrics.control, metrics.made
    if control is None:
        yield "No control with shuffled labels was run: a leak from training to test is not ruled out."
    elif not control.chance_inside:
        yield _outside_chance(control)
    for leak in made.cohort.leaks:
        yield f"Do not believe these figures: a leak was allowed (--allow): {leak}."
    for name, why in made.failed.items():
        yield f"The generator {name} failed and is not compared: {why}"
    if made.cohort.phantoms:
        yield "These patients are phantoms, that is, drawings. No figure here says anything about people."
    yield from _few_patients(metrics)
    if made.protocol.name == "paper":
        yield "The paper's protocol is one split, so few patients are tested; `grouped` tests every patient."
    yield from _flattered(metrics)
    yield from _shortcuts(metrics)


def _outside_chance(control: Control) -> str:
    outside = {
        f"{arm_name(arm)}, {MEASURES[name].title} {with_interval(scores[name])}": scores[name]
        for arm, scores in {"real": control.scores, **control.arms}.items()
        for name in AGAINST_CHANCE
        if not chance_inside(scores[name], MEASURES[name].chance)
    }
    if outside and all(score.ci95 is not None and score.ci95[1] < 0.5 for score in outside.values()):
        return (
            f"On shuffled labels an arm is below chance, 0.5 ({'; '.join(outside)}). A leak from training to test "
            "would raise it. An unlucky shuffle lowers it, and so do few patients: shuffled grades have equal shares "
            "of the true ones, so those who are tested have what the others lack."
        )
    return (
        f"Do not believe these figures: on shuffled labels an arm is outside chance, 0.5 ({'; '.join(outside)}). "
        "Information may leak from training to test. Bad luck alone does this too, the more often the more arms there "
        "are and the fewer patients: another --seed draws other folds, in which a leak stays."
    )


def _few_patients(metrics: Metrics) -> Iterator[str]:
    made, narrow = metrics.made, "intervals from so few are too narrow"
    if made.task == "tumour":
        few, of = sum(made.cohort.patients.values()), ""
    else:
        few, label = min((made.cohort.patients.get(label, 0), label) for label in made.classes)
        of, narrow = f" of {label}", f"one patient moves the recall by {two_digits(1 / max(1, few))}, and {narrow}"
    if few < FEW:
        yield f"Only {few} patients{of}: {narrow}."


def _flattered(metrics: Metrics) -> Iterator[str]:
    judged = metrics.comparators.get(metrics.augmented_arm or "")
    if judged is None:
        return
    score = judged.scores["balanced_accuracy"]
    if score.ci95 is not None and score.ci95[0] <= 0.5:
        yield (
            f"The classifier with synthetic features is not shown to be better than chance: balanced accuracy "
            f"{with_interval(score)}."
        )
    if metrics.augmented_chosen_on == "test":
        yield "The judged arm is the best of several on these same patients, so its figures flatter it."


def _shortcuts(metrics: Metrics) -> Iterator[str]:
    arms = metrics.comparators
    for name in comparators("shortcut"):
        if name not in arms or "real" not in arms:
            continue
        rival, real = arms[name].scores["auc"], arms["real"].scores["auc"]
        if rival.mean is not None and real.mean is not None and rival.mean >= real.mean:
            yield (
                f"{arm_name(name).capitalize()} grades no worse (AUC {with_interval(rival)}) than the features do (AUC "
                f"{with_interval(real)}): the classifier is not shown to know more than that."
            )
