"""What ``gliaflow train`` and ``gliaflow evaluate`` share: they need torch, and read the same flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_plugins.augmentations.pipeline import parse_named
from gliaflow_plugins.cohorts.read import CohortRequest
from gliaflow_plugins.cohorts.scan_files import not_read
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort, SequenceFile
from gliaflow_plugins.registry import Registry
from gliaflow_proto import SEQUENCES
from gliaflow_runtime.bundle.load import Bundle, find_bundle
from gliaflow_runtime.bundle.manifest import TAPS, BundleError, StepSpec
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import load_settings, parse_pairs

from gliaflow_cli.terminal import print_left_out, print_problem_lines, print_problems

if TYPE_CHECKING:
    from gliaflow_trainer.profiles import Profile
    from rich.progress import Progress

NEEDED = ("torch", "onnxscript", "sklearn", "threadpoolctl", "matplotlib")


def prepare(*more: tuple[str, str]) -> None:
    """Set up the process before torch is imported.

    Threads that spin while they wait take the cores from each other on a busy machine: four times slower here.

    Parameters
    ----------
    more: modules that are needed beside torch, each with its extra.

    Raises
    ------
    UsageError: a library of the extra "train" is missing, or one of these modules.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    configure_logging("error", "auto")  # problems of scans are printed beside the progress
    for module, extra in (*((each, "train") for each in NEEDED), *more):
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise UsageError(f"this needs {module}: pip install 'gliaflow[{extra}]'") from None


def read_cohort(request: CohortRequest, registry: Registry, bar: Progress) -> Cohort:
    """The cohort, after its problems and what was left out are printed. The bar shows that it is being read."""
    row = bar.add_task(f"reading {request.folder}", total=None)
    cohort = request.read(registry)
    bar.remove_task(row)
    print_problems(cohort)
    if request.folder.is_dir():
        print_left_out(not_read(cohort, request.folder), False, f"gliaflow cohort {request.folder} -v lists them")
    return cohort


def read_other_cohort(folder: Path | None, cohort: CohortRequest, registry: Registry, bar: Progress) -> list[Case]:
    """The scans of ``--source``. Grades count as HGG as in the cohort; its table of grades and its reader do not apply.

    Raises
    ------
    UsageError: no scan has a mask and a grade.
    """
    if folder is None:
        return []
    request = CohortRequest(folder, high=cohort.high, rules=cohort.rules)
    cases = [case for case in read_cohort(request, registry, bar).cases if case.mask is not None and case.label]
    if not cases:
        raise UsageError(
            f"--source: no scan in {folder} has a mask and a grade; grades come from folders named HGG and LGG, or "
            "from a table of the scans with a column for them (docs/cohorts.md)"
        )
    return cases


def read_unlabelled(folder: Path | None, channels: Sequence[str], series: Sequence[str]) -> list[Case]:
    """The scans of ``--unlabelled``, found as ``gliaflow submit`` does, after what was left out is printed.

    Parameters
    ----------
    channels: the sequences that the U-Net sees.
    series: of ``--series``: which DICOM series are FLAIR.

    Raises
    ------
    UsageError: there is no scan.
    """
    from gliaflow.scans import ScanRequest, find_inputs

    if folder is None:
        return []
    found = find_inputs([folder], ScanRequest(series=series, sequences=channels[1:]))
    print_left_out(found.left_out, False)
    print_problem_lines(found.problems)
    print_problem_lines([f"{item.name}: {doubt}" for item in found.inputs for doubt in item.warnings])
    cases = []
    for item in found.inputs:
        others = {
            name: SequenceFile(each.volume or NiftiFile(each.path), each.channel)
            for name, each in item.sequences.items()
        }
        scan = item.volume or NiftiFile(item.path)
        cases.append(Case(item.name, scan, None, item.patient, None, item.channel, sequences=others))
    return cases


def channels_of(profile: Profile, unet: Path | None) -> Sequence[str]:
    """The sequences that the U-Net sees: the profile's, or those of the bundle of ``--unet``."""
    return Bundle(unet).manifest.input.channels if unet is not None else profile.input.channels


def read_profile(
    name: str,
    tap: str | None,
    crop: bool | None,
    classifier: str | None,
    preprocess: Sequence[str] | None,
    epochs: int | None = None,
    folds: int | None = None,
) -> Profile:
    """The profile of this name, with the choices of these flags; None keeps the profile's own choice."""
    from gliaflow_trainer.profiles import PROFILES

    if name not in PROFILES:
        raise UsageError(f"--profile: {name!r} is not one of {', '.join(PROFILES)}")
    if tap is not None and tap not in TAPS:
        raise UsageError(f"--tap: {tap!r} is not one of {', '.join(TAPS)}")
    profile = PROFILES[name]
    steps = tuple(StepSpec(name=step, options=options) for step, options in map(parse_named, preprocess or []))
    length = {} if epochs is None else {"epochs": epochs}
    return dataclasses.replace(
        profile,
        input=profile.input.model_copy(update={"steps": steps}),
        classifier=classifier or profile.classifier,
        unet={**profile.unet, **length},
        fine_tune={**profile.fine_tune, **length},
        tap=profile.tap if tap is None else tap,
        cropped=profile.cropped if crop is None else crop,
        folds=profile.folds if folds is None else folds,
    )


def choose_sequences(profile: Profile, channels: str | None, drop: float | None) -> Profile:
    """The profile with the sequences of ``--channels``, of which ``--drop`` says whether scans may lack them."""
    from gliaflow_trainer.profiles import DROP, with_sequences

    names = {name.strip().casefold() for name in (channels or "flair").split(",")}
    if not {"flair"} <= names <= set(SEQUENCES):
        raise UsageError(
            f"--channels: {channels!r} is not flair with some of {', '.join(SEQUENCES[1:])}, separated by commas"
        )
    if names == {"flair"}:
        if drop is not None:
            raise UsageError("--drop: the FLAIR alone cannot be left out; name more sequences (--channels flair,t1ce)")
        return profile
    return with_sequences(profile, tuple(name for name in SEQUENCES if name in names), DROP if drop is None else drop)


NONE = "none"
"""The value of ``--init`` with which a fit starts from random weights."""


def find_unet(flag: str, where: str | None, profile: Profile) -> Path | None:
    """The bundle of ``--init`` or ``--unet``, after a check that its U-Net can be used with this profile.

    Without ``--init``, the profile's; None if there is none.

    Raises
    ------
    UsageError: there is no such bundle, its U-Net is missing or damaged, or it is of another size or tap.
    """
    from gliaflow_trainer.fine_tuning import unet_to_fine_tune

    if flag == "init":
        where = profile.init if where is None else where
    if not where or where == NONE:
        return None
    try:
        folder = find_bundle(where, load_settings().bundles)
        if flag == "init":
            unet_to_fine_tune(folder, profile)
        else:
            Bundle(folder, profile.tap).model("unet")
    except BundleError as error:
        raise UsageError(f"--{flag}: {error}") from None
    return folder


def read_options(texts: Sequence[str] | None) -> dict[str, str]:
    """The options of ``--option name=value``, by name."""
    values: dict[str, str] = {}
    for text in texts or []:
        try:
            values |= parse_pairs(text)
        except ValueError as error:
            raise UsageError(f"--option: {error}; for example steps=100 or reacgan.steps=100") from None
    return values
