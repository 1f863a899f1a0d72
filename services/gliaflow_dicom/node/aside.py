"""Studies that wait for a person: refused, failed or incomplete. Each is a folder in ``aside`` with its reason.

``gliaflow dicom list``, ``retry`` and ``delete`` use this module beside a running node, so all steps are renames.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from gliaflow_plugins.dicom.choose import FlairRules, find_series
from gliaflow_plugins.dicom.headers import Fields, quiet, read_header
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import write_whole

from gliaflow_dicom.node.spool import COMPLETE, READS, REASON

Kind = Literal["refused", "failed", "incomplete"]
IMAGE = re.compile(r"[0-9a-f]{32,64}\.dcm")


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
    reason = _renamed(folder, reason)
    write_whole(folder / REASON, json.dumps(asdict(SetAside(study, kind, reason, images, time.time()))), sync=True)
    for note in (READS, COMPLETE):
        (folder / note).unlink(missing_ok=True)
    folder.rename(spool / "aside" / study)


def _renamed(folder: Path, reason: str) -> str:
    """The reason, with its images named as the archive shows them: by InstanceNumber, or by UID if numbers repeat."""
    numbers, uids = {}, {}
    for name in {*IMAGE.findall(reason)}:
        with contextlib.suppress(OSError, ValueError), quiet():
            (image,) = folder.glob(f"*/{name}")
            fields = read_header(image, ("InstanceNumber", "SOPInstanceUID")).fields
            numbers[name], uids[name] = _number(fields), fields.text("SOPInstanceUID") or name
    distinct = len({*numbers.values()} - {None}) == len(numbers)
    names = {name: f"image {number}" if distinct else f"SOP instance {uids[name]}" for name, number in numbers.items()}
    return IMAGE.sub(lambda match: names.get(match[0], match[0]), reason)


def _number(fields: Fields) -> int | None:
    with contextlib.suppress(ValueError):
        return fields.whole("InstanceNumber")
    return None


def list_aside(spool: Path) -> list[SetAside]:
    """All of them, the oldest first."""
    each = []
    for folder in (spool / "aside").glob("[!.]*/"):
        with contextlib.suppress(FileNotFoundError):  # it was just moved back
            each.append(_read(folder))
    return sorted(each, key=lambda one: one.at)


def _read(folder: Path) -> SetAside:
    """Raises FileNotFoundError: the folder has just been moved."""
    try:
        record = json.loads((folder / REASON).read_text())
        kind, reason, images, at = (record[name] for name in ("kind", "reason", "images", "at"))
        return SetAside(folder.name, kind, str(reason), int(images), float(at))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        images = sum(1 for _ in folder.glob("*/*.dcm"))
        reason = f"the reason is lost ({REASON} is damaged): retry or delete the study"
        return SetAside(folder.name, "failed", reason, images, folder.stat().st_mtime)


def choose_aside(spool: Path, starts: Sequence[str]) -> list[SetAside]:
    """Those whose ids start with one of these. Raises UsageError if a start matches none."""
    each = list_aside(spool)
    for start in starts:
        if not any(one.study.startswith(start) for one in each):
            raise UsageError(f"no study that is set aside has an id that starts with {start!r} (gliaflow dicom list)")
    return [one for one in each if one.study.startswith(tuple(starts))]


def study_uid(spool: Path, study: str) -> str:
    """The StudyInstanceUID of a study that is set aside, to find it in the archive; empty if no image can be read."""
    for image in sorted((spool / "aside" / study).glob("*/*.dcm")):
        with contextlib.suppress(OSError, ValueError), quiet():
            return read_header(image, ("StudyInstanceUID",)).fields.text("StudyInstanceUID")
    return ""


def check_series(spool: Path, study: str, wanted: Sequence[str]) -> None:
    """Raise UsageError if no series of a study that is set aside is one of ``wanted``: with the list of its series."""
    found = find_series(sorted((spool / "aside" / study).glob("*/*.dcm")), FlairRules(wanted=tuple(wanted)))
    if not found.matched:
        series = "; ".join(found.every) or "none that can be read"
        raise UsageError(f"--series {' or '.join(wanted)}: study {study[:12]} has no such series. It has: {series}")


def take_back(spool: Path, study: str, *, declared: Sequence[str] | None = None) -> None:
    """Move a study back to those that wait for their answer, and join it with images that came since.

    ``declared``: a person says that no more images come, and which series to take (nothing: by the rules).

    Raises
    ------
    FileNotFoundError: the study is not set aside any more.
    """
    source, target = spool / "aside" / study, spool / "studies" / study
    if declared is not None:
        write_whole(source / COMPLETE, json.dumps(list(declared)))
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _join(source, target)
    (target / REASON).unlink(missing_ok=True)


def _join(source: Path, target: Path) -> None:
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
    if (source / COMPLETE).exists():
        (source / COMPLETE).replace(target / COMPLETE)
    shutil.rmtree(source)


def delete_aside(spool: Path, study: str) -> None:
    """Delete a study for good. Raises FileNotFoundError: the study is not set aside any more."""
    gone = spool / "aside" / f".{uuid4().hex}"
    (spool / "aside" / study).rename(gone)
    shutil.rmtree(gone)
