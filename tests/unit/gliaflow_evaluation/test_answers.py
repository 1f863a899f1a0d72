"""The answers of a comparator or generator are used again only if nothing that they depend on has changed."""

from dataclasses import replace
from pathlib import Path

from gliaflow_evaluation.answers import answers_file
from gliaflow_evaluation.comparators import COMPARATORS
from small_fold import FOLD, LEVELS, plan_of


def test_a_comparator_that_is_a_generator_is_computed_again_when_its_code_changes(tmp_path: Path) -> None:
    old, new = (plan_of(tmp_path, comparator_code={"smote": code}) for code in ("a", "b"))
    smote, real = COMPARATORS["smote"], COMPARATORS["real"]
    assert answers_file(old, FOLD, 0, smote) != answers_file(new, FOLD, 0, smote)
    assert answers_file(old, FOLD, 0, real) == answers_file(new, FOLD, 0, real)


def test_a_generator_is_fitted_again_when_its_code_or_options_change(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    others = (replace(LEVELS, code="b"), replace(LEVELS, options={"steps": 2}), LEVELS)
    files = [answers_file(plan, FOLD, seed, planned) for seed, planned in zip((0, 0, 1), others, strict=True)]
    assert len({answers_file(plan, FOLD, 0, LEVELS), *files}) == 4
