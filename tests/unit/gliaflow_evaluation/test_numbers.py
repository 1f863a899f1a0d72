"""Figures as text."""

import pytest
from gliaflow_evaluation.report.numbers import (
    decimals_of_page,
    decimals_of_values,
    interval,
    number,
    two_digits,
    with_interval,
)
from gliaflow_evaluation.score import Score


@pytest.mark.parametrize(
    ("mean", "ends", "text"),
    [
        (0.61234, (0.55123, 0.67456), "0.61 (0.55–0.67)"),
        (0.61234, (0.60123, 0.62345), "0.612 (0.601–0.623)"),
        (0.61234, (0.2, 1.0), "0.6 (0.2–1.0)"),
        (0.61234, None, "0.61"),
        (0.98765, (0.98765, 0.98765), "0.99 (0.99–0.99)"),
        (None, None, "–"),
    ],
)
def test_figures_have_no_more_digits_than_their_interval_supports(
    mean: float | None, ends: tuple[float, float] | None, text: str
) -> None:
    assert with_interval(Score(mean=mean, ci95=ends, n=9)) == text


def test_changes_have_a_sign_and_nothing_has_a_minus_zero() -> None:
    score = Score(mean=-0.004, ci95=(-0.104, 0.096), n=9)
    assert with_interval(score, signed=True) == "0.00 (−0.10 to +0.10)"
    assert (number(score), interval(score)) == ("0.00", "−0.10 to 0.10")


def test_a_page_has_the_decimals_that_most_of_its_intervals_support_but_at_least_two() -> None:
    def decimals(*halves: float) -> int:
        return decimals_of_page(Score(mean=0.6, ci95=(0.6 - half, 0.6 + half), n=9) for half in halves)

    assert decimals(0.06, 0.1, 0.4) == 2
    assert decimals(0.006, 0.01, 0.1) == 3
    assert decimals(0.4, 0.4) == 2
    assert decimals(0.0) == decimals() == 2


@pytest.mark.parametrize(
    ("values", "decimals"), [([313.4, 54.2], 0), ([2.03, 13.3], 1), ([0.46, 0.8], 2), ([0.00012], 3), ([0.0], 2)]
)
def test_figures_without_intervals_have_two_digits_of_the_smallest_and_at_most_three_decimals(
    values: list[float], decimals: int
) -> None:
    assert decimals_of_values(values) == decimals


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.1111, "0.11"), (67719.2, "68,000"), (-3.14, "−3.1"), (0.0, "0.00")]
)
def test_two_significant_digits(value: float | None, text: str) -> None:
    assert two_digits(value) == text
