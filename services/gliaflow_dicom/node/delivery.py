"""Sends answers to the destinations of ``--to``, each in a thread of its own, until they are accepted."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import structlog
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.logs import where
from gliaflow_runtime.settings import Settings

from gliaflow_dicom.node.answers import KeptAnswer, OpenAnswers
from gliaflow_dicom.node.cstore import StoreUser
from gliaflow_dicom.node.metrics import DELIVERED
from gliaflow_dicom.node.peers import NotAccepted, Peer, PeerAway, WebPeer
from gliaflow_dicom.node.spool import Spool
from gliaflow_dicom.node.stow import WebStore

POLL_S = 0.5
AWAY_S = (1.0, 60.0)  # pauses while a destination is away: the first and the longest; each is twice the one before
NOT_ACCEPTED_S = (5.0, 900.0)  # pauses of one answer after a failure

log = structlog.get_logger()


class Sender:
    """One destination's thread.

    While the destination accepts no connection, all answers wait. A failure after that concerns one answer, and the
    others are sent.
    """

    def __init__(self, settings: Settings, spool: Spool, destination: Peer | WebPeer) -> None:
        self.name = str(destination)
        self._answers = OpenAnswers(spool, self.name)
        self._send = (
            WebStore(settings, destination) if isinstance(destination, WebPeer) else StoreUser(settings, destination)
        )
        self._pauses: dict[str, _Pause] = {}  # of answers that were not accepted
        self._checked = False
        self._away: _Pause | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="DICOM sender", daemon=True)
        self._thread.start()

    @property
    def stuck(self) -> set[str]:
        """The answers that were not accepted when they were last sent."""
        return {*self._pauses}

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._round()
            except Exception as error:  # the thread must not end: a later round may succeed
                log.error("answers were not sent", destination=self.name, error=where(error))
                self._stop.wait(AWAY_S[1])

    def _round(self) -> None:
        if self._away and not self._away.is_over():
            return
        if (self._away or not self._checked) and not self._is_there():
            return
        answers = self._answers.read()
        for gone in self._pauses.keys() - {answer.folder.name for answer in answers}:
            del self._pauses[gone]
        for answer in answers:
            pause = self._pauses.get(answer.folder.name)
            if pause is None or pause.is_over():
                self._deliver(answer)
            if self._away or self._stop.is_set():
                return

    def _is_there(self) -> bool:
        """Check that the destination accepts a connection, at the start and while it is away."""
        self._checked = True
        try:
            self._send.check()
        except PeerAway as error:
            self._wait_for_it(error)
            return False
        if self._away:
            log.info("the destination is back", destination=self.name)
            self._away = None
        return True

    def _deliver(self, answer: KeptAnswer) -> None:
        done = {*answer.accepted(self.name)}
        name = answer.folder.name
        try:
            for path, warning in self._send.send([path for path in answer.objects if path.name not in done]):
                answer.accept(self.name, path.name)
                DELIVERED.inc()
                write = log.warning if warning else log.info
                write("delivered", answer=name[:12], object=path.stem, destination=self.name, **warning)
        except PeerAway as error:
            self._wait_for_it(error)
        except Exception as error:  # of the answer's files too: other answers may be fine
            if not answer.folder.exists():  # it was just deleted
                return
            if name not in self._pauses:
                reason = str(error) if isinstance(error, (NotAccepted, UsageError)) else where(error)
                log.error("an answer is not accepted", answer=name[:12], destination=self.name, reason=reason)
                self._pauses[name] = _Pause(*NOT_ACCEPTED_S)
            self._pauses[name].again()

    def _wait_for_it(self, error: PeerAway) -> None:
        if self._away is None:
            log.warning("a destination is away; answers wait", destination=self.name, reason=str(error))
            self._away = _Pause(*AWAY_S)
        self._away.again()


@dataclass
class _Pause:
    """A pause that grows."""

    next_s: float
    longest_s: float
    until: float = 0.0

    def again(self) -> None:
        self.until = time.monotonic() + self.next_s
        self.next_s = min(self.longest_s, 2 * self.next_s)

    def is_over(self) -> bool:
        return time.monotonic() >= self.until
