"""``gliaflow evaluate``: do synthetic features help to grade the patients of a cohort that nothing was fitted on?

Patients are split into folds (``protocol``). In each fold a U-Net is fitted (``segmentation``), then classifiers and
generators with each seed (``fold``). Their answers (``summary``) become ``metrics.json``, ``figures.npz`` and
``report.html`` (``report``).
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from datetime import UTC, datetime
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_phantoms.phantom import made_by
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.files import whole_file
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import available_cores
from gliaflow_trainer.leaks import refuse_copies, refuse_leaks
from gliaflow_trainer.processes import end_with_parent
from gliaflow_trainer.run_folder import same_run, settings_of, versions
from gliaflow_trainer.slices import CutScan, cut_cohort
from gliaflow_trainer.unet_bundle import unet_to_fine_tune
from rich.progress import Progress

from gliaflow_evaluation.comparators import COMPARATORS
from gliaflow_evaluation.fold import grade_fold
from gliaflow_evaluation.progress import Report, Rows, received, send_to
from gliaflow_evaluation.protocol import Fold, Plan, PlannedVariant, rare_class, split_into_folds
from gliaflow_evaluation.report.page import FIGURES_FILE, METRICS_FILE, REPORT_FILE, write_report
from gliaflow_evaluation.report.schema import SCHEMA, Metrics, write_metrics
from gliaflow_evaluation.request import EvaluateRequest
from gliaflow_evaluation.segmentation import fit_segmentation
from gliaflow_evaluation.summary import summarise

AFTER_THE_UNET = ("tap", "cropped", "classifier", "generators", "classifiers")  # of a profile


def evaluate(request: EvaluateRequest, bar: Progress) -> Metrics:
    """Run the whole protocol and write ``metrics.json``, ``figures.npz`` and ``report.html`` to ``request.out``.

    ``out/work`` keeps what was fitted: called again with the same cohort, profile and folds, it does only what is new,
    and after a kill it resumes.

    Raises
    ------
    PluginError: too few patients of a class, a generator with an arm's name, the cohort leaks, or ``out/work`` is of
        another run.
    BundleError: ``init`` or ``unet`` cannot be used.
    """
    began = time.monotonic()
    refuse_leaks(request.cohort.leaks, request.allow, bar)
    if request.unet is not None:
        request = replace(request, profile=replace(request.profile, input=Bundle(request.unet).manifest.input))
    cases = check(request)
    work = request.out / "work"
    same_run(work, _identity(request, cases.values()))
    scans = cut_cohort(cases.values(), request.profile, work, bar)
    leaks = [*request.cohort.leaks, *refuse_copies(scans, request.allow, bar)]
    label_of = {scan.patient: scan.label or "not known" for scan in scans}
    folds = split_into_folds(label_of, request.design)
    jobs = 1 if request.device != "cpu" else request.jobs or min(available_cores(), len(folds))
    plan = _plan(request, rare_class(label_of, request.design.task), jobs)
    _announce(plan, folds, label_of, jobs, bar)
    files = _run_folds(plan, folds, cases, jobs, bar)
    figures, pictures = summarise(plan, folds, files, scans)
    made = _made(request, len(folds), label_of, scans) | figures["made"]
    made["cohort"]["leaks"] = leaks
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
    if generators and not any(request.design.counts):
        raise PluginError("counts: a generator needs numbers of synthetic samples to add (--counts 100,400)")
    cases = {case.id: case for case in request.cohort.cases if case.mask is not None and case.label}
    if not cases:
        raise PluginError(f"{request.folder}: no scan has a mask and a grade (--grades TABLE gives grades)")
    split_into_folds({case.patient: str(case.label) for case in cases.values()}, request.design)
    if request.init is not None:
        unet_to_fine_tune(request.init, request.profile)
    return cases


def _identity(request: EvaluateRequest, cases: Iterable[Case]) -> dict[str, Any]:
    """What the U-Nets depend on: a work folder belongs to one such run."""
    design = request.design
    return {
        "scan": settings_of(cases),
        "profile": {key: value for key, value in asdict(request.profile).items() if key not in AFTER_THE_UNET},
        "protocol": [design.protocol, design.task, design.folds, design.seed],
        "init": request.init and Bundle(request.init).id,
        "unet": request.unet and Bundle(request.unet).id,
        "high": list(request.high),
    }


def _plan(request: EvaluateRequest, rare: int, jobs: int) -> Plan:
    variants, registry = request.variants, request.variants.registry
    return Plan(
        work=request.out / "work",
        profile=request.profile,
        design=request.design,
        rare=rare,
        generators=tuple(
            PlannedVariant(
                name,
                options.model_dump(mode="json"),
                registry.code_of("generator", name),
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
        init=request.init,
        unet=request.unet,
        device=request.device,
        threads=max(1, available_cores() // jobs),
        deadline_s=request.deadline_s,
        memory_gib=request.memory_gib,
    )


def _announce(plan: Plan, folds: Sequence[Fold], label_of: Mapping[str, str], jobs: int, bar: Progress) -> None:
    """Print what will be done."""
    if bar.disable:
        return
    names = [generator.name for generator in plan.generators]
    bar.console.print(
        f"{len(label_of)} patients, {len(folds)} folds, {plan.design.seeds} seeds, {jobs} at a time: a U-Net for each "
        f"fold; then, for each fold and seed, {len(COMPARATORS)} comparators"
        + (f" and {', '.join(names)}" if names else ""),
        soft_wrap=True,
    )


def _run_folds(
    plan: Plan, folds: Sequence[Fold], cases: Mapping[str, Case], jobs: int, bar: Progress
) -> dict[tuple[int, int], list[Path]]:
    """Every fold's U-Net, then every fold with every seed; in processes. The files of answers by fold and seed."""
    seeds = plan.design.all_seeds
    row = bar.add_task("folds and seeds", total=len(folds) * (1 + len(seeds)))
    files: dict[tuple[int, int], list[Path]] = {}
    rows = Rows(bar)
    if jobs == 1:
        send_to(rows)
        for fold in folds:
            fit_segmentation(plan, fold, cases, seeds[0])
            bar.advance(row)
            for seed in seeds:
                files[fold.number, seed] = grade_fold(plan, fold, seed)
                bar.advance(row)
        return files
    others, context = set(multiprocessing.active_children()), multiprocessing.get_context("spawn")
    reports: SimpleQueue[Report | None] = context.SimpleQueue()
    with (
        received(reports, rows),
        ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=(reports,)) as pool,
    ):

        def segment(some: Sequence[Fold]) -> dict[Future[Any], tuple[Fold, int | None]]:
            return {pool.submit(fit_segmentation, plan, fold, cases, seeds[0]): (fold, None) for fold in some}

        # a U-Net of another run: one extraction serves all folds, so the first fold comes first
        later = list(folds[1:]) if plan.unet is not None else []
        pending = segment(folds[: len(folds) - len(later)])
        try:
            while pending:
                for done in wait(pending, return_when=FIRST_COMPLETED).done:
                    fold, graded_with = pending.pop(done)
                    result = done.result()
                    bar.advance(row)
                    if graded_with is not None:
                        files[fold.number, graded_with] = result
                        continue
                    pending |= {pool.submit(grade_fold, plan, fold, seed): (fold, seed) for seed in seeds}
                    pending |= segment(later)
                    later = []
        except BaseException as error:  # do not wait for running fits: their epochs are kept
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                reason = "a process was killed, most likely for lack of memory; run the same command with --jobs 1"
                raise PluginError(reason) from None
            raise
    return files


def _start_worker(reports: SimpleQueue[Report | None]) -> None:
    configure_logging("error", "auto")
    end_with_parent()
    send_to(reports.put)


def _made(
    request: EvaluateRequest, folds: int, label_of: Mapping[str, str], scans: Sequence[CutScan]
) -> dict[str, Any]:
    design, labels = request.design, sorted(label_of.values())
    return {
        "command": " ".join(["gliaflow", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "profile": asdict(request.profile),
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
