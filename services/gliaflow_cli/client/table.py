"""``gliaflow submit``: scans go in, ``predictions.csv`` and masks come out."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gliaflow.scans import write_mask
from gliaflow.submission import Input, Submission
from gliaflow_proto import FailureMessage, PredictionMessage
from gliaflow_runtime.broker.interface import Broker

TABLE = "predictions.csv"
WRITE_EVERY_S = 2.0  # the table is written whole, so not for each of ten thousand scans
PATIENCE = 6  # after this part of the time-out without any answer, what is out is sent again; then after twice that
IN_FLIGHT = 16  # scans sent and not yet answered: enough to keep every stage busy, few enough to be fair to others


@dataclass(frozen=True)
class Row:
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


def submit(
    inputs: Sequence[Input],
    out: Path,
    broker: Broker,
    *,
    by_uri: bool,
    timeout_s: float,
    known: Mapping[str, Row] | None = None,
    alive: Callable[[], None] = lambda: None,
    answered: Callable[[Input, Row, PredictionMessage | None], None] = lambda *_: None,
) -> list[Row]:
    """Send scans, write each answer as it comes, and the table every few seconds.

    Parameters
    ----------
    inputs: the scans.
    out: the folder for ``predictions.csv`` and ``<scan>_seg.nii.gz``.
    broker: a connection of its own.
    by_uri: as for ``Submission``.
    timeout_s: with no answer at all for so long, the scans still out are given up. Before that they are sent again:
        their messages may have gone with a queue that was deleted, or a disk.
    known: rows of former runs, by scan, which stay in the table.
    alive: called now and then; raises when there is no point in waiting any longer.
    answered: called for each input with its row.

    Returns
    -------
    The rows of ``inputs``, in their order.

    Raises
    ------
    NoStage, BrokerError: there is no pipeline to send to.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    waiting = list(reversed(inputs))
    sent: dict[str, tuple[Input, float]] = {}

    written = 0.0

    def write() -> None:
        table = {**(known or {}), **{i.name: rows[i.name] for i in inputs if i.name in rows}}
        write_table(out / TABLE, list(table.values()))

    def settle(item: Input, row: Row, prediction: PredictionMessage | None = None) -> None:
        nonlocal written
        rows[item.name] = row
        if time.monotonic() - written > WRITE_EVERY_S:
            write()
            written = time.monotonic()
        answered(item, row, prediction)

    with Submission(broker, by_uri=by_uri, patience_s=timeout_s) as submission:
        last = asked = time.monotonic()
        patience, attempt = timeout_s / PATIENCE, 0
        while waiting or sent:
            while waiting and len(sent) < IN_FLIGHT:
                item = waiting.pop()
                try:
                    sent[submission.submit(item)] = item, time.monotonic()
                    asked = time.monotonic()
                except (OSError, ValueError) as error:
                    reason = str(getattr(error, "strerror", None) or error)
                    reason = reason if item.where in reason else f"{item.where}: {reason}"
                    settle(item, Row(item.name, item.patient, error=reason))
            alive()
            answer = submission.answer(timeout=1.0) if sent else None
            if answer is not None and answer.scan.id in sent:
                last = asked = time.monotonic()
                patience = timeout_s / PATIENCE
                item, started = sent.pop(answer.scan.id)
                seconds = round(last - started, 3)
                if isinstance(answer, PredictionMessage):
                    try:
                        write_mask(out / f"{item.name}_seg.nii.gz", answer.mask, _affine(answer))
                    except OSError as error:
                        settle(item, Row(item.name, item.patient, error=f"mask not written: {error.strerror}"))
                    else:
                        settle(item, _ok(item, answer, seconds), answer)
                elif isinstance(answer, FailureMessage):
                    reason = f"{answer.stage}: {answer.reason}"
                    settle(item, Row(item.name, item.patient, error=reason, seconds=seconds))
            elif time.monotonic() - last > timeout_s:
                for item, started in sent.values():
                    reason = f"no answer within {timeout_s:g} s: are all stages running? (gliaflow doctor)"
                    if submission.unreadable:
                        reason = f"no answer that can be read within {timeout_s:g} s: {submission.unreadable}"
                    settle(item, Row(item.name, item.patient, error=reason, seconds=round(last - started, 3)))
                sent.clear()
            elif time.monotonic() - asked > patience:
                attempt += 1
                patience *= 2
                for item, _ in sent.values():
                    with suppress(OSError, ValueError):  # the file has gone: the message may be on its way still
                        submission.submit(item, attempt)
                asked = time.monotonic()
    write()
    return [rows[i.name] for i in inputs]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """The table, whole: a reader never meets half a line."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None else v for k, v in asdict(row).items()})
    part.replace(path)


def read_table(path: Path) -> dict[str, Row]:
    """The rows of a table that a former run left, by scan; none where there is no table."""
    if not path.exists():
        return {}
    kinds: dict[str, Callable[[str], object]] = {
        "p_hgg": float,
        "tumour_ml": float,
        "slices": int,
        "seconds": float,
    }
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            values = {k: (kinds[k](v) if v else None) if k in kinds else v for k, v in line.items()}
            found[line["scan"]] = Row(**values)  # type: ignore[arg-type]
    return found


def _affine(answer: PredictionMessage) -> list[list[float]]:
    return [answer.affine[start : start + 4] for start in (0, 4, 8, 12)]


def _ok(item: Input, answer: PredictionMessage, seconds: float) -> Row:
    return Row(
        scan=item.name,
        patient=item.patient,
        grade=answer.grade,
        p_hgg=answer.p_hgg,
        tumour_ml=round(answer.tumour_ml, 3),
        slices=answer.slices,
        status="ok",
        bundle=answer.bundle,
        seconds=seconds,
    )
