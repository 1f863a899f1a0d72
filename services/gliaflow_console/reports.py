"""The reports in the operator's folder: evaluations, trainings and tables of answers, each a folder with its page."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gliaflow_client.summary import counts, is_on_phantoms
from gliaflow_client.table import TABLE, read_table
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import MANIFEST
from gliaflow_runtime.folders import why_unreadable

PAGE = "report.html"
METRICS = "metrics.json"
DEEP = 4  # folders inside the folder of reports
FOLDERS = 2000  # that are searched
NEWEST = 200  # reports in the list
TABLE_BYTES = 16 * 2**20  # of a metrics.json, a manifest or a table that is summarised
PAGE_BYTES = 64 * 2**20

Kind = Literal["evaluation", "training", "answers"]


@dataclass(frozen=True)
class FoundReport:
    """A page that ``gliaflow evaluate``, ``train`` or ``submit --report`` wrote.

    Parameters
    ----------
    id: of its path, so that no path comes from a browser.
    folder: which has the page and the figures.
    name: the folder's path in the folder of reports.
    modified: seconds since 1970.
    """

    id: str
    kind: Kind
    folder: Path
    name: str
    modified: float

    def summary(self) -> str:
        """What it says, in a sentence; or why its figures cannot be read."""
        source, summarise = KINDS[self.kind]
        try:
            if (self.folder / source).stat().st_size > TABLE_BYTES:
                return f"{source} is over {TABLE_BYTES // 2**20} MiB: open the report"
            return summarise(self.folder)
        except (OSError, ValueError) as error:  # a table that another program wrote, or a file that is just written
            text = str(error).replace(f"{self.folder}{os.sep}", "")
            return text if text.startswith(source) else f"{source}: {text}"

    def page(self) -> bytes:
        """The page. Raises OSError: it is gone, or it is not a plain file of at most PAGE_BYTES."""
        with os.fdopen(os.open(self.folder / PAGE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > PAGE_BYTES:
                raise OSError(f"not a file of at most {PAGE_BYTES // 2**20} MiB")
            return file.read(PAGE_BYTES)


def find_reports(folder: Path) -> list[FoundReport]:
    """The reports in a folder, the newest first. Links are not followed: they may lead out of it."""
    reports = [report for place in _folders(folder) if (report := _report(folder, place))]
    return sorted(reports, key=lambda report: -report.modified)[:NEWEST]


def why_no_reports(folder: Path | None) -> str:
    """Why the folder cannot be listed, with the remedy; empty: it can, or there is none."""
    return "" if folder is None else why_unreadable(folder)


def _folders(folder: Path) -> Iterator[Path]:
    for number, (place, names, _) in enumerate(os.walk(folder)):
        if number == FOLDERS:
            return
        deep = len(Path(place).relative_to(folder).parts)
        names[:] = sorted(name for name in names if not name.startswith(".")) if deep < DEEP else []
        yield Path(place)


def _report(root: Path, folder: Path) -> FoundReport | None:
    try:
        status = (folder / PAGE).lstat()
    except OSError:
        return None
    kind = next((kind for kind, (source, _) in KINDS.items() if (folder / source).is_file()), None)
    if kind is None or not stat.S_ISREG(status.st_mode):
        return None
    relative = folder.relative_to(root).as_posix()
    id = hashlib.sha256(os.fsencode(relative)).hexdigest()[:32]
    return FoundReport(id, kind, folder, root.resolve().name if relative == "." else relative, status.st_mtime)


def _evaluation(folder: Path) -> str:
    from gliaflow_evaluation.report.schema import read_metrics  # loads scipy
    from gliaflow_evaluation.report.verdict import verdict

    return verdict(read_metrics(folder / METRICS)).sentence


def _training(folder: Path) -> str:
    from gliaflow_trainer.report import summary

    bundle = Bundle(folder)
    lines = {title: text for title, text in summary(bundle) if title in ("U-Net", "grade")}
    return _with_phantoms("; ".join(f"{title}: {text}" for title, text in lines.items()), bundle.trained_on)


def _answers(folder: Path) -> str:
    rows = list(read_table(folder / TABLE).values())
    return _with_phantoms(counts(rows), "phantoms" if is_on_phantoms(rows) else "")


def _with_phantoms(text: str, trained_on: str) -> str:
    return f"{text}; trained on phantoms: says nothing about a patient" if trained_on == "phantoms" else text


KINDS: dict[Kind, tuple[str, Callable[[Path], str]]] = {
    "evaluation": (METRICS, _evaluation),
    "training": (MANIFEST, _training),
    "answers": (TABLE, _answers),
}
