"""The labelled scans of another cohort (``--source``): cut and turned into features as the cohort's are."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_proto import CLASSES, message_id
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


def refuse_one_class(cases: Collection[Case]) -> None:
    """Raise PluginError if no scan is of some class. No scans at all are accepted."""
    missing = [label for label in CLASSES if not any(case.label == label for case in cases)]
    if cases and missing:
        raise PluginError(
            f"--source: no scan with a mask is of {' or '.join(missing)}; classes come from folders named HGG and LGG, "
            "or from a table of the scans with a column of grades (docs/cohorts.md)"
        )


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
    cut = kept_scans(work / source_name(request.source, request.profile) / "slices")
    return extract(cut, bundle, folder, context, cropped=request.profile.cropped)
