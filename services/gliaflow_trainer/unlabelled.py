"""Scans without labels: cut and turned into features as the cohort's are. No mask and no grade of theirs is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_proto import CLASSES, message_id
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import FeatureStore
from rich.progress import Progress

from gliaflow_trainer.features import extract
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.run_folder import settings_of
from gliaflow_trainer.slices import CutScan, cut_cases, kept_scans


def folder_name(cases: Sequence[Case], profile: Profile) -> str:
    """The name of the work folder of these scans: other scans, patients or sequences have another one."""
    settings = settings_of(map(_without_label, cases), profile.input.channels)
    return f"unlabelled-{message_id(json.dumps(settings, sort_keys=True))[:12]}"


def cut_unlabelled(cases: Sequence[Case], profile: Profile, work: Path, bar: Progress) -> list[CutScan]:
    """Cut each scan into a folder of its own in the run's ``work``. Scans that cannot be used are named and left out.

    Raises
    ------
    PluginError: no scan can be used, or files changed since an earlier run cut them.
    """
    folder = work / folder_name(cases, profile)
    # all of the run's work goes if files changed: features and answers of the old ones are in other folders of it
    scans = cut_cases(list(map(_without_label, cases)), profile, folder, bar, run=work)
    if not scans:
        raise PluginError("--unlabelled: no scan can be used")
    return scans


def _without_label(case: Case) -> Case:
    return replace(case, mask=None, grade=None, label=None)


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
    cut, cropped = work / folder_name(request.unlabelled, request.profile), request.profile.cropped
    return extract_unlabelled(cut, bundle, folder, context, cropped=cropped)
