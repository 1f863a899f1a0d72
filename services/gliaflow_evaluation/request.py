"""What ``gliaflow evaluate`` is to do: the command builds an ``EvaluateRequest``, and ``evaluate`` takes it whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gliaflow_plugins.contracts import Case, Cohort
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.variants import Variants

from gliaflow_evaluation.protocol import Design


@dataclass(frozen=True)
class EvaluateRequest:
    """An evaluation of generators on one cohort."""

    cohort: Cohort
    folder: Path  # that the cohort was read from
    out: Path  # of the report; ``out/work`` keeps the work so far
    profile: Profile  # sizes of slices and networks, and the options of each fit
    variants: Variants  # generators and classifier with their options (``choose``)
    design: Design = field(default_factory=Design)
    init: Path | None = None  # a bundle whose U-Net every fold's starts from
    unet: Path | None = None  # a bundle whose U-Net is used unchanged; neither may have seen this cohort
    high: Sequence[str] = ()  # the grades that count as HGG; they are noted in the report
    unlabelled: Sequence[Case] = ()  # scans of other patients, of which no mask and no grade is read
    source: Sequence[Case] = ()  # scans of another cohort, each with a mask and a class
    allow: bool = False  # evaluate in spite of leaks, and note them in the report
    device: str = "cpu"
    jobs: int = 0  # processes; 0: as many as the cores allow
    threads: int = 0  # of each fit: another number gives other last digits; 0: one, on a GPU one a core
    scheduler: str = ""  # address of a Dask scheduler, tcp://… or tls://…; its workers take the place of processes
    deadline_s: float = 86400  # a longer fit of a third-party generator is ended, and the others continue
    memory_gib: float | None = None  # so is one whose process takes more memory
