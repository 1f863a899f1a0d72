"""``metrics.json``, the figures of ``gliaflow evaluate``: the one definition of its keys.

The measures in it are those of the tables MEASURES (grading), DISTANCES and JUDGEMENTS (generators). The file is
checked before it is written and after it is read. ``python -m gliaflow_evaluation.report.schema`` prints the tables
in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import cleandoc, get_annotations
from pathlib import Path
from typing import Annotated, Any, Literal

from gliaflow_runtime.files import write_whole
from pydantic import AfterValidator, Field, ValidationError, model_validator

from gliaflow_evaluation.generator_quality import DISTANCES, Distance
from gliaflow_evaluation.judges import JUDGEMENTS
from gliaflow_evaluation.measures import DIFFERENCES, MEASURES, OVER_SLICES, OVER_UNITS, Measure
from gliaflow_evaluation.score import Part, Score

SCHEMA: Literal["gliaflow-evaluation/2"] = "gliaflow-evaluation/2"


class MetricsError(ValueError):
    """A ``metrics.json`` that cannot be used. The text names the file and the field."""


def _keys(names: Iterable[str]) -> AfterValidator:
    """Check that a dict has exactly these keys."""

    def check(values: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(values.keys() ^ set(names)):
            raise ValueError(f"{', '.join(unknown)}: expected {', '.join(names)}, and nothing else")
        return values

    return AfterValidator(check)


UnitScores = Annotated[dict[str, Score], _keys(OVER_UNITS)]
SliceScores = Annotated[dict[str, Score], _keys(OVER_SLICES)]
Differences = Annotated[dict[str, Score], _keys(DIFFERENCES)]
Judgements = Annotated[dict[str, Score], _keys(JUDGEMENTS)]


class CohortMade(Part):
    """The patients."""

    folder: str = Field(description="name of the folder, without its path")
    layout: str = Field(description="the reader that recognised it, and how")
    patients: dict[str, int] = Field(description="usable patients of each class")
    slices: int = Field(ge=0, description="slices of all patients")
    high: list[str | int] = Field(description="the grades that count as HGG; empty where the folder says HGG or LGG")
    phantoms: bool = Field(default=False, description="the scans are drawings, made by `gliaflow phantom`")
    leaks: list[str] = Field(default=[], description="leaks that `--allow` allowed")
    sequences: dict[str, int] = Field(
        default={}, description="usable patients with each sequence beside the FLAIR that the U-Net sees"
    )
    unlabelled: int = Field(default=0, ge=0, description="patients of `--unlabelled`: no class of theirs is read")
    source: int = Field(default=0, ge=0, description="patients of another cohort, of `--source`")


class ProtocolMade(Part):
    """How patients were split."""

    name: Literal["grouped", "paper"] = Field(
        description="`grouped`: folds by patient, stratified by class; `paper`: the paper's one split"
    )
    folds: int = Field(ge=1, description="folds of each repeat; 1 is one split")
    repeats: int = Field(ge=1, description="how often the patients were split anew")
    seeds: list[int] = Field(description="the seeds of the random draws")


class Made(Part):
    """How the figures were made."""

    command: str = Field(description="the exact command")
    date: str = Field(description="ISO 8601")
    seconds: float = Field(ge=0, description="the run's duration")
    versions: dict[str, str] = Field(description="of python and of each library")
    profile: dict[str, Any] = Field(description="sizes and settings of the networks")
    device: str = Field(description="`cpu` or `cuda`, with the model's name")
    threads: int | None = Field(default=None, description="of each fit; null: a former version, which did not say")
    cohort: CohortMade = Field(description="the patients")
    protocol: ProtocolMade = Field(description="how patients were split")
    task: Literal["grade", "tumour"] = Field(
        description="`grade`: HGG or LGG; `tumour`: slices with tumour or without, for cohorts of one grade"
    )
    classes: tuple[str, str] = Field(description="names of the classes; the first is the positive one")
    tap: str = Field(description="where in the U-Net features are read")
    shape: tuple[int, int, int] = Field(description="of a feature: C, H, W")
    generators: list[str] = Field(description="the variants")
    failed: dict[str, str] = Field(default={}, description="variants that failed, with the reason; not compared")
    counts: list[int] = Field(description="synthetic samples added to the real ones; the rare class first")
    init: str | None = Field(description="the bundle that the U-Net started from; null: random weights")
    unet: str | None = Field(default=None, description="the bundle whose U-Net was used unchanged; null: it was fitted")


class SegmentationScores(Part):
    """A row of Table 2, over the slices of one part; each score's `n` counts slices."""

    soft_dice_loss: Score = Field(description="Eq. 3; lower is better")
    hard_dice: Score = Field(description="Eq. 4")
    iou: Score = Field(description="Eq. 5")


class PatientDice(Part):
    """The Dice of one test patient."""

    patient: str = Field(description="name in the cohort")
    fold: int = Field(ge=0, description="in which the patient was tested")
    dice: float = Field(ge=0, le=1, description="over all the patient's slices")


class PatientsDice(Part):
    """The Dice of the test patients."""

    dice: Score = Field(description="mean")
    dice_median: float | None = Field(description="median")
    per_patient: list[PatientDice] = Field(description="each patient")


class Table2(Part):
    """Segmentation, as the paper's Table 2, and on patients that the U-Net never saw, which the paper lacks."""

    train: SegmentationScores = Field(description="patients that the U-Net was fitted on")
    validation: SegmentationScores = Field(description="patients that chose its epoch")
    test: SegmentationScores = Field(description="patients that it never saw")
    test_patients: PatientsDice = Field(description="the same patients, one by one")


class SeriesArm(Part):
    """An arm in a series."""

    scores: UnitScores = Field(description="by measure, on the test patients")
    difference: Differences | None = Field(default=None, description="this arm − `real` of the same series")


class Row(SeriesArm):
    """An arm on the test patients. `difference` is null for `real` itself."""

    arm: str = Field(description="name")
    slices: SliceScores | None = Field(
        description="by measure, over slices as in the paper's Table 3; `n` counts slices; null: grades patients only"
    )


class CountArm(SeriesArm):
    """An arm with a given number of synthetic samples."""

    count: int = Field(ge=0, description="synthetic samples")


class Table3(Part):
    """Grading with and without synthetic features, as the paper's Table 3, and what to judge by."""

    baseline: Row = Field(description="real features alone")
    augmented: Row | None = Field(description="with synthetic features; null: without a generator")
    beyond_threshold: Differences | None = Field(
        description="augmented − `threshold`: the samples' effect beyond that of a threshold moved by the same rule"
    )


class AgainstBest(Part):
    """An arm that is judged by its AUC against the comparator of the highest AUC on the same test patients.

    The comparator was chosen on them, which flatters it and not the arm.
    """

    best_comparator: str = Field(description="of those that fit real features, guessed labels or plain new samples")
    minus_best: Differences = Field(description="the arm − best_comparator")


class Scarce(Part):
    """The same comparison with fewer patients of the rare class to fit on."""

    rare_patients: int = Field(ge=1, description="patients of the rare class left to fit on")
    arms: dict[str, SeriesArm] = Field(description="by arm")
    augmented_arm: str | None = Field(description="as in Metrics")
    best_comparator: str | None = Field(description="as in Metrics")
    augmented_minus_best: Differences | None = Field(description="as in Metrics")
    against_best_auc: dict[str, AgainstBest] = Field(default={}, description="as in Metrics")
    against_others_auc: dict[str, AgainstBest] = Field(default={}, description="as in Metrics")


class Against(Part):
    """A distance measure of synthetic features beside its floor: the value for real features of held-out patients."""

    synthetic: float | None = Field(description="synthetic features against those that the generator was fitted on")
    floor: float | None = Field(description="real features of held-out patients against the same")


Distances = Annotated[dict[str, Against], _keys(DISTANCES)]


class GeneratorQuality(Part):
    """How good one generator's features are.

    In `judgements`, a score is the mean of both classes, `ci95` holds 95 % of the fits (folds and seeds), and `n`
    counts samples.
    """

    options: dict[str, Any] = Field(description="of the generator")
    judgements: Judgements = Field(description="shares of features put into the right class")
    distances: dict[str, Distances] = Field(description="by class and measure")
    cas: UnitScores | None = Field(
        description="real test patients, by a classifier fitted on synthetic features alone (CAS); null: not measured"
    )
    history: list[list[dict[str, float | None]]] = Field(description="for each fold each epoch's figures (Fig. 11)")


class Control(Part):
    """Shuffled labels: an arm fitted on them must be at chance on them, or information leaks.

    Labels are shuffled among patients, the same share of each class; in the task `tumour` among all slices, which
    cannot reveal a patient on both sides.
    """

    shuffled_labels: Literal[True] = Field(description="always true")
    scores: UnitScores = Field(description="of the arm `real`")
    arms: dict[str, UnitScores] = Field(description="of each generator with the most samples, and of comparators")
    chance_inside: bool = Field(
        description="each of these intervals includes chance, by each measure that has a chance level"
    )


class CalibrationBin(Part):
    """Patients of similar probability."""

    predicted: float = Field(ge=0, le=1, description="mean probability of the first class")
    observed: float = Field(ge=0, le=1, description="share of these patients that are of the first class")
    n: int = Field(ge=1, description="patients")


class RocPoint(Part):
    """A point of a mean ROC curve. Curves are drawn within a fold and averaged at equal false positive rates."""

    false_positive_rate: float = Field(ge=0, le=1, description="share of the second class graded as the first")
    true_positive_rate: float = Field(ge=0, le=1, description="share of the first class graded as the first")


class PatientAnswer(Part):
    """One arm's answer to a patient, the mean over seeds. Both are null where the U-Net found no tumour."""

    logit: float | None = Field(description="mean logit of the patient's slices; above 0 is the first class")
    probability: float | None = Field(ge=0, le=1, description="of the first class")


class PatientScore(Part):
    """One test patient of the task `grade`."""

    patient: str = Field(description="name in the cohort")
    fold: int = Field(ge=0, description="in which the patient was tested")
    label: str = Field(description="the true class")
    answers: dict[str, PatientAnswer] = Field(
        description="by arm: `real`, the best comparator and the judged arm with synthetic features"
    )


class Learning(Part):
    """Learning curves."""

    unet: list[list[dict[str, float | None]]] = Field(
        description="for each fold each epoch's `loss`, `val_dice`, `val_iou`"
    )


class Metrics(Part):
    """The file. A part that is null or empty was not measured."""

    schema_: Literal["gliaflow-evaluation/2"] = Field(
        alias="schema", description="this version; a reader refuses any other"
    )
    made: Made = Field(description="how the figures were made")
    table2: Table2 | None = Field(description="segmentation")
    table3: Table3 | None = Field(description="grading with and without synthetic features")
    comparators: dict[str, Row] = Field(
        description="every arm by name; with synthetic features: `NAME@COUNT`, and `NAME` where validation patients "
        "chose the count"
    )
    best_comparator: str | None = Field(
        description="the arm without synthetic features of the highest balanced accuracy on the test patients"
    )
    augmented_arm: str | None = Field(description="the arm with synthetic features that is judged")
    augmented_chosen_on: Literal["given", "validation", "test"] = Field(
        description="which patients chose it; `test` flatters it, and the report says so"
    )
    augmented_minus_best: Differences | None = Field(description="augmented_arm − best_comparator: the verdict")
    against_best_auc: dict[str, AgainstBest] = Field(
        default={},
        description="by arm: each generator, what is carried over, and what other patients' labels taught",
    )
    against_others_auc: dict[str, AgainstBest] = Field(
        default={}, description="by generator: against the better of `source` and `both`, or `bundle`"
    )
    counts: dict[str, list[CountArm]] = Field(description="by generator: the score against the number of samples")
    scarce: list[Scarce] | None = Field(description="with fewer patients of the rare class")
    gan: dict[str, GeneratorQuality] = Field(description="by generator")
    control: Control | None = Field(description="shuffled labels")
    calibration: dict[str, list[CalibrationBin]] = Field(description="by arm")
    patients: list[PatientScore] = Field(description="each test patient's answers; empty in the task `tumour`")
    roc: dict[str, list[RocPoint]] = Field(
        description="mean ROC curves, of the arms in `patients`; the area under each is its AUC, but for rounding"
    )
    confusion: dict[str, dict[str, dict[str, float]]] = Field(
        description="by arm, true class and predicted class: patients (slices in the task `tumour`) at a logit of 0, "
        "mean over seeds; one that was not graded counts half in each class"
    )
    learning: Learning | None = Field(description="learning curves")

    @model_validator(mode="after")
    def _arms_exist(self) -> Metrics:
        for name in ("best_comparator", "augmented_arm"):
            arm = getattr(self, name)
            if arm is not None and arm not in self.comparators:
                raise ValueError(f"{name}: {arm!r} is not one of the comparators")
        return self

    def synthetic(self, arm: str) -> bool:
        """Whether the arm has synthetic features."""
        return arm.partition("@")[0] in self.made.generators


def write_metrics(metrics: Metrics, path: Path) -> Metrics:
    """Write the file whole. Returns what a reader gets.

    Raises
    ------
    MetricsError: a field does not follow the schema; nothing is written.
    """
    text = metrics.model_dump_json(by_alias=True, indent=1) + "\n"
    read = _parse(text, path)
    write_whole(path, text)
    return read


def read_metrics(path: Path) -> Metrics:
    """``metrics.json``, checked.

    Raises
    ------
    MetricsError: not JSON, another version of the schema, or a field does not follow it.
    OSError: the file cannot be read.
    """
    return _parse(path.read_text(encoding="utf-8"), path)


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``metrics.json``, for readers in other languages."""
    return Metrics.model_json_schema()


def tables() -> str:
    """Markdown: a heading and a table for each part of the file, the file first; then for each table of measures."""
    names = sorted(json_schema()["$defs"], key=list(globals()).index)
    parts = [_part(globals()[name]) for name in ("Metrics", *names)]
    for title, keys in (("UnitScores", OVER_UNITS), ("SliceScores", OVER_SLICES), ("Differences", DIFFERENCES)):
        parts.append(_markdown(title, "A Score by measure.", [_better(MEASURES[key]) for key in keys]))
    parts.append(_markdown("Distances", "An Against by measure.", map(_better, DISTANCES.values())))
    shares = [(name, "share", each.description) for name, each in JUDGEMENTS.items()]
    return "\n".join([*parts, _markdown("Judgements", "A Score by judge and features.", shares)])


def _part(model: type[Part]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        written = next(types[name] for base in model.__mro__ if name in (types := get_annotations(base)))
        type_ = written.replace(" | None", " or null").replace(" | ", " or ")
        rows.append((field.alias or name, type_, str(field.description)))
    return _markdown(model.__name__, cleandoc(str(model.__doc__)), rows)


def _better(measure: Measure | Distance) -> tuple[str, str, str]:
    better = {True: "higher is better", False: "lower is better", None: ""}[measure.higher_is_better]
    chance = f"; {measure.chance} is chance" if isinstance(measure, Measure) and measure.chance is not None else ""
    return measure.name, better + chance, measure.description


def _markdown(title: str, about: str, rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [f"### {title}", "", about, "", "| key | type | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {type_} | {text} |" for key, type_, text in rows)]) + "\n"


def _parse(text: str, path: Path) -> Metrics:
    try:
        return Metrics.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "the file"
    if field == "schema":
        raise MetricsError(
            f"{path}: schema: {first['input']!r}, but this version reads {SCHEMA!r} only; run the same `gliaflow "
            "evaluate` again (fitted U-Nets in OUT/work are kept)"
        )
    raise MetricsError(f"{path}: {field}: {first['msg']}")


if __name__ == "__main__":
    print(tables())
