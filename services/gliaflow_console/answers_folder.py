"""The answers in the operator's folder, as ``gliaflow submit`` writes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from gliaflow.answer import Answer
from gliaflow.scans import Input
from gliaflow_client.out_folder import WRITE_EVERY_S, OutFolder
from gliaflow_client.table import ScanRow

log = structlog.get_logger()


class AnswersFolder:
    """Writes answers into an ``OutFolder``, from any thread. The whole table is written at most every 2 s.

    ``write_table`` writes the rows that the table does not have yet.
    """

    def __init__(self, out: OutFolder) -> None:
        self._out, self._lock = out, threading.Lock()
        self._new, self._written = False, 0.0

    def restore(self, rows: Iterable[Mapping[str, Any] | None]) -> None:
        """Write those rows into the table that a kill between an answer and the table has cost it."""
        for values in rows:
            if values is not None and self._out.has_lost_row(str(values["scan"])):
                self._out.restore_row(ScanRow(**{**values, "warnings": tuple(values["warnings"])}))
                self._new = True
        self.write_table()

    def save(self, item: Input, answer: Answer) -> ScanRow:
        """Write the mask and the DICOM objects of an answer, and return its row. Raises OSError."""
        with self._lock:
            row = self._out.save_answer(self._out.assign([item])[0], answer)
            self._new = True
            self._write()
            return row

    def write_table(self) -> None:
        """Write the table if it lacks rows, also if it was written just before."""
        with self._lock:
            self._written = 0.0
            try:
                self._write()
            except OSError as error:  # the rows stay new
                log.warning("the table of the answers is not written", reason=error.strerror or type(error).__name__)

    def _write(self) -> None:
        if self._new and time.monotonic() - self._written > WRITE_EVERY_S:
            self._out.write_rows({})
            self._new, self._written = False, time.monotonic()
