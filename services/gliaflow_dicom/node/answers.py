"""Answers in the spool: DICOM objects that go to each destination, and are kept for some days.

::

    answers/<series>-<uids>-<header>/answer.json     what it is made from
    answers/<series>-<uids>-<header>/1_seg.dcm, …    the objects, in the order in which they are sent
    answers/<series>-<uids>-<header>/again.json      when the same series came again
    answers/<series>-<uids>-<header>/to-<peer>.json  what a destination has accepted

``uids`` is the digest of the objects' SOP instance UIDs, which depend on the images and the bundle. ``header`` is the
digest of what the objects copy of the patient and the study. So the same images and the same bundle give the same
folder, and the bytes in it are sent again. If the patient was corrected in the archive, the new objects replace the
kept ones, under the same UIDs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from gliaflow_runtime.files import fsync_path, whole_file

from gliaflow_dicom.node.spool import Spool
from gliaflow_dicom.objects.source_header import PATIENT, STUDY, UIDS

if TYPE_CHECKING:
    from pydicom import Dataset

HOUR_S = 3600.0
ANSWER = "answer.json"
MAX_REPEATS = 3  # of an unchanged series in an hour; more are a loop: a PACS that sends the study on each change

log = structlog.get_logger()


@dataclass(frozen=True)
class AnswerOrigin:
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
    """One folder of ``answers``.

    Raises
    ------
    OSError, ValueError, TypeError: ``answer.json`` is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = origin = AnswerOrigin(**json.loads((folder / ANSWER).read_text()))
        if not (
            isinstance(origin.images, list) and isinstance(origin.received, dict) and isinstance(origin.made, float)
        ):
            raise ValueError(ANSWER)

    @property
    def objects(self) -> list[Path]:
        """The DICOM files, in the order in which they are sent."""
        return sorted(self.folder.glob("*.dcm"))

    def repeats(self) -> list[float]:
        """When the same series came again, in the last hour."""
        times = _read(self.folder / "again.json")
        return [at for at in times if isinstance(at, float) and abs(time.time() - at) < HOUR_S]

    def came_again(self) -> None:
        _write_list(self.folder / "again.json", [*self.repeats(), time.time()])

    def accepted(self, destination: str) -> list[str]:
        """The names of the objects that a destination has accepted."""
        return [str(name) for name in _read(self.folder / _record(destination))]

    def accept(self, destination: str, name: str) -> None:
        """Record that a destination has accepted an object."""
        _write_list(self.folder / _record(destination), [*self.accepted(destination), name])

    def is_delivered(self, destinations: list[str]) -> bool:
        names = {path.name for path in self.objects}
        return all(names <= {*self.accepted(destination)} for destination in destinations)

    def deliver_again(self) -> None:
        """Send all objects to each destination again."""
        for record in self.folder.glob("to-*.json"):
            record.unlink(missing_ok=True)


class OpenAnswers:
    """The answers that one destination has not accepted yet. The others are remembered, and not read each time."""

    def __init__(self, spool: Spool, destination: str) -> None:
        self._folder, self._destination = spool.answers, destination
        self._delivered: dict[str, Path] = {}  # their records, which are deleted if an answer is to be sent again

    def read(self) -> list[KeptAnswer]:
        """The open answers, the oldest first."""
        names = {path.name for path in self._folder.iterdir() if not path.name.startswith(".")}
        self._delivered = {name: record for name, record in self._delivered.items() if record.exists()}
        opened = []
        for answer in _read_answers(self._folder / name for name in names - self._delivered.keys()):
            if answer.is_delivered([self._destination]):
                self._delivered[answer.folder.name] = answer.folder / _record(self._destination)
            else:
                opened.append(answer)
        return opened


def kept_answers(spool: Spool) -> list[KeptAnswer]:
    """All answers, the oldest first."""
    return _read_answers(spool.answers.glob("[!.]*"))


def _read_answers(folders: Iterable[Path]) -> list[KeptAnswer]:
    """The answers in these folders, the oldest first. A damaged one is left out, with an error in the log."""
    answers = []
    for folder in folders:
        try:
            answers.append(KeptAnswer(folder))
        except (OSError, ValueError, TypeError):
            if folder.exists():  # else it was just deleted
                _report_damaged(folder.name)
    return sorted(answers, key=lambda answer: answer.origin.made)


@cache
def _report_damaged(name: str) -> None:
    """Once in the life of the process."""
    log.error("a kept answer is damaged, and is not sent: delete its folder, and send its study again", answer=name)


def keep_answer(spool: Spool, origin: AnswerOrigin, objects: Mapping[str, Dataset]) -> KeptAnswer:
    """Write an answer to the disk, or if it is there already, have its bytes sent again. Then delete the images.

    An answer with the same UIDs and other values of the patient or study is replaced.

    Parameters
    ----------
    objects: the DICOM objects by the endings of their files, in the order in which they are sent.
    """
    uids = _digest([each.SOPInstanceUID for each in objects.values()])
    header = _digest([each.get(name, "") for each in objects.values() for name in (*PATIENT, *STUDY, *UIDS)])
    folder = spool.answers / f"{origin.series}-{uids}-{header}"
    kept = {answer.folder: answer for answer in _read_answers([folder] if folder.exists() else [])}
    for other in spool.answers.glob(f"{origin.series}-{uids}-*"):
        if other not in kept:  # it names another patient or study; or it is damaged
            _delete(spool, other)
            log.warning(
                "a kept answer is replaced: its patient or study has changed, or it was damaged", answer=other.name[:12]
            )
    if folder in kept:
        kept[folder].deliver_again()
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
    answers = _read_answers(spool.answers.glob(f"{series}-*"))
    return answers[-1] if answers else None


def delete_old(spool: Spool, destinations: list[str], keep_s: float) -> list[KeptAnswer]:
    """Delete answers that all destinations have accepted, after ``keep_s``; earlier if the spool is full.

    Return the answers that some destination has not accepted.
    """
    opened = []
    for answer in kept_answers(spool):
        age = time.time() - answer.origin.made
        if not answer.is_delivered(destinations):
            opened.append(answer)
        elif age > max(keep_s, HOUR_S) or spool.why_full():
            _delete(spool, answer.folder)
    return opened


def _delete(spool: Spool, folder: Path) -> None:
    gone = folder.with_name(f".{uuid4().hex}")  # whole or not at all, for the threads that send
    folder.rename(gone)
    size = sum(path.lstat().st_size for path in gone.iterdir())
    shutil.rmtree(gone)
    spool.add_bytes(-size)


def _record(destination: str) -> str:
    return f"to-{hashlib.sha256(destination.encode()).hexdigest()[:16]}.json"


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps([str(value) for value in values]).encode()).hexdigest()[:12]


def _write(spool: Spool, folder: Path, origin: AnswerOrigin, objects: Mapping[str, Dataset]) -> None:
    part = folder.with_name(f".{uuid4().hex}")
    part.mkdir(0o700)
    try:
        size = 0
        for number, (ending, dataset) in enumerate(objects.items(), 1):
            data = BytesIO()
            dataset.save_as(data, enforce_file_format=True)
            size += _write_synced(part / f"{number}{ending}", data.getvalue())
        size += _write_synced(part / ANSWER, json.dumps(asdict(origin)).encode())
        fsync_path(part)
        part.rename(folder)
        fsync_path(folder.parent)
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


def _write_list(path: Path, content: list[Any]) -> None:
    with whole_file(path, sync=True) as part:
        _write_synced(part, json.dumps(content).encode())


def _read(path: Path) -> list[Any]:
    """The list in a file; an empty one, if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else []
