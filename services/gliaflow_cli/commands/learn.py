"""The commands that learn: train, evaluate. Torch is imported here, and only when one of them is run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gliaflow_plugins.augmentations.pipeline import parse_named, read_augmentations
from gliaflow_plugins.cohorts.read import HIGH, read_cohort
from gliaflow_plugins.contracts import Cohort
from gliaflow_plugins.registry import Registry, load_registry
from gliaflow_runtime.bundle.manifest import StepSpec
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.logs import configure_logging
from rich.console import Console

from gliaflow_cli.commands.run import progress_bar

if TYPE_CHECKING:
    from gliaflow_trainer.profiles import Profile

TAPS = ("enc5", "enc4", "dec1", "dec2", "dec3")
NEEDED = ("torch", "onnxscript", "sklearn", "threadpoolctl", "matplotlib")


@dataclass(frozen=True)
class CohortChoice:
    """Which folder, and how to read it: the flags that ``cohort``, ``train`` and ``evaluate`` share."""

    folder: Path
    reader: str | None
    high: str | None
    grades: Path | None
    patient_column: str | None
    grade_column: str | None

    @property
    def high_grades(self) -> tuple[str, ...]:
        """The grades that count as HGG."""
        return tuple(grade.strip() for grade in self.high.split(",")) if self.high else tuple(HIGH)

    def read(self, registry: Registry, console: Console) -> Cohort:
        """The cohort; what is odd or missing is printed."""
        cohort = read_cohort(
            self.folder,
            registry,
            reader=self.reader,
            high=self.high_grades,
            grades=self.grades,
            patient_column=self.patient_column,
            grade_column=self.grade_column,
        )
        for problem in cohort.problems:
            console.print(f"problem   {problem}", style="yellow", soft_wrap=True)
        return cohort


def run_train(
    chosen: CohortChoice,
    out: Path,
    profile: str,
    console: Console,
    *,
    option: Sequence[str],
    augmentation: Sequence[str],
    epochs: int | None,
    tap: str | None,
    crop: bool | None,
    classifier: str | None,
    preprocess: Sequence[str],
    name: str | None,
    device: str,
    **settings: Any,
) -> None:
    """``gliaflow train``."""
    _prepare()
    from gliaflow_trainer.train import train

    registry = load_registry()
    with progress_bar(console) as bar, _processes(device, console, bar.console) as device:
        bundle = train(
            chosen.read(registry, console),
            chosen.folder,
            out,
            _profile(profile, tap, crop, classifier, preprocess, epochs),
            registry,
            options=_options(option),
            augmentations=[
                step
                for text in augmentation
                for step in (read_augmentations(Path(text)) if text.endswith(".toml") else [parse_named(text)])
            ],
            high=chosen.high_grades,
            name=name or out.resolve().name,
            device=device,
            bar=bar,
            **settings,
        )
    console.print(f"bundle {bundle.id}: {out}", soft_wrap=True)
    for key, value in bundle.manifest.metrics.items():
        console.print(f"  {key}: {value}", soft_wrap=True)


def run_evaluate(
    chosen: CohortChoice,
    out: Path,
    profile: str,
    console: Console,
    *,
    protocol: str,
    task: str,
    generators: str,
    option: Sequence[str],
    counts: str,
    scarce: str,
    tap: str | None,
    crop: bool | None,
    classifier: str | None,
    preprocess: Sequence[str],
    **settings: Any,
) -> None:
    """``gliaflow evaluate``."""
    _prepare()
    from gliaflow_evaluation.report.verdict import verdict
    from gliaflow_evaluation.run import evaluate

    for flag, value, known in (("protocol", protocol, ("grouped", "paper")), ("task", task, ("grade", "tumour"))):
        if value not in known:
            raise UsageError(f"--{flag}: {value!r} is not one of {', '.join(known)}")
    registry = load_registry()
    with progress_bar(console) as bar:
        metrics = evaluate(
            chosen.read(registry, console),
            chosen.folder,
            out,
            _profile(profile, tap, crop, classifier, preprocess),
            registry,
            protocol=protocol,  # type: ignore[arg-type]  # checked above
            task=task,  # type: ignore[arg-type]
            generators=generators,
            options=_options(option),
            counts=_numbers("counts", counts),
            scarce=_numbers("scarce", scarce),
            high=chosen.high_grades,
            bar=bar,
            **settings,
        )
    said = verdict(metrics)
    for sentence in (said.sentence, *said.more, *said.warnings):
        console.print(sentence, soft_wrap=True)
    console.print(f"{out / 'report.html'}", soft_wrap=True)


def _prepare() -> None:
    """What has to be so before torch is imported.

    Threads that spin while they wait take the cores from each other on a busy machine: four times slower here.

    Raises
    ------
    UsageError: a library of the extra "train" is missing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    configure_logging("error", "auto")  # what a scan lacks is told beside the progress
    for module in NEEDED:
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise UsageError(f"this needs {module}: pip install 'gliaflow[train]'") from None


@contextmanager
def _processes(device: str, *consoles: Console) -> Iterator[str]:
    """Under torchrun, one of its processes: joins the others and gives its own device; the first alone talks."""
    from torch import cuda, distributed

    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    # the others wait while the first cuts a whole cohort
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=1))
    for console in consoles:
        console.quiet = distributed.get_rank() > 0
    try:
        if device == "cuda":
            cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield device
    finally:
        for console in consoles:
            console.quiet = False
        distributed.destroy_process_group()


def _profile(
    name: str,
    tap: str | None,
    crop: bool | None,
    classifier: str | None,
    preprocess: Sequence[str],
    epochs: int | None = None,
) -> Profile:
    from gliaflow_trainer.profiles import PROFILES

    if name not in PROFILES:
        raise UsageError(f"--profile: {name!r} is not one of {', '.join(PROFILES)}")
    if tap is not None and tap not in TAPS:
        raise UsageError(f"--tap: {tap!r} is not one of {', '.join(TAPS)}")
    profile = PROFILES[name]
    steps = tuple(StepSpec(name=step, options=options) for step, options in map(parse_named, preprocess))
    chosen = {} if epochs is None else {"epochs": epochs}
    return dataclasses.replace(
        profile,
        input=profile.input.model_copy(update={"steps": steps}),
        classifier=classifier or profile.classifier,
        unet={**profile.unet, **chosen},
        fine_tune={**profile.fine_tune, **chosen},
        tap=profile.tap if tap is None else tap,
        cropped=profile.cropped if crop is None else crop,
    )


def _options(texts: Sequence[str]) -> dict[str, str]:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--option: {text!r} is not name=value")
        values[key] = value
    return values


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise UsageError(f"--{flag}: {text!r} is not a list of numbers with commas between") from None
    if any(number < 0 for number in numbers):
        raise UsageError(f"--{flag}: {text!r} has a number below 0")
    return numbers
