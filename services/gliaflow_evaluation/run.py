"""``gliaflow evaluate``: do synthetic features help to grade this cohort? Asked of patients that nothing was fitted on.

The folds (``folds``) run beside each other in processes; here patients are dealt to them, and their answers
(``summary``) become ``metrics.json`` (``metrics_schema``) and ``report.html``.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import Cohort, PluginError
from gliaflow_plugins.registry import Registry
from gliaflow_proto import message_id
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import available_cores
from gliaflow_trainer.processes import end_with_parent
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.steps import initial, same_run, versions
from gliaflow_trainer.train import cut_cohort, made_by
from gliaflow_trainer.variants import choose
from rich.progress import Progress

from gliaflow_evaluation.comparators import PLAIN
from gliaflow_evaluation.fold import fit_segmentation, grade_fold
from gliaflow_evaluation.protocol import CLASSES, Fold, Plan, ProtocolName, Task, classes_to_split_by, deal, rare_class
from gliaflow_evaluation.report.page import write_report
from gliaflow_evaluation.report.schema import SCHEMA, Metrics, write_metrics
from gliaflow_evaluation.report.verdict import ARMS
from gliaflow_evaluation.summary import summarise

LATER = ("tap", "cropped", "classifier", "generators", "classifiers")  # of a profile: the U-Net does not depend on it


def evaluate(
    cohort: Cohort,
    folder: Path,
    out: Path,
    profile: Profile,
    registry: Registry,
    *,
    protocol: ProtocolName = "grouped",
    task: Task = "grade",
    folds: int = 5,
    seeds: int = 5,
    seed: int = 0,
    generators: str = "infogan",
    options: Mapping[str, Any] | None = None,
    counts: Sequence[int] = (100, 400),
    scarce: Sequence[int] = (),
    shuffle: bool = True,
    init: Path | None = None,
    unet: Path | None = None,
    high: Sequence[str] = (),
    device: str = "cpu",
    jobs: int = 0,
    deadline_s: float = 86400,
    bar: Progress,
) -> Metrics:
    """Run the whole protocol and write ``metrics.json``, ``figures.npz`` and ``report.html`` to ``out``.

    ``out/work`` keeps what was fitted: called again, with the same cohort, profile and folds, only what is new is
    done; after a kill it goes on.

    Parameters
    ----------
    protocol: ``grouped``: stratified folds by patient; ``paper``: one split with the paper's shares of test patients.
    task: ``grade``: HGG or LGG, by patient; ``tumour``: slices with tumour or without, whatever the grade.
    seeds: how often all but the U-Net is fitted anew.
    generators, options: the variants and their options, as ``choose`` reads them.
    counts: how many synthetic samples to add.
    scarce: patients of the rare class to learn from, in a series of its own each.
    shuffle: also run on shuffled labels, which must give chance.
    init: a bundle whose U-Net every fold's starts from. unet: a bundle whose U-Net is used as it is, in all folds;
        neither may have seen this cohort.
    jobs: processes; 0: one a core.
    deadline_s: a fit of a generator that does not ship is ended after so long, and the rest goes on without it.

    Raises
    ------
    PluginError: too few patients of a class, an unknown generator, or ``out/work`` is of another run.
    """
    variants = choose(registry, generators, profile, options)
    if taken := sorted(set(variants.generators) & (ARMS.keys() - {plain.name for plain in PLAIN})):
        raise PluginError(f"generator {taken[0]!r}: an arm without a generator has this name; give yours another")
    if variants.generators and not any(counts):
        raise PluginError("counts: with a generator, say how many synthetic samples to add (--counts 100,400)")
    if unet is not None:
        profile = replace(profile, input=Bundle(unet).manifest.input)
    cases = {case.id: case for case in cohort.cases if case.mask is not None and case.label}
    if not cases:
        raise PluginError(f"{folder}: no scan has a mask and a grade")
    # what can be told before anything is done
    deal(classes_to_split_by({case.patient: str(case.label) for case in cases.values()}, task), protocol, folds, seed)
    if init is not None:
        initial(init, profile)
    began = time.monotonic()
    work = out / "work"
    same_run(
        work,
        {
            "cohort": str(folder.resolve()),
            "cases": message_id(*sorted(f"{c.id} {c.patient} {c.label}" for c in cohort.cases)),
            "profile": {key: value for key, value in asdict(profile).items() if key not in LATER},
            "protocol": [protocol, task, folds, seed],
            "init": init and Bundle(init).id,
            "unet": unet and Bundle(unet).id,
            "high": list(high),
        },
    )
    scans = cut_cohort(cases.values(), profile, work, bar)
    label_of = {scan.patient: scan.label or "not known" for scan in scans}
    dealt = deal(classes_to_split_by(label_of, task), protocol, folds, seed)
    jobs = 1 if device != "cpu" else jobs or min(available_cores(), len(dealt))
    plan = Plan(
        work=work,
        profile=profile,
        task=task,
        rare=rare_class(label_of, task),
        tap=profile.tap,
        generators=tuple((name, each.model_dump(mode="json")) for name, each in variants.generators.items()),
        classifier=(variants.classifier, variants.classifier_options.model_dump(mode="json")),
        code={name: registry.code_of("generator", name) for name in variants.generators}
        | {"": registry.code_of("classifier", variants.classifier)},
        apart=tuple(name for name in variants.generators if not registry.ships("generator", name)),
        deadline_s=deadline_s,
        counts=tuple(counts),
        scarce=tuple(scarce),
        shuffle=shuffle,
        seed=seed,
        device=device,
        threads=max(1, available_cores() // jobs),
        init=init,
        unet=unet,
    )
    answers = _run(plan, dealt, cases, range(seed, seed + seeds), jobs, bar)
    table, figures = summarise(plan, dealt, answers, scans)
    made = {
        "command": " ".join(["gliaflow", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "versions": versions(),
        "profile": asdict(profile),
        "device": device,
        "cohort": {
            "folder": folder.resolve().name,
            "layout": cohort.layout,
            "patients": {label: list(label_of.values()).count(label) for label in sorted(set(label_of.values()))},
            "slices": sum(len(scan.image) for scan in scans),
            "high": list(high),
            "phantoms": bool(made_by(folder)),
        },
        "protocol": {"name": protocol, "folds": len(dealt), "repeats": 1, "seeds": list(range(seed, seed + seeds))},
        "task": task,
        "classes": CLASSES[task],
        "counts": list(counts),
        "init": Bundle(init).id if init is not None else None,
        "unet": Bundle(unet).id if unet is not None else None,
    }
    metrics = Metrics.model_validate({"schema": SCHEMA, **table, "made": {**table.pop("made"), **made}})
    write_metrics(metrics, out / "metrics.json")
    np.savez_compressed(out / "figures.npz", **figures)  # type: ignore[arg-type]  # its stub takes them for flags
    write_report(metrics, figures, out / "report.html")
    return metrics


def _run(
    plan: Plan, dealt: Sequence[Fold], cases: Mapping[str, Any], seeds: Sequence[int], jobs: int, bar: Progress
) -> dict[tuple[int, int], list[Path]]:
    """Every fold's U-Net, and every fold with every seed; in processes, which leave their results as files."""
    task = bar.add_task("folds and seeds", total=len(dealt) * (1 + len(seeds)))
    answers: dict[tuple[int, int], list[Path]] = {}
    if jobs == 1:
        for fold in dealt:
            fit_segmentation(plan, fold, cases, min(seeds))
            bar.advance(task)
            for seed in seeds:
                answers[fold.number, seed] = grade_fold(plan, fold, seed)
                bar.advance(task)
        return answers
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, spawn, _worker) as pool:
        # a U-Net from elsewhere: one extraction for all
        first = list(dealt[:1] if plan.unet is not None else dealt)
        pending: dict[Future[Any], tuple[Fold, int | None]] = {
            pool.submit(fit_segmentation, plan, fold, cases, min(seeds)): (fold, None) for fold in first
        }
        later = [fold for fold in dealt if fold not in first]
        try:
            while pending:
                for done in wait(pending, return_when=FIRST_COMPLETED).done:
                    fold, finished = pending.pop(done)
                    result = done.result()
                    bar.advance(task)
                    if finished is not None:
                        answers[fold.number, finished] = result
                        continue
                    for each in seeds:
                        pending[pool.submit(grade_fold, plan, fold, each)] = (fold, each)
                    for other in later:
                        pending[pool.submit(fit_segmentation, plan, other, cases, min(seeds))] = (other, None)
                    later = []
        except BaseException as error:  # what is being fitted is not waited for: it is kept to the epoch
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                told = "a process was killed, most likely for want of memory; go on with the same command and --jobs 1"
                raise PluginError(told) from None
            raise
    return answers


def _worker() -> None:
    """Prepares a process of the pool."""
    configure_logging("error", "auto")
    end_with_parent()
