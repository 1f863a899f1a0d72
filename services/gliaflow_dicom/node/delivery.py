"""Sends answers to the destinations of ``--to``, each in a thread of its own, until they are accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.logs import where
from gliaflow_runtime.settings import Settings

from gliaflow_dicom.node.answers import KeptAnswer, kept_answers
from gliaflow_dicom.node.metrics import DELIVERED
from gliaflow_dicom.node.peers import Peer, WebPeer, associated, calling_tls
from gliaflow_dicom.node.spool import Spool

POLL_S = 0.5
AWAY_S = (1.0, 60.0)  # pauses while a destination is away: the first and the longest; each is twice the one before
REFUSED_S = (30.0, 3600.0)  # pauses after it refused an answer
MAX_CREDENTIALS = 4096
UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")

log = structlog.get_logger()


class DestinationAway(Exception):
    """The destination does not answer. The text says why."""


class ObjectRefused(Exception):
    """The destination answered, and does not take the object. The text says why."""


class Sender:
    """One destination's thread."""

    def __init__(self, settings: Settings, spool: Spool, destination: Peer | WebPeer) -> None:
        self.name = str(destination)
        self._spool = spool
        self._send = (
            _store_over_web(settings, destination)
            if isinstance(destination, WebPeer)
            else _StoreUser(settings, destination)
        )
        self._pauses: dict[str, _Pause] = {}  # of answers that were refused
        self._away: _Pause | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="DICOM sender", daemon=True)
        self._thread.start()

    @property
    def stuck(self) -> set[str]:
        """The answers that the destination refused when they were last sent."""
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
        answers = kept_answers(self._spool)
        for gone in self._pauses.keys() - {answer.folder.name for answer in answers}:
            del self._pauses[gone]
        for answer in answers:
            pause = self._pauses.get(answer.folder.name)
            if answer.is_delivered([self.name]):
                self._pauses.pop(answer.folder.name, None)
            elif pause is None or pause.is_over():
                self._deliver(answer)
            if self._away or self._stop.is_set():
                return

    def _deliver(self, answer: KeptAnswer) -> None:
        done = {*answer.accepted(self.name)}
        paths = [path for path in answer.objects if path.name not in done]
        name = answer.folder.name[:12]
        try:
            for path, warning in self._send.send(paths):
                answer.accept(self.name, path.name)
                DELIVERED.inc()
                write = log.warning if warning else log.info
                write("delivered", answer=name, object=path.stem, destination=self.name, **warning)
        except DestinationAway as error:
            if self._away is None:
                log.warning("a destination is away; answers wait", destination=self.name, reason=str(error))
                self._away = _Pause(*AWAY_S)
            self._away.again()
            return
        except ObjectRefused as error:
            pause = self._pauses.get(answer.folder.name)
            if pause is None:
                log.error("a destination refuses an answer", answer=name, destination=self.name, reason=str(error))
                pause = self._pauses[answer.folder.name] = _Pause(*REFUSED_S)
            pause.again()
        except FileNotFoundError:  # the answer was just deleted
            return
        if self._away:
            log.info("the destination is back", destination=self.name)
            self._away = None


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


class _StoreUser:
    """C-STORE to one peer."""

    def __init__(self, settings: Settings, peer: Peer) -> None:
        self._settings, self._peer = settings, peer
        if peer.tls:
            calling_tls(settings)  # wrong files are an error at the start

    def send(self, paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, str]]]:
        """Give each path once it is accepted, with a warning for the log. Raises DestinationAway, ObjectRefused."""
        from pydicom import dcmread

        datasets = [dcmread(path) for path in paths]
        contexts = [
            (sop_class, list(syntaxes))
            for each in datasets
            for sop_class in [each.SOPClassUID]
            for syntaxes in ({each.file_meta.TransferSyntaxUID}, UNCOMPRESSED)
        ]
        refused = ""
        with associated(self._settings, self._peer, contexts) as association:
            if association.is_rejected:
                raise DestinationAway("it rejects the association: check both AE titles in its list of peers")
            if not association.is_established:
                if association.acceptor.primitive is not None:
                    raise ObjectRefused("it accepts none of the objects' SOP classes")
                raise DestinationAway("it does not accept a connection: check host, port and TLS")
            for path, dataset in zip(paths, datasets, strict=True):
                try:
                    status = association.send_c_store(dataset).get("Status")
                except (ValueError, AttributeError):
                    refused = refused or f"it does not accept the SOP class of {path.name}"
                    continue
                except RuntimeError:  # the association has ended
                    status = None
                if status is None:
                    raise DestinationAway("the connection was lost")
                if status == 0 or status & 0xF000 == 0xB000:
                    yield path, {"status": f"{status:#06x}"} if status else {}
                elif status & 0xFF00 == 0xA700:
                    raise DestinationAway(f"it has no room (status {status:#06x})")
                else:
                    refused = refused or f"status {status:#06x} for {path.name}"
        if refused:
            raise ObjectRefused(refused)


class _WebStore:
    """STOW-RS to one server."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def send(self, paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, str]]]:
        """As of ``_StoreUser``."""
        from pydicom import dcmread
        from requests import RequestException

        refused = ""
        for path in paths:
            try:
                answer = self._client.store_instances([dcmread(path)])
            except RequestException as error:
                code = getattr(error.response, "status_code", 0)
                if code in (0, 401, 403, 404, 408, 429) or code >= 500:
                    raise DestinationAway(f"HTTP status {code}" if code else type(error).__name__) from None
                refused = refused or f"HTTP status {code} for {path.name}"
                continue
            failed = answer.get("FailedSOPSequence")
            if failed:
                refused = refused or f"failure reason {failed[0].get('FailureReason', 0):#06x} for {path.name}"
            else:
                yield path, {}
        if refused:
            raise ObjectRefused(refused)


def _store_over_web(settings: Settings, peer: WebPeer) -> _WebStore:
    """Raises UsageError: a setting is wrong."""
    from dicomweb_client.api import DICOMwebClient
    from requests import Session

    class TimedSession(Session):
        """Ends a request to a server that hangs."""

        def request(self, *arguments: Any, **options: Any) -> Any:
            options["timeout"] = options.get("timeout") or settings.dicom_idle_s
            return super().request(*arguments, **options)

    session = TimedSession()
    session.trust_env = False  # no password of ~/.netrc, no proxy
    if settings.dicom_ca is not None:
        session.verify = str(settings.dicom_ca)
    if settings.dicom_cert is not None and peer.url.startswith("https:"):
        session.cert = (str(settings.dicom_cert), str(settings.dicom_key or settings.dicom_cert))
    if settings.dicom_credentials is not None:
        line = _credentials(settings.dicom_credentials)
        if line.startswith("Bearer "):
            session.headers["Authorization"] = line
        else:
            user, _, password = line.partition(":")
            session.auth = (user, password)
    client = DICOMwebClient(peer.url, session=session)
    client.set_http_retry_params(retry=False)  # the sender's own pauses apply
    return _WebStore(client)


def _credentials(path: Path) -> str:
    """Raises UsageError: the file cannot be read, or holds something else."""
    try:
        with path.open() as file:
            line = file.read(MAX_CREDENTIALS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"dicom_credentials: {path}: {getattr(error, 'strerror', 'not a text')}") from None
    if "\n" in line or not (line.startswith("Bearer ") or ":" in line):
        raise UsageError(f"dicom_credentials: {path}: write one line into it: user:password, or Bearer TOKEN")
    return line
