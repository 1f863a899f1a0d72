"""Answers in the spool: DICOM objects that go to each destination, and are kept for some days.

::

    answers/<series>-<digest>/answer.json     what it is made from
    answers/<series>-<digest>/1_seg.dcm, …    the objects, in the order in which they are sent
    answers/<series>-<digest>/again.json      when the same series came again
    answers/<series>-<digest>/to-<peer>.json  what a destination has accepted

The digest is that of the objects' SOP instance UIDs, which depend on the images and the bundle. So the same images and
the same bundle give the same folder, and the bytes in it are sent again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from gliaflow_runtime.files import write_whole

from gliaflow_dicom.node.spool import Spool, sync

if TYPE_CHECKING:
    from pydicom import Dataset

HOUR_S = 3600.0
MAX_REPEATS = 3  # of an unchanged series in an hour; more are a loop: a PACS that sends the study on each change


@dataclass(frozen=True)
class Origin:
    """What an answer is made from. Studies, series and images are names in the spool.

    Parameters
    ----------
    images: those of the series, without their folder.
    received: all images of the study at that time, as of ``Spool.images``; they are deleted once the answer is kept.
    made: the Unix time.
    """

    study: str
    series: str
    images: list[str]
    received: dict[str, int]
    made: float


class KeptAnswer:
    """One folder of ``answers``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = Origin(**json.loads((folder / "answer.json").read_text()))

    @property
    def objects(self) -> list[Path]:
        """The DICOM files, in the order in which they are sent."""
        return sorted(self.folder.glob("*.dcm"))

    def repeats(self) -> list[float]:
        """When the same series came again, in the last hour."""
        return [at for at in _read(self.folder / "again.json", []) if abs(time.time() - at) < HOUR_S]

    def came_again(self) -> None:
        write_whole(self.folder / "again.json", json.dumps([*self.repeats(), time.time()]))

    def accepted(self, destination: str) -> list[str]:
        """The names of the objects that a destination has accepted."""
        return [str(name) for name in _read(self._record(destination), [])]

    def accept(self, destination: str, name: str) -> None:
        """Record that a destination has accepted an object."""
        done = [*self.accepted(destination), name]
        write_whole(self._record(destination), json.dumps(done), sync=True)

    def is_delivered(self, destinations: list[str]) -> bool:
        names = {path.name for path in self.objects}
        return all(names <= {*self.accepted(destination)} for destination in destinations)

    def deliver_again(self) -> None:
        """Send all objects to each destination again."""
        for record in self.folder.glob("to-*.json"):
            record.unlink(missing_ok=True)

    def delete(self, spool: Spool) -> None:
        size = sum(path.lstat().st_size for path in self.folder.iterdir())
        gone = self.folder.with_name(f".{uuid4().hex}")  # whole or not at all, for the threads that send
        self.folder.rename(gone)
        shutil.rmtree(gone)
        spool.add_bytes(-size)

    def _record(self, destination: str) -> Path:
        return self.folder / f"to-{hashlib.sha256(destination.encode()).hexdigest()[:16]}.json"


def kept_answers(spool: Spool) -> list[KeptAnswer]:
    """All answers, the oldest first."""
    answers = []
    for folder in spool.answers.glob("[!.]*/"):
        try:
            answers.append(KeptAnswer(folder))
        except FileNotFoundError:  # it was just deleted
            continue
    return sorted(answers, key=lambda answer: answer.origin.made)


def keep_answer(spool: Spool, origin: Origin, objects: Mapping[str, Dataset]) -> KeptAnswer:
    """Write an answer to the disk, or if it is there already, have its bytes sent again. Then delete the images.

    Parameters
    ----------
    objects: the DICOM objects by the endings of their files, in the order in which they are sent.
    """
    uids = "/".join(str(each.SOPInstanceUID) for each in objects.values())
    folder = spool.answers / f"{origin.series}-{hashlib.sha256(uids.encode()).hexdigest()[:12]}"
    if folder.exists():
        KeptAnswer(folder).deliver_again()
    else:
        _write(spool, folder, origin, objects)
    answer = KeptAnswer(folder)
    spool.delete_images(origin.study, origin.received)
    return answer


def finish_interrupted(spool: Spool) -> None:
    """Delete the images of answers that a killed process wrote without deleting them."""
    for answer in kept_answers(spool):
        spool.delete_images(answer.origin.study, answer.origin.received)


def earlier_answer(spool: Spool, series: str) -> KeptAnswer | None:
    """The last answer to a series, if it is still kept."""
    return next((each for each in reversed(kept_answers(spool)) if each.origin.series == series), None)


def delete_old(spool: Spool, destinations: list[str], keep_s: float) -> None:
    """Delete answers that all destinations have accepted, after ``keep_s``; earlier if the spool is full."""
    for answer in kept_answers(spool):
        if not answer.is_delivered(destinations):
            continue
        age = time.time() - answer.origin.made
        if age > max(keep_s, HOUR_S) or spool.why_full():
            answer.delete(spool)


def _write(spool: Spool, folder: Path, origin: Origin, objects: Mapping[str, Dataset]) -> None:
    part = folder.with_name(f".{uuid4().hex}")
    part.mkdir(0o700)
    try:
        size = 0
        for number, (ending, dataset) in enumerate(objects.items(), 1):
            data = BytesIO()
            dataset.save_as(data, enforce_file_format=True)
            size += _write_synced(part / f"{number}{ending}", data.getvalue())
        size += _write_synced(part / "answer.json", json.dumps(asdict(origin)).encode())
        sync(part)
        part.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    spool.add_bytes(size)


def _write_synced(path: Path, data: bytes) -> int:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data)


def _read(path: Path, default: list[float]) -> list[float]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return default
    return content if isinstance(content, list) else default
