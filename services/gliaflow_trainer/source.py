"""The labelled scans of another cohort (``--source``): cut and turned into features as the cohort's are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_proto import message_id
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_store.feature_store import FeatureStore, Samples
from rich.progress import Progress

from gliaflow_trainer.features import extract
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.run_folder import settings_of
from gliaflow_trainer.slices import CutScan, cut_cases, kept_scans


def source_name(cases: Sequence[Case], profile: Profile) -> str:
    """The name of the work folder of these scans: other scans, patients, grades or sequences have another one."""
    return f"source-{message_id(json.dumps(settings_of(cases, profile.input.channels), sort_keys=True))[:12]}"


def cut_source(cases: Sequence[Case], profile: Profile, work: Path, bar: Progress) -> list[CutScan]:
    """Cut each scan into a folder of its own in the run's ``work``. Scans that cannot be used are named and left out.

    Parameters
    ----------
    cases: each with a mask and a class.

    Raises
    ------
    PluginError: no scan can be used, or files changed since an earlier run cut them.
    """
    folder = work / source_name(cases, profile)
    scans = cut_cases(cases, profile, folder, bar, run=work)
    if not scans:
        raise PluginError("--source: no scan can be used")
    return scans


def require_both_classes(samples: Samples, of: str) -> None:
    """Raise PluginError if the samples are of one class."""
    missing = [name for label, name in enumerate(samples.classes) if label not in samples.labels]
    if missing:
        raise PluginError(
            f"{of}no sample is of {' or '.join(missing)}: there are no such scans, or the U-Net found no tumour in them"
        )


def source_features(
    request: TrainRequest, work: Path, bundle: Bundle, folder: Path, context: RunContext
) -> FeatureStore | None:
    """Those of a training with its work in ``work``; None: it has no such scans."""
    if not request.source:
        return None
    cut, cropped = work / source_name(request.source, request.profile), request.profile.cropped
    return extract_source(cut, bundle, folder, context, cropped=cropped)


def extract_source(
    work: Path, bundle: Bundle, folder: Path, context: RunContext, *, cropped: bool, threads: int = 0
) -> FeatureStore:
    """Features of all slices that ``cut_source`` left in ``work``, as ``extract`` does."""
    return extract(kept_scans(work / "slices"), bundle, folder, context, cropped=cropped, threads=threads)
