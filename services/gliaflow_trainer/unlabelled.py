"""Scans without labels: cut and turned into features as the cohort's are. No mask and no grade of theirs is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gliaflow_plugins.cohorts.patient_names import loose
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_proto import CLASSES, message_id
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import FeatureStore
from rich.progress import Progress

from gliaflow_trainer.features import extract
from gliaflow_trainer.leaks import refuse_leaks
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.slices import CutScan, cut_cases, kept_scans


def folder_name(cases: Iterable[Case]) -> str:
    """The name of the work folder of these scans: other scans have another one."""
    return f"unlabelled-{message_id(*sorted(case.id for case in cases))[:12]}"


def cut_unlabelled(cases: Sequence[Case], profile: Profile, work: Path, bar: Progress) -> list[CutScan]:
    """Cut each scan into ``work / "slices"``. Scans that cannot be used are named and left out.

    Raises
    ------
    PluginError: no scan can be used, or files changed since an earlier run cut them.
    """
    scans = cut_cases([replace(case, mask=None, grade=None, label=None) for case in cases], profile, work, bar)
    if not scans:
        raise PluginError("--unlabelled: no scan can be used")
    return scans


def refuse_known(unlabelled: Sequence[CutScan], cohort: Sequence[CutScan], allow: bool, bar: Progress) -> list[str]:
    """The leaks by scans without labels that are of the cohort's patients, by voxels or name; see ``refuse_leaks``."""
    voxels = {scan.voxels: scan.case for scan in cohort}
    names = {loose(scan.patient): scan.patient for scan in cohort if loose(scan.patient)}
    leaks = []
    for scan in unlabelled:
        if scan.voxels in voxels:
            leaks.append(f"the scan without a label {scan.case!r} has the voxels of {voxels[scan.voxels]!r}")
        elif known := names.get(loose(scan.patient)):
            leaks.append(f"the scan without a label {scan.case!r} is of a patient with the name of {known!r}")
    refuse_leaks(leaks, allow, bar)
    return leaks


def extract_unlabelled(
    work: Path, bundle: Bundle, folder: Path, context: RunContext, *, cropped: bool, threads: int = 0
) -> FeatureStore:
    """Features of all slices that ``cut_unlabelled`` left in ``work``, as ``extract`` does. All labels are the same."""
    scans = [replace(scan, label=CLASSES[0]) for scan in kept_scans(work / "slices")]  # a store has labels
    return extract(scans, bundle, folder, context, cropped=cropped, threads=threads)


def unlabelled_features(
    request: TrainRequest, work: Path, bundle: Bundle, folder: Path, context: RunContext
) -> FeatureStore | None:
    """Those of the scans without labels of a training with its work in ``work``; None: it has no such scans."""
    if not request.unlabelled:
        return None
    cut, cropped = work / folder_name(request.unlabelled), request.profile.cropped
    return extract_unlabelled(cut, bundle, folder, context, cropped=cropped)
