"""The listener: which peers and objects it accepts, and how it stores an image.

Images of MR are accepted and nothing else. So an archive that sends a whole study on gets none of our answers back into
the pipeline.
"""

from __future__ import annotations

import math
import threading
import time
from io import BytesIO
from typing import Any, cast

import structlog
from gliaflow_plugins.dicom.compression import ENCAPSULATED, NATIVE
from gliaflow_plugins.dicom.headers import read_header
from gliaflow_plugins.dicom.images import MR_CLASSES
from gliaflow_runtime.logs import where
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.visible import visible
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta

from gliaflow_dicom.node.completeness import Arrivals
from gliaflow_dicom.node.guard import MAX_PDU_BYTES, Bounds, Connection, GuardedServer, connection_of
from gliaflow_dicom.node.metrics import ASSOCIATIONS, IMAGES, REFUSED_IMAGES, REJECTED
from gliaflow_dicom.node.peers import allowed_titles, check_title, listening_tls
from gliaflow_dicom.node.spool import ImageUids, IncomingImage, Spool, hashed

STORED, FULL, MISMATCH, UNREADABLE = 0x0000, 0xA700, 0xA900, 0xC000  # PS3.4, table B.2-1
VERIFICATION = "1.2.840.10008.1.1"
FIRST = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)  # chosen if the peer offers several transfer syntaxes
CALLING, CALLED, LIMIT = "calling", "called", "limit"
END_S = 5.0  # that open associations get after SIGTERM
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

log = structlog.get_logger()


class Listener:
    """Listens until ``close``.

    Raises
    ------
    UsageError: a setting is wrong.
    OSError: the address cannot be used.
    """

    def __init__(self, settings: Settings, spool: Spool, arrivals: Arrivals) -> None:
        self._spool, self._arrivals = spool, arrivals
        self._stored: dict[object, _Stored] = {}  # by association
        self._changing = threading.Lock()  # of _stored
        ae = AE(ae_title=check_title(settings.dicom_ae, "--ae"))
        ae.require_calling_aet = allowed_titles(settings.dicom_allow)
        ae.require_called_aet = True
        self._most = settings.dicom_associations
        ae.maximum_associations = 3 * self._most + 8  # pynetdicom also counts connections without an association
        ae.maximum_pdu_size = MAX_PDU_BYTES
        ae.network_timeout = settings.dicom_idle_s
        ae.acse_timeout = min(30.0, settings.dicom_idle_s)
        syntaxes = [*FIRST, *sorted((NATIVE | ENCAPSULATED) - {*FIRST})]
        self._ae = ae
        bounds = Bounds(
            tls=listening_tls(settings),
            connections=2 * self._most + 8,
            idle_s=settings.dicom_idle_s,
            open_image=self._open,
            released=self._released,
            ended=self._ended,
            dropped=self._dropped,
        )
        address = (settings.dicom_host, settings.dicom_port)
        try:
            self._server = GuardedServer(
                ae,
                address,
                [build_context(VERIFICATION, list(FIRST)), *(build_context(each, syntaxes) for each in MR_CLASSES)],
                [
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_REJECTED, self._rejected),
                ],
                bounds,
            )
        except OSError as error:
            raise OSError(
                f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}: choose another --host or "
                "--port, or stop the process that uses it"
            ) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve, name="DICOM listener", daemon=True)
        self._thread.start()

    @property
    def listens(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Accept no more associations, let the open ones finish for END_S, then abort them."""
        self._server.stop_accepting()
        until = time.monotonic() + END_S
        while self._server.connections and time.monotonic() < until:
            time.sleep(0.05)
        with self._server.changing:
            left = list(self._server.connections)
        aborts = [threading.Thread(target=_abort, args=(each,), daemon=True) for each in left]
        for thread in aborts:
            thread.start()
        for thread in aborts:
            thread.join(1.0)
        for connection in left:
            connection.shut()
        with self._server.changing:
            self._server.changing.wait_for(lambda: not self._server.connections, 1.0)

    def _open(self, association: Association, context: int, request: C_STORE_RQ) -> IncomingImage:
        """The file for the image that comes now, with the head of a DICOM file (PS3.10)."""
        command = request.command_set
        head = BytesIO()
        head.write(b"\0" * 128 + b"DICM")
        meta = create_file_meta(
            sop_class_uid=UID(_uid(command, "AffectedSOPClassUID")),
            sop_instance_uid=UID(_uid(command, "AffectedSOPInstanceUID")),
            transfer_syntax=association._accepted_cx[context].transfer_syntax[0],
        )
        write_file_meta_info(head, meta)  # type: ignore[arg-type]
        return self._spool.receive(head.getvalue())

    def _store(self, event: evt.Event) -> int:
        """Answer a C-STORE request."""
        connection = connection_of(event.assoc)
        connection.alive_at = math.inf
        image = cast(C_STORE, event.request).DataSet
        try:
            status, reason = self._try_to_store(event, image)
        except Exception as error:
            log.error("an image was not stored", error=where(error))
            status, reason = FULL, "full"
        finally:
            if isinstance(image, IncomingImage):
                image.discard()
                connection.incoming.discard(image)
            connection.alive_at = time.monotonic()
        if status == STORED:
            IMAGES.inc()
            return status
        REFUSED_IMAGES.labels(reason).inc()
        reasons = self._stored_by(event.assoc).reasons
        if reason not in reasons:  # once for each association
            log.error("an image was refused", reason=self._why_refused(reason))
        reasons.add(reason)
        return status

    def _try_to_store(self, event: evt.Event, image: object) -> tuple[int, str]:
        """The status, and why it is not STORED."""
        if not isinstance(image, IncomingImage):
            return UNREADABLE, "unreadable"
        if image.refusal:
            return FULL, image.refusal
        try:
            image.flush_to_read()
            fields = read_header(image.path, UIDS).fields
            sop_class, sop, study, series = (fields.text(keyword) for keyword in UIDS)
        except ValueError:
            return UNREADABLE, "unreadable"
        if not (_is_uid(sop) and _is_uid(study) and _is_uid(series)):
            return UNREADABLE, "unreadable"
        request = cast(C_STORE, event.request)
        place = hashed(study), hashed(series)
        stored = self._stored_by(event.assoc)
        with self._changing:
            stored.series.add(place)
        self._arrivals.began(event.assoc, place[0])
        self._spool.expect_more(*place)
        if not sop_class == request.AffectedSOPClassUID == event.context.abstract_syntax or (
            sop != request.AffectedSOPInstanceUID
        ):
            return MISMATCH, "mismatch"
        if self._spool.keep(image, ImageUids(study, series, sop)) == "full":
            return FULL, "many"
        return STORED, ""

    def _stored_by(self, association: Association) -> _Stored:
        with self._changing:
            return self._stored.setdefault(association, _Stored())

    def _why_refused(self, reason: str) -> str:
        texts = {
            "full": self._spool.why_full() or "the spool could not be written",
            "many": "the spool has too many studies, the study too many series, or the series too many images",
            "large": "the object is over the limit of dicom_object_mib",
            "mismatch": "its SOP class or instance UID is not that of the request",
            "unreadable": "its header is damaged, or a UID of study, series or instance is missing or not a UID",
        }
        return texts[reason]

    def _released(self, association: Association) -> None:
        """The sender has asked for the release, and gets it when its series are marked."""
        self._mark(association, released=True)

    def _ended(self, association: Association) -> None:
        """The association has ended in some way."""
        released = bool(association.is_released)
        brought = self._mark(association, released=released)
        self._arrivals.ended(association)
        if released or brought or association.is_aborted:
            ASSOCIATIONS.labels("released" if released else "aborted").inc()

    def _mark(self, association: Association, *, released: bool) -> bool:
        """Mark the series that may be complete now. Return whether the association had any that were not marked yet.

        An image that was refused may belong to any of them. Of associations that store into one series at the same
        time, all must be clean.
        """
        with self._changing:
            stored = self._stored.pop(association, None)
            if stored is None:
                return False
            for place in stored.series:
                others = [each for each in self._stored.values() if place in each.series]
                clean = released and not stored.reasons and place not in stored.unclean
                if others:
                    for other in () if clean else others:
                        other.unclean.add(place)
                    continue
                try:
                    self._spool.mark(*place, clean=clean)
                except OSError as error:
                    log.error("the end of a series could not be noted: send it again", error=where(error))
        log.info("association ended", released=released, series=len(stored.series), refused=sorted(stored.reasons))
        return True

    def _requested(self, event: evt.Event) -> None:
        """Reject an association if as many as allowed are open."""
        with self._server.changing:
            count = sum(each.is_established for each in self._server.connections)
        if count >= self._most:
            event.assoc.acse.send_reject(0x02, 0x03, 0x02)  # for now; local limit (PS3.8, table 9-21)
            self._rejected(event)
            event.assoc.kill()

    def _rejected(self, event: evt.Event) -> None:
        request: Any = event.assoc.requestor.primitive
        calling, called = (request.calling_ae_title or ""), (request.called_ae_title or "")
        allowed = self._ae.require_calling_aet
        reason = CALLED if called != self._ae.ae_title else CALLING if allowed and calling not in allowed else LIMIT
        ASSOCIATIONS.labels("rejected").inc()
        REJECTED.labels(reason).inc()
        texts = {
            CALLING: "its AE title is not in --allow",
            CALLED: "it calls another AE title than that of --ae",
            LIMIT: "too many associations (dicom_associations)",
        }
        log.warning("association rejected", calling=visible(calling), called=visible(called), reason=texts[reason])

    def _dropped(self, reason: str) -> None:
        REJECTED.labels(reason).inc()


class _Stored:
    """What one association has brought. Each series is (study, series), by their names in the spool."""

    def __init__(self) -> None:
        self.series: set[tuple[str, str]] = set()
        self.unclean: set[tuple[str, str]] = set()  # into which another association stored meanwhile, and was not clean
        self.reasons: set[str] = set()  # why images were refused


def _uid(command: Any, keyword: str) -> str:
    """A UID of the command set. Raises ValueError: it is missing, or is not one."""
    text = str(command.get(keyword, ""))
    if not _is_uid(text):
        raise ValueError(f"{keyword} is not a UID")
    return text


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= 64 and set(text) <= set("0123456789.")


def _abort(connection: Connection) -> None:
    if connection.association is not None:
        connection.association.abort()
