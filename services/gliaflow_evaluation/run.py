"""``gliaflow evaluate``: do synthetic features help to grade the patients of a cohort that nothing was fitted on?

Patients are split into folds (``protocol``). In each fold a U-Net is fitted (``segmentation``), then classifiers and
generators with each seed (``fold``). Their answers (``summary``) become ``metrics.json``, ``figures.npz`` and
``report.html`` (``report``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gliaflow_phantoms.cohort import made_by
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_proto import CLASSES
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.files import whole_file
from gliaflow_runtime.settings import available_cores
from gliaflow_trainer.fine_tuning import unet_to_fine_tune
from gliaflow_trainer.kept_work import kept_work
from gliaflow_trainer.leaks import learned_from, refuse_copies, refuse_known, refuse_leaks
from gliaflow_trainer.run_folder import only_command, same_run, settings_of, versions
from gliaflow_trainer.sequences import patients_with, refuse_absent, refuse_unlearned
from gliaflow_trainer.slices import CutScan, cut_cohort
from gliaflow_trainer.source import cut_source, refuse_one_class, source_name
from gliaflow_trainer.unlabelled import cut_unlabelled, folder_name
from gliaflow_trainer.variants import learns_from_source
from rich.progress import Progress

from gliaflow_evaluation.comparators import COMPARATORS
from gliaflow_evaluation.conditions import conditions_of
from gliaflow_evaluation.fold import comparators_of, grading_tasks
from gliaflow_evaluation.progress import Rows, RunProgress
from gliaflow_evaluation.protocol import Design, Fold, Plan, PlannedVariant, rare_class, split_into_folds
from gliaflow_evaluation.report.page import FIGURES_FILE, METRICS_FILE, REPORT_FILE, write_report
from gliaflow_evaluation.report.schema import SCHEMA, Metrics, write_metrics
from gliaflow_evaluation.request import EvaluateRequest
from gliaflow_evaluation.runners import Runner, Task, ThisProcess, processes, run_all
from gliaflow_evaluation.segmentation import fit_segmentation
from gliaflow_evaluation.summary import summarise

if TYPE_CHECKING:
    from gliaflow_evaluation.cluster import Cluster

AFTER_THE_UNET = ("tap", "cropped", "classifier", "generators", "classifiers")  # of a profile
OF_TRAIN = "folds"  # of a profile; an evaluation has folds of its own


def evaluate(request: EvaluateRequest, bar: Progress) -> Metrics:
    """Run the whole protocol and write ``metrics.json``, ``figures.npz`` and ``report.html`` to ``request.out``.

    ``out/work`` keeps what was fitted: called again with the same cohort, profile and folds, it does only what is new,
    and after a kill it resumes.

    Raises
    ------
    PluginError: too few patients of a class, a generator with an arm's name, the cohort leaks, or ``out/work`` is of
        another run.
    BundleError: ``init`` or ``unet`` cannot be used.
    UsageError: no scheduler answers at ``scheduler``, or another command uses ``out/work``.
    """
    began = time.monotonic()
    leaks = [*request.cohort.leaks, *learned_from([request.init, request.unet], request.folder)]
    refuse_leaks(leaks, request.allow, bar)
    request = replace(request, cohort=replace(request.cohort, leaks=leaks))
    with _connected(request.scheduler) as cluster:  # first: a wrong address shows before any work
        return _evaluate(request, cluster, bar, began)


@contextmanager
def _connected(scheduler: str) -> Iterator[Cluster | None]:
    if not scheduler:
        yield None
        return
    from gliaflow_evaluation.cluster import connected  # here: one machine needs no Dask

    with connected(scheduler) as cluster:
        yield cluster


def _evaluate(request: EvaluateRequest, cluster: Cluster | None, bar: Progress, began: float) -> Metrics:
    if request.unet is not None:
        request = replace(request, profile=replace(request.profile, input=Bundle(request.unet).manifest.input))
    cases = check(request)
    with only_command(request.out / "work"):
        return _evaluate_cases(request, cases, cluster, bar, began)


def _evaluate_cases(
    request: EvaluateRequest, cases: Mapping[str, Case], cluster: Cluster | None, bar: Progress, began: float
) -> Metrics:
    work = request.out / "work"
    same_run(work, _identity(request, cases.values()))
    if not bar.disable and (kept := kept_work(work)):
        bar.console.print(f"resuming from {work}, which has: {kept}", soft_wrap=True)
    scans = cut_cohort(cases.values(), request.profile, work, bar)
    leaks = [*request.cohort.leaks, *refuse_copies(scans, request.allow, bar)]
    known = (list(cases.values()), scans)
    without: list[CutScan] = []
    if request.unlabelled:
        without = cut_unlabelled(request.unlabelled, request.profile, work, bar)
        leaks += refuse_known((request.unlabelled, without), known, request.allow, bar, "--unlabelled")
    source: list[CutScan] = []
    if request.source:
        source = cut_source(request.source, request.profile, work, bar)
        leaks += refuse_known((request.source, source), known, request.allow, bar, "--source")
    label_of = {scan.patient: scan.label or "not known" for scan in scans}
    folds = split_into_folds(label_of, request.design)
    used = [cases[scan.case] for scan in scans]
    for fold in folds if request.unet is None else []:
        learn = [case for case in used if fold.split[case.patient] == "train"]
        refuse_unlearned(learn, request.profile.input, f"fold {fold.number}: ")
    _refuse_too_many(request.design, folds, label_of)
    plan = _plan(request, rare_class(label_of, request.design.task))
    jobs = 1 if request.device != "cpu" else request.jobs or max(1, available_cores() // plan.threads)
    _announce(plan, folds, label_of, jobs if cluster is None else cluster.address, bar)
    files = _run_folds(plan, folds, cases, cluster or jobs, bar)
    figures, pictures = summarise(plan, folds, files, scans)
    made = _made(request, len(folds), label_of, scans) | figures["made"] | {"threads": plan.threads}
    made["cohort"] |= {"leaks": leaks, "unlabelled": len({scan.patient for scan in without})}
    made["cohort"]["source"] = len({scan.patient for scan in source})
    made["cohort"]["sequences"] = patients_with(used, request.profile.input)
    made["seconds"] = round(time.monotonic() - began, 1)
    metrics = write_metrics(
        Metrics.model_validate({**figures, "schema": SCHEMA, "made": made}), request.out / METRICS_FILE
    )
    with whole_file(request.out / FIGURES_FILE, ending=".npz") as part:
        np.savez_compressed(part, **pictures)  # type: ignore[arg-type]  # its stub takes them for flags
    write_report(metrics, pictures, request.out / REPORT_FILE)
    return metrics


def check(request: EvaluateRequest) -> dict[str, Case]:
    """Find mistakes in the request before any work is done. Returns the cases that can be used, by id.

    Raises
    ------
    PluginError, BundleError: see ``evaluate``.
    """
    generators = request.variants.generators
    taken = [name for name in generators if name in COMPARATORS and not COMPARATORS[name].plain_generator]
    if taken:
        raise PluginError(f"generator {taken[0]!r}: an arm without a generator has this name; rename the generator")
    request.variants.require_source(bool(request.source))
    if request.design.task == "grade":  # in the task "tumour", the masks say it
        refuse_one_class(request.source)
    if generators and not any(request.design.counts):
        raise PluginError("counts: a generator needs numbers of synthetic samples to add (--counts 100,400)")
    cases = {case.id: case for case in request.cohort.cases if case.mask is not None and case.label}
    if not cases:
        raise PluginError(f"{request.folder}: no scan has a mask and a grade (--grades TABLE gives grades)")
    split_into_folds({case.patient: str(case.label) for case in cases.values()}, request.design)
    if request.unet is None:  # another bundle's U-Net knows its sequences already
        refuse_absent(cases.values(), request.profile.input)
    if request.init is not None:
        unet_to_fine_tune(request.init, request.profile)
    return cases


def _refuse_too_many(design: Design, folds: Sequence[Fold], label_of: Mapping[str, str]) -> None:
    """Raise PluginError if no fold has more patients of the rare class than ``scarce`` leaves (task ``grade``)."""
    if design.task != "grade":
        return  # the masks say which patients have such slices
    rare = CLASSES[rare_class(label_of, design.task)]
    of_fold = [sum(part != "test" and label_of[name] == rare for name, part in fold.split.items()) for fold in folds]
    for few in design.scarce:
        if not 2 <= few < max(of_fold):
            raise PluginError(
                f"--scarce {few}: a fold has {max(of_fold)} patients of {rare} to fit on; give 2 or more, and fewer"
            )


def _identity(request: EvaluateRequest, cases: Iterable[Case]) -> dict[str, Any]:
    """What the U-Nets depend on: a work folder belongs to one such run."""
    design = request.design
    return {
        "threads": _threads(request),
        "device": request.device,
        "scan": settings_of(cases, request.profile.input.channels),
        "profile": {
            key: value for key, value in asdict(request.profile).items() if key not in (*AFTER_THE_UNET, OF_TRAIN)
        },
        "protocol": [design.protocol, design.task, design.folds, design.seed],
        "init": request.init and Bundle(request.init).id,
        "unet": request.unet and Bundle(request.unet).id,
        "high": list(request.high),
    }


def _threads(request: EvaluateRequest) -> int:
    """Of each fit. On the CPU and on a cluster it does not depend on this machine."""
    return request.threads or (1 if request.device == "cpu" or request.scheduler else available_cores())


def _plan(request: EvaluateRequest, rare: int) -> Plan:
    variants, registry = request.variants, request.variants.registry
    return Plan(
        work=(request.out / "work").resolve(),
        profile=request.profile,
        design=request.design,
        rare=rare,
        generators=tuple(
            PlannedVariant(
                name,
                options.model_dump(mode="json"),
                registry.code_of("generator", name),
                source=learns_from_source(registry.generator(name)),
                third_party=not registry.ships("generator", name),
            )
            for name, options in variants.generators.items()
        ),
        classifier=PlannedVariant(
            variants.classifier,
            variants.classifier_options.model_dump(mode="json"),
            registry.code_of("classifier", variants.classifier),
        ),
        comparator_code={
            name: registry.code_of("generator", name) for name, each in COMPARATORS.items() if each.plain_generator
        },
        init=request.init and request.init.resolve(),
        unet=request.unet and request.unet.resolve(),
        unlabelled=folder_name(request.unlabelled, request.profile) if request.unlabelled else "",
        source=source_name(request.source, request.profile) if request.source else "",
        device=request.device,
        threads=_threads(request),
        deadline_s=request.deadline_s,
        memory_gib=request.memory_gib,
    )


def _announce(plan: Plan, folds: Sequence[Fold], label_of: Mapping[str, str], where: int | str, bar: Progress) -> None:
    """Print what will be done."""
    if bar.disable:
        return
    names = [generator.name for generator in plan.generators]
    bar.console.print(
        f"{len(label_of)} patients, {len(folds)} folds, {plan.design.seeds} seeds, "
        f"{f'{where} at a time' if isinstance(where, int) else f'on {where}'}: a U-Net for each fold; then, for each "
        f"fold and seed, {len(comparators_of(plan))} comparators" + (f" and {', '.join(names)}" if names else ""),
        soft_wrap=True,
    )


def _run_folds(
    plan: Plan, folds: Sequence[Fold], cases: Mapping[str, Case], where: int | Cluster, bar: Progress
) -> dict[tuple[int, int], list[Path]]:
    """Every fold's U-Net, then every fold with every seed. The files of answers by fold and seed.

    Parameters
    ----------
    where: a number of processes, or a cluster.
    """
    seeds, rows = plan.design.all_seeds, Rows(bar)
    gradings = {(fold.number, seed): grading_tasks(plan, fold, seed) for fold in folds for seed in seeds}
    row = bar.add_task("folds and seeds", total=len(folds) + sum(map(len, gradings.values())))
    files: dict[str, list[Path]] = {}
    segmentations = {}
    for fold in folds:
        tested = {case.id: case for case in cases.values() if fold.split.get(case.patient) == "test"}
        task = Task(f"fold {fold.number}", fit_segmentation, (plan, fold, tested, seeds[0]))
        segmentations[task.name] = task, fold.number
    first, *others = (task for task, _ in segmentations.values())
    # a U-Net of another run: one extraction serves all folds, so the first fold comes first
    later = others if plan.unet is not None else []

    def then(task: Task, result: Any) -> Iterator[Task]:
        bar.advance(row)
        if task.name not in segmentations:
            files[task.name] = result
            return
        _, number = segmentations[task.name]
        for seed in seeds:
            yield from gradings[number, seed]
        yield from later
        later.clear()

    with _runner(plan, cases, where, RunProgress(bar, row, rows)) as runner:
        run_all(runner, [first] if later else [first, *others], then)
    return {key: [file for task in tasks for file in files[task.name]] for key, tasks in gradings.items()}


def _runner(
    plan: Plan, cases: Mapping[str, Case], where: int | Cluster, shown: RunProgress
) -> AbstractContextManager[Runner]:
    if not isinstance(where, int):
        mask = next(iter(cases.values())).mask
        assert mask is not None
        return where.runner(conditions_of(plan, mask), shown)
    return nullcontext(ThisProcess(shown.rows)) if where == 1 else processes(where, shown.rows)


def _made(
    request: EvaluateRequest, folds: int, label_of: Mapping[str, str], scans: Sequence[CutScan]
) -> dict[str, Any]:
    design, labels = request.design, sorted(label_of.values())
    return {
        "command": " ".join(["gliaflow", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "profile": {key: value for key, value in asdict(request.profile).items() if key != OF_TRAIN},
        "device": request.device,
        "cohort": {
            "folder": request.folder.resolve().name,
            "layout": request.cohort.layout,
            "patients": {label: labels.count(label) for label in dict.fromkeys(labels)},
            "slices": sum(len(scan.image) for scan in scans),
            "high": list(request.high),
            "phantoms": bool(made_by(request.folder)),
        },
        "protocol": {"name": design.protocol, "folds": folds, "repeats": 1, "seeds": list(design.all_seeds)},
        "task": design.task,
        "classes": design.classes,
        "counts": design.counts,
        "init": Bundle(request.init).id if request.init is not None else None,
        "unet": Bundle(request.unet).id if request.unet is not None else None,
    }
