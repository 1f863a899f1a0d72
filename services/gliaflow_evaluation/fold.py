"""One fold of an evaluation: all classifiers and generators are fitted on its training patients, and its test patients
are graded.

The results are files in the fold's folder. What exists is not done again, so an interrupted run resumes, and a later
run with another generator fits that generator alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import PluginError
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import FeatureStore
from numpy.typing import NDArray

from gliaflow_evaluation.answers import answers_file, failed_file, load_answers, save_answers
from gliaflow_evaluation.arms import Arms, FitSetting
from gliaflow_evaluation.comparators import COMPARATORS, Comparator
from gliaflow_evaluation.generator_arms import GeneratorSamples, augmented, with_most_samples
from gliaflow_evaluation.own_process import Limits, ProcessEnded, call_in_own_process
from gliaflow_evaluation.progress import report
from gliaflow_evaluation.protocol import Fold, Plan, PlannedVariant
from gliaflow_evaluation.runners import Task
from gliaflow_evaluation.samples import (
    Indices,
    parts_of,
    samples_of,
    shuffled_labels,
    source_of,
    thinned,
    unlabelled_of,
)
from gliaflow_evaluation.threads import use_threads

Answers = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""Arrays and ``about``; see ``answers``."""


@dataclass(frozen=True)
class FoldArms:
    """A fold's arms: on all its samples, with fewer patients of the rare class, and on shuffled labels.

    ``tested``: the numbers of the test samples in the store.
    """

    all: Arms
    scarce: Mapping[int, Arms]
    shuffled: Arms | None
    tested: Indices

    @classmethod
    def of(cls, plan: Plan, fold: Fold, seed: int) -> FoldArms:
        """Raises PluginError: tumour was found in one class of training patients only, or in none."""
        store = FeatureStore(fold.features(plan))
        samples, index = samples_of(plan, store)
        parts = parts_of(samples, fold)
        if len(np.unique(samples.labels[parts["train"]])) < 2:
            raise PluginError(
                f"fold {fold.number}: the U-Net found tumour in one class of training patients only, or in none"
            )
        bundle = Bundle(fold.unet(plan), plan.profile.tap) if fold.unet(plan).exists() else None
        names, counts = np.unique(store.patients, return_counts=True)
        slices = dict(zip(map(str, names), map(int, counts), strict=True))
        setting = FitSetting(plan, load_registry(), seed, bundle, slices, row_of(plan, fold, seed))
        others = unlabelled_of(plan, fold), source_of(plan, fold)
        fewer = {few: thinned(samples, parts, plan.rare, few, seed) for few in plan.design.scarce}
        shuffled = None
        if plan.design.shuffle:
            labels = shuffled_labels(samples, plan.design.task, seed)
            shuffled = Arms(setting, samples.with_labels(labels, samples.classes), parts, *others)
        return cls(
            Arms(setting, samples, parts, *others),
            {few: Arms(setting, samples, some, *others) for few, some in fewer.items() if some is not None},
            shuffled,
            index[parts["test"]],
        )


def grading_tasks(plan: Plan, fold: Fold, seed: int) -> list[Task]:
    """What is fitted with one seed once the fold's features are there: all comparators, and each generator.

    The result of each is the files of its answers. No task needs another.
    """
    comparators = replace(plan, generators=())
    tasks = [Task(row_of(comparators, fold, seed), grade_fold, (comparators, fold, seed))]
    for generator in plan.generators:
        one = replace(plan, generators=(generator,))
        tasks.append(Task(row_of(one, fold, seed), grade_fold, (one, fold, seed, True)))
    return tasks


def comparators_of(plan: Plan) -> list[Comparator]:
    """Those that this run can fit."""
    return [
        comparator
        for comparator in COMPARATORS.values()
        if (comparator.kind != "shortcut" or plan.design.task == "grade")
        and (not comparator.unlabelled or plan.unlabelled)
        and (not comparator.source or plan.source)
        and (not comparator.of_bundle or _has_classifier(plan))
    ]


def _has_classifier(plan: Plan) -> bool:
    """Whether the U-Net is of a bundle with a classifier of grades, fitted on the features that this run reads."""
    if plan.unet is None or plan.design.task != "grade":
        return False
    its, profile = Bundle(plan.unet).manifest, plan.profile
    return "classifier.onnx" in its.files and (its.tap, its.cropped) == (profile.tap, profile.cropped)


def row_of(plan: Plan, fold: Fold, seed: int) -> str:
    """The name of a fold, seed and generator in the progress."""
    return ", ".join([f"fold {fold.number}, seed {seed}", *(generator.name for generator in plan.generators)])


def grade_fold(plan: Plan, fold: Fold, seed: int, alone: bool = False) -> list[Path]:
    """Fit every comparator and every generator with one seed. Returns the files of answers (see ``answers``).

    A generator that fails is noted in its file, and the others continue. ``alone``: fit the plan's generators only.
    """
    use_threads(plan.threads)
    row = row_of(plan, fold, seed)
    entrants: list[Comparator | PlannedVariant] = [*plan.generators]
    if not alone:
        entrants[:0] = comparators_of(plan)
    files = [answers_file(plan, fold, seed, entrant) for entrant in entrants]
    if all(file.exists() for file in files):
        return files
    arms = FoldArms.of(plan, fold, seed)
    for number, (entrant, file) in enumerate(zip(entrants, files, strict=True)):
        if file.exists():
            continue
        report(row, "arms" if alone else f"{entrant.name}, arms", number, len(entrants))
        if isinstance(entrant, Comparator):
            arrays, about = compare(entrant, arms)
        else:
            try:
                if entrant.third_party:
                    _grade_in_own_process(
                        replace(plan, generators=(replace(entrant, third_party=False),)), fold, seed, file
                    )
                    continue
                arrays, about = generate(entrant, arms)
            except Exception as error:  # in a plugin's code
                reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
                arrays, about = {}, {entrant.name: {"failed": " ".join(reason.split())}}
                files[number] = file = failed_file(file)
        save_answers(file, {"index": arms.tested, **arrays}, about)
    report(row, "", len(entrants), len(entrants))
    return files


def compare(comparator: Comparator, arms: FoldArms) -> Answers:
    """A comparator's arm; all but simpler ones and shortcuts also on fewer patients; some also on shuffled labels."""
    name = comparator.name
    logits = {f"arm/{name}": comparator.compute(arms.all)}
    if comparator.kind in ("real", "remedy", "carried", "lent"):
        logits |= {f"scarce/{few}/{name}": comparator.compute(scarce) for few, scarce in arms.scarce.items()}
    if comparator.kind in ("real", "carried") and arms.shuffled is not None:
        logits[f"control/{name}"] = comparator.compute(arms.shuffled)
    return logits, {}


def generate(planned: PlannedVariant, arms: FoldArms) -> Answers:
    """A generator's arms and quality; its arms on fewer patients; with the first seed, its arm on shuffled labels.

    A generator that learns from another cohort is quick: it has that arm with each seed.
    """
    name = planned.name
    fitted = arms.all.fit_generator(planned)
    arrays: dict[str, NDArray[Any]] = {f"arm/{arm}": one for arm, one in augmented(arms.all, name, fitted).items()}
    samples = GeneratorSamples(arms.all, fitted)
    arrays[f"arm/{name} alone"] = samples.alone()
    arrays |= {f"figures/{name}/{figure}": maps for figure, maps in samples.figures().items()}
    quality = {**samples.quality(), "options": dict(planned.options), "history": fitted.history}
    for few, scarce in arms.scarce.items():
        logits = augmented(scarce, name, scarce.fit_generator(planned))
        arrays |= {f"scarce/{few}/{arm}": one for arm, one in logits.items()}
    first = arms.all.setting.seed == arms.all.setting.plan.design.seed
    if arms.shuffled is not None and (first or planned.source):  # the fits of the others take longest
        arrays[f"control/{name}"] = with_most_samples(arms.shuffled, arms.shuffled.fit_generator(planned))
    return arrays, {name: {"quality": quality}}


def _grade_in_own_process(plan: Plan, fold: Fold, seed: int, file: Path) -> None:
    """``grade_fold`` in a process of its own, so that a crash there does not affect ours.

    Raises
    ------
    PluginError: the generator failed, its process crashed, or it passed a limit of the plan.
    """
    name = plan.generators[0].name
    try:
        call_in_own_process(grade_fold, (plan, fold, seed, True), Limits(plan.deadline_s, plan.memory_gib))
    except ProcessEnded as error:
        raise PluginError(f"generator {name!r}: {error}") from None
    if not file.exists():
        _, about = load_answers(failed_file(file))
        raise PluginError(about[name]["failed"])
