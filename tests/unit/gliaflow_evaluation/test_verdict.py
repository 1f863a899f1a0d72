"""The verdict and the warnings: sentences that say what the intervals say."""

from __future__ import annotations

from typing import Any

import pytest
from gliaflow_evaluation.report.schema import Made, Metrics
from gliaflow_evaluation.report.verdict import arm_name, rare_class, verdict
from sample_metrics import changed_at, made_up, nothing_but_arms


@pytest.mark.parametrize(
    ("gain", "kind", "sentence"),
    [
        ((0.06, 0.01, 0.11), "gain", "raised balanced accuracy by 0.06 (95 % interval 0.01–0.11) over the best compar"),
        ((0.06, 0.001, 0.119), "gain", "raised balanced accuracy by 0.06 (95 % interval 0.00–0.12, which excludes 0)"),
        ((-0.06, -0.11, -0.01), "loss", "lowered balanced accuracy by 0.06 (95 % interval 0.01–0.11) against the best"),
        (
            (0.02, -0.04, 0.08),
            "none",
            "No gain was shown: synthetic features changed balanced accuracy by +0.02 against",
        ),
        ((0.04, 0.0, 0.08), "none", "(95 % interval 0.00 to +0.08, which includes 0)"),
    ],
)
def test_the_verdict_says_what_the_interval_says(gain: tuple[float, float, float], kind: str, sentence: str) -> None:
    answer = verdict(Metrics.model_validate(made_up(gain)))
    assert answer.kind == kind
    assert sentence in answer.sentence
    assert "class weights" in answer.sentence
    assert answer.more[0].startswith("Judged: acgan with 400 synthetic samples. AUC changed by ")
    assert answer.more[1].startswith("Against real features alone: balanced accuracy +0.0")
    assert answer.more[2].startswith("Against real features with the threshold moved by the same rule: ")


def test_without_a_generator_there_is_no_verdict() -> None:
    answer = verdict(Metrics.model_validate(nothing_but_arms()))
    assert (answer.kind, answer.sentence) == ("unknown", "Whether synthetic features help was not measured.")
    assert not answer.more


def test_without_an_interval_there_is_no_verdict() -> None:
    values = changed_at("augmented_minus_best.balanced_accuracy", {"mean": 0.02, "ci95": None, "n": 9})
    answer = verdict(Metrics.model_validate(values))
    assert (answer.kind, answer.more) == ("unknown", ())
    assert answer.sentence == "No verdict: balanced accuracy changed by +0.02, but there is no interval."


def test_a_sound_evaluation_has_no_warnings() -> None:
    assert not verdict(Metrics.model_validate(made_up())).warnings


@pytest.mark.parametrize(
    ("path", "value", "warning"),
    [
        ("control.chance_inside", False, "Do not believe these figures"),
        ("control", None, "a leak from training to test is not ruled out"),
        ("made.failed", {"mine": "it crashed"}, "The generator mine failed and is not compared: it crashed"),
        ("made.cohort.patients.LGG", 9, "Only 9 patients of LGG: one patient moves the recall by 0.11"),
        ("made.cohort.phantoms", True, "drawings"),
        ("made.protocol.name", "paper", "one split"),
        ("augmented_chosen_on", "test", "best of several on these same patients"),
        ("comparators.acgan@400.scores.balanced_accuracy.ci95", [0.45, 0.7], "not shown to be better than chance"),
        ("comparators.size.scores.auc.mean", 0.9, "Tumour size alone grades no worse"),
    ],
)
def test_it_warns_of_what_makes_figures_say_less(path: str, value: Any, warning: str) -> None:
    warnings = verdict(Metrics.model_validate(changed_at(path, value))).warnings
    assert len(warnings) == 1
    assert warning in warnings[0]


def test_an_arm_that_is_outside_chance_on_shuffled_labels_is_named() -> None:
    values = changed_at("control.chance_inside", False)
    values["control"]["arms"]["shared"] = values["control"]["scores"] | {
        "auc": {"mean": 0.7, "ci95": [0.6, 0.8], "n": 101}
    }
    (warning,) = verdict(Metrics.model_validate(values)).warnings
    assert "outside chance, 0.5 (covariance shared by the classes, AUC 0.70 (0.60–0.80))." in warning


def test_an_arm_below_chance_on_shuffled_labels_is_no_leak() -> None:
    values = changed_at("control.chance_inside", False)
    values["control"]["arms"]["shared"] = values["control"]["scores"] | {
        "auc": {"mean": 0.2, "ci95": [0.1, 0.4], "n": 24}
    }
    (warning,) = verdict(Metrics.model_validate(values)).warnings
    assert "below chance, 0.5 (covariance shared by the classes, AUC 0.20 (0.10–0.40))" in warning
    assert "Do not believe" not in warning


def test_arms_have_names_for_people() -> None:
    assert arm_name("threshold") == "real features, threshold moved"
    assert arm_name("wgan-gp@100") == "wgan-gp with 100 synthetic samples"
    assert arm_name("wgan-gp") == "wgan-gp"


def test_the_class_of_few_patients_is_the_smaller_grade_or_slices_with_tumour() -> None:
    assert rare_class(Metrics.model_validate(changed_at("made.cohort.patients.LGG", 9))) == "LGG"
    slices = changed_at("made.task", "tumour")
    slices["made"]["classes"] = ["tumour", "none"]
    assert rare_class(Metrics.model_construct(made=Made.model_validate(slices["made"]))) == "tumour"
