"""Bounds that pynetdicom lacks. A peer is untrusted, and so is each byte that it sends.

- A PDU is read only if its stated length is within MAX_PDU_BYTES (pynetdicom announces a limit, but does not check it).
- A whole PDU must arrive within the idle time, so that neither silence nor single bytes hold a connection.
- There are few connections. A new one closes the oldest that has no association yet.
- TLS is negotiated in the connection's own thread, not in that which accepts connections.
- Only C-ECHO and C-STORE requests are read. A data set goes to the spool while it is received, within the spool's
  limits; there is no other data set, and a command set has at most MAX_COMMAND_BYTES.
- A peer that sends requests without waiting for the responses is disconnected.
"""

from __future__ import annotations

import contextlib
import gc
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from socketserver import BaseServer
from typing import Any

import structlog
from gliaflow_runtime.logs import where
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from gliaflow_dicom.node.spool import IncomingImage

MAX_PDU_BYTES = 2**18
MAX_COMMAND_BYTES = 2**14
MAX_QUEUED = 4  # requests that wait for their response
READ_BYTES = 2**16
POLL_S = 0.1
COLLECT_S = 60.0
ROOM_S = 1.0  # that a new connection waits for another to end
LATE_S = 2.0  # after the idle time, in which pynetdicom sends an abort

log = structlog.get_logger()


class Connection:
    """One TCP connection, and what came on it."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.alive_at = time.monotonic()  # of the last whole PDU; infinite while a response is prepared
        self.association: Association | None = None
        self.incoming: set[IncomingImage] = set()  # that were not answered yet

    @property
    def is_established(self) -> bool:
        return self.association is not None and bool(self.association.is_established)

    def shut(self) -> None:
        """Close the connection at once. The threads that read from it continue, and end."""
        if self.association is not None and not self.is_established:
            stop: Any = None  # what pynetdicom takes for the end of the wait for an association request
            self.association.dul.to_user_queue.put(stop)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # also of a TLS socket, without its closing messages

    def close(self) -> None:
        """At the end of its association."""
        self.shut()
        self.socket.close()
        for image in [*self.incoming]:
            image.discard()


class GuardedServer(ThreadedAssociationServer):
    """Accepts connections within the bounds above.

    Parameters
    ----------
    bounds: its limits, and what it calls.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, ae: Any, address: tuple[str, int], contexts: list[Any], handlers: list[Any], bounds: Bounds
    ) -> None:
        self.bounds = bounds
        self.connections: list[Connection] = []
        self.changing = threading.Condition()
        self._collected = time.monotonic()
        super().__init__(ae, address, ae.ae_title, contexts, None, handlers, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        assert self.socket is not None
        peer, address = self.socket.accept()
        peer.settimeout(self.bounds.idle_s)  # of one read or write
        return peer, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept it if there is room; else make room, by closing the oldest connection without an association."""
        with self.changing:
            if len(self.connections) >= self.bounds.connections:
                idle = [each for each in self.connections if not each.is_established]
                for connection in idle[:1]:
                    connection.shut()
            if self.changing.wait_for(lambda: len(self.connections) < self.bounds.connections, ROOM_S):
                return True
        self.bounds.dropped("limit")
        return False

    def handle_error(self, *_: object) -> None:
        """Count a connection that did not become an association: a failed TLS handshake, a lost peer."""
        self.bounds.dropped("not DICOM")

    def service_actions(self) -> None:
        """Called after each connection and each POLL_S: cut off the peers that are silent for too long."""
        now = time.monotonic()
        if now - self._collected > COLLECT_S:  # ended associations are reference cycles
            self._collected = now
            gc.collect()
        with self.changing:
            late = [each for each in self.connections if now - each.alive_at > self.bounds.idle_s + LATE_S]
        for connection in late:
            connection.shut()

    def serve(self) -> None:
        """Accept connections until ``stop_accepting``."""
        self.serve_forever(POLL_S)

    def stop_accepting(self) -> None:
        """Close the listening socket. Open connections continue."""
        BaseServer.shutdown(self)
        self.server_close()

    def forget(self, connection: Connection) -> None:
        with self.changing, contextlib.suppress(ValueError):
            self.connections.remove(connection)
            self.changing.notify_all()
        connection.close()


@dataclass(frozen=True)
class Bounds:
    """What a ``GuardedServer`` allows, and what it calls.

    Parameters
    ----------
    tls: for each connection, or None.
    connections: the most at a time.
    idle_s: the longest time without a whole PDU.
    open_image: gives the file for an image, when its request came: gets association, context id and request.
    released: called before the response to a release request is sent.
    ended: called in the association's thread when it has ended.
    dropped: called for a connection that was closed without an association.
    """

    tls: ssl.SSLContext | None
    connections: int
    idle_s: float
    open_image: Callable[[Association, int, C_STORE_RQ], IncomingImage]
    released: Callable[[Association], None]
    ended: Callable[[Association], None]
    dropped: Callable[[str], None]


class _Handler(RequestHandler):
    """Makes an association of a connection, in a thread of its own."""

    server: GuardedServer

    def handle(self) -> None:
        connection = Connection(self.request)
        with self.server.changing:
            self.server.connections.append(connection)
        try:
            if tls := self.server.bounds.tls:
                connection.socket = self.request = tls.wrap_socket(
                    self.request, server_side=True, do_handshake_on_connect=False
                )
                connection.socket.do_handshake()
            association = self._create_association()
            connection.association = association
            _guard(association, connection, self.server)
            association.start()
        except BaseException:
            self.server.forget(connection)
            raise


def connection_of(association: Association) -> Connection:
    """The connection of a guarded association."""
    connection: Connection = association.guarded  # type: ignore[attr-defined]
    return connection


def _guard(association: Association, connection: Connection, server: GuardedServer) -> None:
    """Replace what pynetdicom reads with, and what its threads do at their end."""
    bounds = server.bounds

    send_release = association.acse.send_release

    def release(is_response: bool = False) -> None:
        if is_response:
            bounds.released(association)
        send_release(is_response)

    def ended() -> None:
        try:
            bounds.ended(association)
        finally:
            server.forget(connection)

    replace: Any = setattr  # pynetdicom has no settings for these
    replace(association.acse, "send_release", release)
    replace(association, "guarded", connection)
    replace(association.dul.socket, "recv", _Reader(connection).read)
    replace(association.dimse, "receive_primitive", _Requests(association, connection, bounds).receive)
    replace(association.dul, "run", _until_end(association.dul, connection.shut))
    replace(association, "run", _until_end(association, ended))
    association.dul.daemon = association.daemon = True  # the process may end without them: all images are on the disk


def _until_end(thread: threading.Thread, ended: Callable[[], None]) -> Callable[[], None]:
    """The thread's ``run``, after which ``ended`` is called. Errors are those that a peer can cause."""

    def run() -> None:
        try:
            type(thread).run(thread)
        except Exception as error:
            log.warning("association ended by an error", error=where(error))
        finally:
            ended()

    return run


class _Reader:
    """Reads from the connection within MAX_PDU_BYTES."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, count: int) -> bytearray:
        """``count`` bytes, or fewer at the end. Raises OSError."""
        if count > MAX_PDU_BYTES:
            raise OSError(f"a PDU of {count} bytes")
        data = bytearray()
        while len(data) < count:
            part = self._connection.socket.recv(min(READ_BYTES, count - len(data)))
            if not part:
                return data
            data += part
        if count != 6 and not math.isinf(self._connection.alive_at):  # not only the head of a PDU
            self._connection.alive_at = time.monotonic()
        return data


class _Requests:
    """Puts PDUs together into requests."""

    def __init__(self, association: Association, connection: Connection, bounds: Bounds) -> None:
        self._association, self._connection, self._bounds = association, connection, bounds
        self._message: Any = None
        self._command_bytes = 0

    def receive(self, primitive: P_DATA) -> None:
        """Instead of pynetdicom's method: take the parts of a request, and queue the request when it is whole."""
        try:
            for context, data in primitive.presentation_data_value_list:
                self._take(context, data)
        except Exception as error:
            log.warning("a peer does not speak DICOM", error=where(error))
            self._association.dul.event_queue.put("Evt19")  # an invalid PDU: abort

    def _take(self, context: int, data: bytes) -> None:
        message = self._message = self._message or DIMSEMessage()
        is_command = bool(data[0] & 1)
        if is_command:
            self._command_bytes += len(data)
            if message.context_id is not None or self._command_bytes > MAX_COMMAND_BYTES:
                raise ValueError("a second command set, or one that is too large")
        elif not isinstance(message.data_set, IncomingImage):
            raise ValueError("a data set without a C-STORE request")
        part: Any = P_DATA()
        part.presentation_data_value_list = [[context, data]]
        whole = message.decode_msg(part, self._association)
        if is_command and message.context_id is not None:
            if not isinstance(message, C_STORE_RQ | C_ECHO_RQ) or context not in self._association._accepted_cx:
                raise ValueError("neither a C-STORE nor a C-ECHO request, or of a context that was not accepted")
            if isinstance(message, C_STORE_RQ) and not whole:
                message.data_set = self._bounds.open_image(self._association, context, message)
                self._connection.incoming.add(message.data_set)
        if whole:
            if self._association.dimse.msg_queue.qsize() >= MAX_QUEUED:
                raise ValueError("requests without waiting for responses")
            request: Any = message.message_to_primitive()
            message.encoded_command_set, message.data_set = BytesIO(), BytesIO()
            self._association.dimse.msg_queue.put((context, request))
            self._message, self._command_bytes = None, 0
