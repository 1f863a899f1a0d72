"""Studies that wait for a person: refused, failed or incomplete. Each is a folder in ``aside`` with its reason.

``gliaflow dicom list``, ``retry`` and ``delete`` use this module beside a running node, so all steps are renames.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import write_whole

from gliaflow_dicom.node.spool import COMPLETE, READS, REASON

Kind = Literal["refused", "failed", "incomplete"]


@dataclass(frozen=True)
class SetAside:
    """A study that waits for a person. ``at``: the Unix time."""

    study: str
    kind: Kind
    reason: str
    images: int
    at: float


def set_aside(spool: Path, study: str, kind: Kind, reason: str) -> None:
    """Move a study out of the way, with the reason. ``spool``: the spool's folder."""
    if (spool / "aside" / study).exists():
        take_back(spool, study)
    folder = spool / "studies" / study
    images = sum(1 for _ in folder.glob("*/*.dcm"))
    write_whole(folder / REASON, json.dumps(asdict(SetAside(study, kind, reason, images, time.time()))), sync=True)
    for note in (READS, COMPLETE):
        (folder / note).unlink(missing_ok=True)
    folder.rename(spool / "aside" / study)


def list_aside(spool: Path) -> list[SetAside]:
    """All of them, the oldest first."""
    each = []
    for folder in (spool / "aside").glob("[!.]*/"):
        with contextlib.suppress(FileNotFoundError):  # it was just moved back
            each.append(SetAside(**json.loads((folder / REASON).read_text())))
    return sorted(each, key=lambda one: one.at)


def choose_aside(spool: Path, starts: Sequence[str]) -> list[SetAside]:
    """Those whose ids start with one of these. Raises UsageError if a start matches none."""
    each = list_aside(spool)
    for start in starts:
        if not any(one.study.startswith(start) for one in each):
            raise UsageError(f"no study that is set aside has an id that starts with {start!r} (gliaflow dicom list)")
    return [one for one in each if one.study.startswith(tuple(starts))]


def take_back(spool: Path, study: str, *, declared: Sequence[str] | None = None) -> None:
    """Move a study back to those that wait for their answer, and join it with images that came since.

    ``declared``: a person says that no more images come, and which series to take (nothing: by the rules).
    """
    source, target = spool / "aside" / study, spool / "studies" / study
    target.mkdir(0o700, exist_ok=True)
    for series in source.glob("*/"):
        if not (target / series.name).exists():
            series.rename(target / series.name)
            continue
        for image in series.glob("*.dcm"):
            if (target / series.name / image.name).exists():
                image.unlink()  # the later image counts
            else:
                image.rename(target / series.name / image.name)
        shutil.rmtree(series)
    if declared is not None:
        write_whole(target / COMPLETE, json.dumps(list(declared)))
    shutil.rmtree(source)


def delete_aside(spool: Path, study: str) -> None:
    """Delete a study for good."""
    gone = spool / "aside" / f".{uuid4().hex}"
    (spool / "aside" / study).rename(gone)
    shutil.rmtree(gone)
