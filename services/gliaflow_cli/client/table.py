"""``predictions.csv`` and the masks beside it."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gliaflow.answer import Answer, write_image
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_runtime.files import whole_file

TABLE = "predictions.csv"
WRITE_EVERY_S = 2.0  # the whole table is written each time, so not after each of ten thousand scans


@dataclass(frozen=True)
class ScanRow:
    """One line of ``predictions.csv``. ``status`` is ``ok`` or ``failed``; ``seconds`` from sending to answer."""

    scan: str
    patient: str
    grade: str = ""
    p_hgg: float | None = None
    tumour_ml: float | None = None
    slices: int | None = None
    status: str = "failed"
    error: str = ""
    bundle: str = ""
    seconds: float | None = None

    @classmethod
    def of(cls, answer: Answer) -> ScanRow:
        """The line of an answer."""
        return cls(
            scan=answer.scan,
            patient=answer.patient,
            grade=answer.grade or "",
            p_hgg=answer.p_hgg,
            tumour_ml=None if answer.tumour_ml is None else round(answer.tumour_ml, 3),
            slices=answer.slices,
            status=answer.status,
            error=answer.reason,
            bundle=answer.bundle or "",
            seconds=answer.seconds,
        )


def save_answers(
    flow: Flow,
    inputs: Sequence[Input],
    out: Path,
    *,
    known: Mapping[str, ScanRow] | None = None,
    answered: Callable[[Answer], None] = lambda answer: None,
) -> list[ScanRow]:
    """Submit scans; write each mask as its answer comes, and the table every few seconds.

    Parameters
    ----------
    out: the folder for ``predictions.csv`` and ``<scan>_seg.nii.gz``.
    known: rows of earlier runs, by scan, which stay in the table.
    answered: called for each answer after its mask is written.

    Returns
    -------
    The rows of ``inputs``, in their order.

    Raises
    ------
    BrokerError: as ``Flow.submit_all``.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, ScanRow] = {}
    written = 0.0

    def write() -> None:
        table = {**(known or {}), **{item.name: rows[item.name] for item in inputs if item.name in rows}}
        write_table(out / TABLE, list(table.values()))

    for answer in flow.submit_all(inputs):
        if answer.mask is not None:
            try:
                write_image(out / f"{answer.scan}_seg.nii.gz", answer.mask)
            except OSError as error:
                answer = Answer(
                    answer.scan, answer.patient, answer.source, "failed", reason=f"mask not written: {error.strerror}"
                )
        rows[answer.scan] = ScanRow.of(answer)
        if time.monotonic() - written > WRITE_EVERY_S:
            write()
            written = time.monotonic()
        answered(answer)
    write()
    return [rows[item.name] for item in inputs]


def write_table(path: Path, rows: Sequence[ScanRow]) -> None:
    """Write the table whole: a reader never sees half a line."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(ScanRow)])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None else v for k, v in asdict(row).items()})


def read_table(path: Path) -> dict[str, ScanRow]:
    """The rows of a table that an earlier run left, by scan; none if there is no table."""
    if not path.exists():
        return {}
    kinds: dict[str, Callable[[str], object]] = {"p_hgg": float, "tumour_ml": float, "slices": int, "seconds": float}
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            values = {k: (kinds[k](v) if v else None) if k in kinds else v for k, v in line.items()}
            found[line["scan"]] = ScanRow(**values)  # type: ignore[arg-type]
    return found
