"""The commands that do work and show its progress: submit, generate, phantom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gliaflow.scans import cohort_inputs, find_inputs
from gliaflow.submission import Input, NoStage, Submission
from gliaflow_plugins.registry import load_registry
from gliaflow_proto import CLASSES, FailureMessage, PredictionMessage, SyntheticMessage
from gliaflow_runner.pipeline import SERVICES, Pipeline, open_broker
from gliaflow_runtime import tracing
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import Settings
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.numpy import save_file

from gliaflow_cli.client.table import TABLE, Row, read_table, submit

if TYPE_CHECKING:
    from gliaflow_cli.commands.learn import CohortChoice

QUIET_S = 600.0  # generate: no answer for so long means that no generator runs


def run_submit(
    paths: Sequence[str],
    out: Path,
    grade: str | None,
    channel: str | None,
    resume: bool,
    timeout_s: float,
    settings: Settings,
    console: Console,
    *,
    labelled: CohortChoice | None = None,
) -> int:
    """``gliaflow submit``, of paths or of a cohort with its labels; returns how many scans failed."""
    _check_grade(grade)
    if labelled is None:
        inputs = find_inputs(paths, grade=grade, channel=channel)
    else:
        cohort = labelled.read(load_registry(), console)
        inputs = cohort_inputs(cohort, labelled.folder.resolve().name, channel)
    before = {n: r for n, r in read_table(out / TABLE).items() if r.status == "ok"} if resume else {}
    todo = [item for item in inputs if item.name not in before]
    if before:
        console.print(f"{len(inputs) - len(todo)} of {len(inputs)} scans have an answer in {out}")
    with embedded(settings, todo) as alive, open_broker(settings) as broker, progress_bar(console) as bar:
        task = bar.add_task("scans", total=len(todo))

        def answered(item: Input, row: Row, _: PredictionMessage | None) -> None:
            if row.status == "failed":
                path = item.where.encode("utf-8", "replace").decode()
                bar.console.print(f"failed  {path}: {row.error}", style="red", soft_wrap=True)
            bar.advance(task)

        by_uri = is_embedded(settings)
        rows = submit(
            todo, out, broker, by_uri=by_uri, timeout_s=timeout_s, known=before, alive=alive, answered=answered
        )
    rows += before.values()
    failed = sum(row.status == "failed" for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} scans answered: {out / TABLE}", soft_wrap=True)
    return failed


def run_generate(label: str, count: int, seed: int, out: Path, settings: Settings, console: Console) -> None:
    """``gliaflow generate``."""
    _check_grade(label)
    parts: dict[int, SyntheticMessage] = {}
    with embedded(settings, []), open_broker(settings) as broker, progress_bar(console) as bar:
        task = bar.add_task(f"{label} features", total=count)
        with Submission(broker, by_uri=is_embedded(settings)) as submission:
            wanted = submission.generate(label, count, seed, settings.generator)
            while sum(len(part.features) for part in parts.values()) < count:
                answer = submission.answer(QUIET_S)
                if isinstance(answer, FailureMessage):
                    raise UsageError(f"{answer.stage}: {answer.reason}")
                if not isinstance(answer, SyntheticMessage):
                    why = submission.unreadable or "does a generator run on this broker?"
                    raise NoStage(f"no answer within {QUIET_S:g} s: {why}")
                first = next(iter(parts.values()), answer)
                if answer.scan.id == wanted and answer.features.shape[1:] == first.features.shape[1:]:
                    parts[answer.part[0]] = answer
                bar.update(task, completed=sum(len(part.features) for part in parts.values()))
    features = np.concatenate([parts[index].features for index in sorted(parts)])
    labels = np.full(len(features), CLASSES.index(label), dtype=np.int64)
    metadata = {
        "class": label,
        "classes": ",".join(CLASSES),
        "bundle": first.bundle,
        "generator": first.generator,
        "tap": first.tap,
        "seed": str(seed),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": features, "label": labels}, out, metadata)
    console.print(
        f"{len(features)} {label} features {features.shape[1:]} by {first.generator} of {first.bundle}: {out}",
        soft_wrap=True,
    )


def run_phantom(out: Path, patients: int, seed: int, hgg_share: float, console: Console) -> None:
    """``gliaflow phantom``."""
    from gliaflow_phantoms.phantom import write_cohort

    with progress_bar(console) as bar:
        task = bar.add_task("phantoms", total=patients)
        write_cohort(
            out,
            patients,
            seed,
            hgg_share=hgg_share,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    console.print(f"{patients} patients: {out}")


@contextmanager
def embedded(settings: Settings, inputs: Sequence[Input]) -> Iterator[Callable[[], None]]:
    """All services in this process, if the broker is ``memory://``; otherwise they run elsewhere.

    Gives a function that raises once one of them has failed.
    """
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else "error", settings.log_format)
    tracing.start("client")
    if not is_embedded(settings):
        yield lambda: None
        return
    roots = sorted({item.uri.rpartition("/")[0] or str(item.path.resolve().parent) for item in inputs})
    with Pipeline(list(SERVICES), settings.model_copy(update={"roots": [*settings.roots, *roots]})) as pipeline:
        yield pipeline.check


def is_embedded(settings: Settings) -> bool:
    """Whether the stages run in this process."""
    return settings.broker.startswith("memory:")


def progress_bar(console: Console) -> Progress:
    """A bar with count, time taken and time left, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, highlight=False),
    )


def _check_grade(grade: str | None) -> None:
    if grade is not None and grade not in CLASSES:
        raise UsageError(f"--grade: {grade!r} is not one of {', '.join(CLASSES)}")
