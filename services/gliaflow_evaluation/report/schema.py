"""``metrics.json``, what ``gliaflow evaluate`` measured: the one definition of its keys.

It is checked before it is written and after it is read. The tables in docs/evaluation.md are printed from here:
``python -m gliaflow_evaluation.report.schema``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from inspect import cleandoc, get_annotations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

SCHEMA: Literal["gliaflow-evaluation/1"] = "gliaflow-evaluation/1"


class MetricsError(ValueError):
    """A ``metrics.json`` that cannot be used. The text names the file and the field."""


class Part(BaseModel):
    """Base of every part. Numbers may be numpy's; NaN, which JSON has not, becomes null: it could not be measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return _plain(data)


class Score(Part):
    """A measure with what is known of its error."""

    mean: float | None = Field(description="null: it could not be measured")
    ci95: tuple[float, float] | None = Field(description="95 % interval by bootstrap over patients: low, high")
    n: int = Field(ge=0, description="patients, or slices in the task `tumour`; slices or samples where said")

    @field_validator("ci95", mode="before")
    @classmethod
    def _whole(cls, ends: Any) -> Any:
        return None if ends is not None and None in ends else ends

    @field_validator("ci95")
    @classmethod
    def _in_order(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError(f"the interval ends before it begins: {ends}")
        return ends


class CohortMade(Part):
    """The patients."""

    folder: str = Field(description="name of the folder, without its path")
    layout: str = Field(description="the reader that knew it, and how")
    patients: dict[str, int] = Field(description="of each class: how many could be used")
    slices: int = Field(ge=0, description="slices of all patients")
    high: list[str | int] = Field(description="the grades that count as HGG; empty where the folder says HGG or LGG")
    phantoms: bool = Field(default=False, description="they are drawings, made by `gliaflow phantom`")


class Protocol(Part):
    """How patients were split."""

    name: Literal["grouped", "paper"] = Field(
        description="`grouped`: folds by patient, stratified by class; `paper`: the paper's one split"
    )
    folds: int = Field(ge=1, description="folds of each repeat; 1 is one split")
    repeats: int = Field(ge=1, description="how often the patients were dealt anew")
    seeds: list[int] = Field(description="of all that is drawn")


class Made(Part):
    """How the figures were made."""

    command: str = Field(description="the exact command")
    date: str = Field(description="ISO 8601")
    seconds: float = Field(ge=0, description="that it took")
    versions: dict[str, str] = Field(description="of python and of each library")
    profile: dict[str, Any] = Field(description="sizes and settings of the networks")
    device: str = Field(description="`cpu` or `cuda`, with the model's name")
    cohort: CohortMade = Field(description="the patients")
    protocol: Protocol = Field(description="how they were split")
    task: Literal["grade", "tumour"] = Field(
        description="`grade`: HGG or LGG; `tumour`: slices with tumour or without, for cohorts of one grade"
    )
    classes: tuple[str, str] = Field(description="their names; the first is the positive one")
    tap: str = Field(description="where in the U-Net features are read")
    shape: tuple[int, int, int] = Field(description="of a feature: C, H, W")
    generators: list[str] = Field(description="the variants")
    failed: dict[str, str] = Field(default={}, description="variants that raised, with what they said; not compared")
    counts: list[int] = Field(description="synthetic samples added to the real ones; the rare class first")
    init: str | None = Field(description="the bundle that the U-Net started from; null: from nothing")
    unet: str | None = Field(default=None, description="the bundle whose U-Net was used as it is; null: it was fitted")


class SegmentationScores(Part):
    """A row of Table 2, over the slices of one part; each score's `n` counts slices."""

    soft_dice_loss: Score = Field(description="Eq. 3; lower is better")
    hard_dice: Score = Field(description="Eq. 4")
    iou: Score = Field(description="Eq. 5")


class PatientDice(Part):
    """One test patient."""

    patient: str = Field(description="its name in the cohort")
    fold: int = Field(ge=0, description="in which it was tested")
    dice: float = Field(ge=0, le=1, description="over all its slices")


class PatientsDice(Part):
    """Dice by test patient."""

    dice: Score = Field(description="mean")
    dice_median: float | None = Field(description="median")
    per_patient: list[PatientDice] = Field(description="each patient")


class Table2(Part):
    """Segmentation, as the paper's Table 2, and what it lacks: patients never seen."""

    train: SegmentationScores = Field(description="patients that the U-Net was fitted on")
    validation: SegmentationScores = Field(description="patients that chose its epoch")
    test: SegmentationScores = Field(description="patients that it was not shown")
    test_patients: PatientsDice = Field(description="the same patients, one by one")


class Row(Part):
    """What one arm reached on the test patients."""

    arm: str = Field(description="its name")
    slices: dict[str, Score] = Field(
        description="accuracy over slices, of each class and `total`, as in the paper; `n` counts slices; "
        "empty for an arm that grades no slices"
    )
    balanced_accuracy: Score = Field(description="mean recall of the classes; 0.5 is chance")
    auc: Score = Field(description="area under the ROC curve; 0.5 is chance")
    recall: dict[str, Score] = Field(description="of each class")
    brier: Score | None = Field(description="mean squared error of the probability; lower is better")


class Difference(Part):
    """A difference of two arms, paired by patient."""

    balanced_accuracy: Score = Field(description="above 0: the first arm is better")
    auc: Score = Field(description="above 0: the first arm is better")
    brier: Score | None = Field(default=None, description="below 0: the first arm is better")


class Table3(Part):
    """Grading with and without synthetic features, as the paper's Table 3, and what to judge by."""

    baseline: Row = Field(description="real features alone")
    augmented: Row | None = Field(description="with synthetic features; null: no generator was asked for")
    difference: Difference | None = Field(description="augmented − baseline")
    beyond_line: Difference | None = Field(
        description="augmented − `threshold`: what samples do that a line moved by the same rule does not"
    )


class Comparator(Row):
    """An arm beside its difference from the arm `real`."""

    difference: Difference | None = Field(default=None, description="this arm − `real`; null for `real` itself")


class Measured(Part):
    """An arm in a series."""

    balanced_accuracy: Score = Field(description="as in Row")
    auc: Score = Field(description="as in Row")
    difference: Difference | None = Field(default=None, description="this arm − `real` of the same series")


class Count(Measured):
    """An arm with so many synthetic samples."""

    count: int = Field(ge=0, description="synthetic samples")


class Scarce(Part):
    """All of it again, with fewer patients of the rare class to fit on."""

    rare_patients: int = Field(ge=1, description="patients of the rare class that were left to fit on")
    arms: dict[str, Measured] = Field(description="by arm")
    augmented_arm: str | None = Field(description="as in Metrics")
    best_comparator: str | None = Field(description="as in Metrics")
    augmented_minus_best: Difference | None = Field(description="as in Metrics")


class Against(Part):
    """A measure of synthetic features beside its floor: what real features of held-out patients reach."""

    synthetic: float | None = Field(description="synthetic features against those the generator was fitted on")
    floor: float | None = Field(description="real features of held-out patients against the same")


class Nearest(Part):
    """Median distance to the nearest feature that the generator was fitted on."""

    synthetic_to_train: float | None = Field(description="far below the other: the generator copies")
    held_out_to_train: float | None = Field(description="the same for real features of held-out patients")


class ClassQuality(Part):
    """Synthetic features of one class, pooled and projected on the principal components of the real ones."""

    frechet: Against = Field(description="Fréchet distance; lower is better")
    kid: Against = Field(description="kernel distance (KID); lower is better")
    precision: Against = Field(description="share of synthetic features that lie among the real ones")
    recall: Against = Field(description="share of real features that lie among the synthetic ones")
    density: Against = Field(description="how densely real features lie about the synthetic ones")
    coverage: Against = Field(description="share of real features with a synthetic one close by")
    nearest: Nearest = Field(description="whether the generator copies")


class Cas(Part):
    """A classifier fitted on synthetic features alone (CAS) on the real features of the test patients."""

    balanced_accuracy: Score = Field(description="as in Row")
    auc: Score = Field(description="as in Row")


class GanQuality(Part):
    """What one generator's features are worth.

    `accuracy_…`: the mean of both classes; `ci95` is where 95 % of the fits (folds and seeds) lie, `n` counts samples.
    """

    options: dict[str, Any] = Field(description="of the generator")
    accuracy_critic: Score = Field(description="share that its own critic puts into the right class (paper 4.2.3)")
    accuracy_unseen: Score = Field(
        description="the same by a classifier that never saw a synthetic feature but the same patients: arm `weights`"
    )
    accuracy_unseen_real: Score = Field(description="share of real test slices that this classifier puts right")
    accuracy_others: Score = Field(
        description="the same by a classifier fitted on the other patients, whom the generator never saw either"
    )
    accuracy_others_real: Score = Field(
        description="share of the real slices that the generator learnt from, by this classifier: what to compare with"
    )
    per_class: dict[str, ClassQuality] = Field(description="by class")
    cas: Cas | None = Field(description="null: not measured")
    history: list[list[dict[str, float | None]]] = Field(description="for each fold each epoch's figures (Fig. 11)")


class Control(Part):
    """Labels dealt at random: what is fitted on them must be at chance on them, or something leaks.

    Among patients of both classes alike; in the task `tumour` among all slices, which cannot show a patient on both
    sides.
    """

    shuffled_labels: Literal[True] = Field(description="what was done")
    balanced_accuracy: Score = Field(description="of the arm `real`")
    auc: Score = Field(description="of the arm `real`")
    arms: dict[str, Measured] = Field(description="of each generator with the most samples, the first seed alone")
    chance_inside: bool = Field(description="0.5 lies in all these intervals")


class CalibrationBin(Part):
    """Patients of like probability."""

    predicted: float = Field(ge=0, le=1, description="mean probability of the first class")
    observed: float = Field(ge=0, le=1, description="share of them that are of it")
    n: int = Field(ge=1, description="patients")


class Learning(Part):
    """Learning curves."""

    unet: list[list[dict[str, float | None]]] = Field(
        description="for each fold each epoch's `loss`, `val_dice`, `val_iou`"
    )


class Metrics(Part):
    """The file. A part that is null or empty was not measured."""

    schema_: Literal["gliaflow-evaluation/1"] = Field(
        alias="schema", description="this version; a reader refuses any other"
    )
    made: Made = Field(description="how the figures were made")
    table2: Table2 | None = Field(description="segmentation")
    table3: Table3 | None = Field(description="grading with and without synthetic features")
    comparators: dict[str, Comparator] = Field(
        description="every arm by its name; with synthetic features: `NAME@COUNT`, and `NAME` where the count was "
        "chosen on validation patients"
    )
    best_comparator: str | None = Field(
        description="the arm without synthetic features of the highest balanced accuracy on the test patients"
    )
    augmented_arm: str | None = Field(description="the arm with synthetic features that is judged")
    augmented_chosen_on: Literal["given", "validation", "test"] = Field(
        description="by what it was chosen; `test` flatters it, and the report says so"
    )
    augmented_minus_best: Difference | None = Field(description="augmented_arm − best_comparator: the verdict")
    counts: dict[str, list[Count]] = Field(description="by generator: the score against the number of samples")
    scarce: list[Scarce] | None = Field(description="with fewer patients of the rare class")
    gan: dict[str, GanQuality] = Field(description="by generator")
    control: Control | None = Field(description="shuffled labels")
    calibration: dict[str, list[CalibrationBin]] = Field(description="by arm")
    learning: Learning | None = Field(description="learning curves")

    @model_validator(mode="after")
    def _arms_are_there(self) -> Metrics:
        for name in ("best_comparator", "augmented_arm"):
            arm = getattr(self, name)
            if arm is not None and arm not in self.comparators:
                raise ValueError(f"{name}: {arm!r} is not one of the comparators")
        return self

    def synthetic(self, arm: str) -> bool:
        """Whether the arm has synthetic features."""
        return arm.partition("@")[0] in self.made.generators


def write_metrics(metrics: Metrics, path: Path) -> None:
    """Check ``metrics`` as a reader will, then write it whole to ``path`` and rename it into place.

    Raises
    ------
    MetricsError: a field does not follow the schema; nothing is written.
    """
    text = metrics.model_dump_json(by_alias=True, indent=1) + "\n"
    _parse(text, path)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read_metrics(path: Path) -> Metrics:
    """``metrics.json``, checked.

    Raises
    ------
    MetricsError: it is no JSON, of another schema, or a field does not follow it.
    OSError: it cannot be read.
    """
    return _parse(path.read_text(encoding="utf-8"), path)


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``metrics.json``, for readers in other languages."""
    return Metrics.model_json_schema()


def tables() -> str:
    """Markdown: a heading and a table for each part, the file first."""
    names = sorted(json_schema()["$defs"], key=list(globals()).index)
    return "\n".join(_table(globals()[name]) for name in ("Metrics", *names))


def _table(model: type[Part]) -> str:
    lines = [f"### {model.__name__}", "", cleandoc(str(model.__doc__)), "", "| key | type | |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        written = next(types[name] for base in model.__mro__ if name in (types := get_annotations(base)))
        type_ = written.replace(" | None", " or null").replace(" | ", " or ")
        lines.append(f"| `{field.alias or name}` | {type_} | {field.description} |")
    return "\n".join(lines) + "\n"


def _parse(text: str, path: Path) -> Metrics:
    try:
        return Metrics.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise MetricsError(f"{path}: {field}: {first['msg']}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


if __name__ == "__main__":
    print(tables())
