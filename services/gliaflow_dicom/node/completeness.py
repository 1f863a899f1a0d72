"""When a study may be read: the protocol never says that a series is complete.

A study is quiet when no association stores into it and its last image came ``settle_s`` ago. A series of a quiet study
is complete if the archive of ``--pacs`` has as many images of it; without an archive, if its last association ended
with a release and all images of that association were accepted.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from gliaflow_runtime.settings import Settings
from pydicom.dataset import Dataset
from pynetdicom import DEFAULT_TRANSFER_SYNTAXES

from gliaflow_dicom.node.peers import Peer, PeerAway, associated, calling_tls, check_peer, why_away

PAUSES_S = (5.0, 300.0)  # the first and the longest pause between two checks; each is twice as long as the one before
FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model - FIND
PENDING = (0xFF00, 0xFF01)
MAX_ANSWERS = 20_000

log = structlog.get_logger()


@dataclass
class _Study:
    quiet_at: float  # when it may be read, unless more images come; by time.monotonic
    last_at: float  # when its last image came
    pause_s: float = field(default_factory=lambda: PAUSES_S[0])


class Arrivals:
    """Knows which studies are quiet. The threads of associations and the node's loop share it.

    Parameters
    ----------
    found: the studies in the spool at the start. A sender whose connection was lost may send the rest soon, so they
        wait twice as long.
    """

    def __init__(self, settle_s: float, found: list[str]) -> None:
        self._settle_s = settle_s
        self._changing = threading.Lock()
        now = time.monotonic()
        self._studies = {study: _Study(now + 2 * settle_s, now) for study in found}
        self._open: dict[object, set[str]] = {}  # the studies of each association

    def began(self, association: object, study: str) -> None:
        """An association stores an image into a study."""
        now = time.monotonic()
        with self._changing:
            self._open.setdefault(association, set()).add(study)
            self._studies[study] = _Study(now + self._settle_s, now)

    def ended(self, association: object) -> None:
        """An association has ended, and the spool knows whether its series are clean."""
        now = time.monotonic()
        with self._changing:
            for study in self._open.pop(association, ()):
                self._studies[study] = _Study(now + self._settle_s, now)

    def quiet(self, studies: list[str]) -> list[str]:
        """Those of these studies that may be read now. A study that was not known is as if its last image came now."""
        now = time.monotonic()
        with self._changing:
            known = {study: self._studies.get(study) or _Study(now + self._settle_s, now) for study in studies}
            self._studies = known | {study: self._studies[study] for open in self._open.values() for study in open}
            busy = {study for open in self._open.values() for study in open}
            return [study for study, state in known.items() if study not in busy and state.quiet_at <= now]

    def wait(self, study: str, most_s: float) -> None:
        """Read the study again later: after a pause that grows, but not after ``most_s``."""
        with self._changing:
            state = self._studies[study]
            state.quiet_at = max(state.quiet_at, time.monotonic() + min(state.pause_s, max(0.0, most_s)))
            state.pause_s = min(PAUSES_S[1], 2 * state.pause_s)

    def age_s(self, study: str) -> float:
        """The seconds since the last image of a study, or since the start."""
        with self._changing:
            return time.monotonic() - self._studies[study].last_at


class ArchiveCounts:
    """How many images of a series the archive of ``--pacs`` has.

    A query can take a minute until it fails, so after a failure the archive is not asked again in the same round.

    Raises
    ------
    UsageError: the files for TLS are wrong.
    """

    def __init__(self, settings: Settings, archive: Peer) -> None:
        self._settings, self._archive = settings, archive
        self._away = ""  # why it does not answer
        self.failed = False  # in this round
        if archive.tls:
            calling_tls(settings)

    def check(self) -> None:
        """Warn at the start if the archive does not answer."""
        try:
            check_peer(self._settings, self._archive)
        except PeerAway as error:
            self._is_away(str(error))

    def begin_round(self) -> None:
        self.failed = False

    def count(self, study: str, series: str) -> int:
        """The images of a series (UIDs). Raises PeerAway: the archive does not answer."""
        try:
            count = count_in_archive(self._settings, self._archive, study, series)
        except PeerAway as error:
            self._is_away(str(error))
            self.failed = True
            raise
        if self._away:
            log.info("the archive of --pacs is back", archive=str(self._archive))
        self._away = ""
        return count

    def _is_away(self, reason: str) -> None:
        if not self._away:
            log.warning("the archive of --pacs is away; studies wait", archive=str(self._archive), reason=reason)
        self._away = reason


def count_in_archive(settings: Settings, archive: Peer, study: str, series: str) -> int:
    """How many images of a series the archive has (UIDs).

    Raises
    ------
    PeerAway: it does not answer.
    """
    with associated(settings, archive, [(FIND, [*DEFAULT_TRANSFER_SYNTAXES])]) as association:
        if not association.is_established:
            raise PeerAway(why_away(association) or "it does not accept queries (C-FIND): allow them for our AE title")
        try:
            counts = [
                getattr(answer, "NumberOfSeriesRelatedInstances", None)
                for answer in _find(association, "SERIES", study, series, "NumberOfSeriesRelatedInstances")
                if answer.get("SeriesInstanceUID") == series
            ]
            if any(count is None or count == "" for count in counts):  # the archive may leave it out (PS3.4, C.3.4)
                return len({answer.get("SOPInstanceUID") for answer in _find(association, "IMAGE", study, series, "")})
            return sum(int(count) for count in counts if count is not None)
        except (ValueError, TypeError):
            raise PeerAway(f"{archive} answers a query with a count that is not a number") from None


def _find(association: Any, level: str, study: str, series: str, wanted: str) -> list[Dataset]:
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = level, study, series
    setattr(query, wanted or "SOPInstanceUID", None if wanted else "")
    answers: list[Dataset] = []
    for status, answer in association.send_c_find(query, FIND):
        code = getattr(status, "Status", None)
        if code in PENDING and answer is not None and len(answers) < MAX_ANSWERS:
            answers.append(answer)
        elif code != 0:
            raise PeerAway(
                "the archive does not answer the query"
                + (f" (status {code:#06x})" if code is not None else "; the connection was lost")
            )
    return answers
