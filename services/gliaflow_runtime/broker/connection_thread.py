"""A pika connection and the thread that owns it.

pika's connections are not thread-safe, and an idle one still has to send heartbeats. So each connection has a thread
that serves it all the time; other threads submit jobs to it.
"""

from __future__ import annotations

import contextlib
import math
import queue as queues
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pika
import structlog
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # a stalled handshake; not an AMQPError
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from gliaflow_runtime.broker.credentials import Credentials, explain_tls_error
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.url import without_password

POLL_S = 1.0  # between two checks of a call that waits
PATIENCE_S = 3.0  # the longest wait of a call for the broker in a process that ends
CLOSE_S = 2.0  # the longest wait of ``close``
SLOW_POLLS = 10  # a broker that answers later than this is reported
PAUSE_S = (0.1, 10.0)  # first and longest pause between attempts to connect
STEADY_S = 5.0  # a connection that lasted this long resets the pauses
FRAME_FAULTS = range(501, 506)  # reply codes that blame the frames of this client, not the state of the broker

REPR = re.compile(r"""\(?\w+: \((?P<quote>["'])(?P<text>.*)(?P=quote),\)[,)]*""")

log = structlog.get_logger()
Channel = Any  # pika has no type annotations
Result = TypeVar("Result")


@dataclass
class Server:
    """A RabbitMQ server or cluster, and how to connect to it. The fields are the arguments of ``AmqpBroker``.

    ``hurried``: as ``Broker.hurried``.
    """

    url: str
    credentials: Credentials = field(default_factory=Credentials)
    connect_timeout: float = 60
    outage_timeout: float = 300
    about: Mapping[str, str] = field(default_factory=dict)
    waiting: Callable[[str], None] = lambda reason: None
    hurried: bool = False


@dataclass
class _Job:
    action: Callable[[Channel], Any]
    future: Future[Any] | None  # None: no caller waits for it


class ConnectionThread:
    """A connection with one channel, and the thread that owns both.

    Parameters
    ----------
    name: for logs and RabbitMQ's management page.
    prepare: called with each new channel.
    lost: called after a connection is lost, before the next one.
    ended: called when there will be no further connection.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        prepare: Callable[[Channel], None],
        lost: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.failure: BrokerError | None = None
        self._server, self._name = server, name
        self._parameters()  # reports an error of the URL or the files at once
        self._url = without_password(server.url)
        self._log = log.bind(broker=self._url, link=name)
        self._prepare, self._lost, self._ended = prepare, lost, ended
        self._jobs: queues.SimpleQueue[_Job] = queues.SimpleQueue()
        self._again: _Job | None = None  # the job that was running when the connection was lost
        self._connection: Any = None
        self._blocked = ""  # the alarm for which the broker takes no messages now
        self._error = ""  # why there is no connection now
        self._closing_since: float | None = None
        self._channel: Channel = None
        self._renew = ""
        self._pause = PAUSE_S[0]
        self._stop = threading.Event()
        self._gate = threading.Lock()  # no job may be submitted after the thread has answered the last one
        self._over = False
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"gliaflow {name}", daemon=True)

    def open(self) -> None:
        """Connect for the first time. With an infinite ``outage_timeout``, return also if no broker answers in time.

        Raises
        ------
        BrokerError: no broker answers in time, or it denies access.
        ChannelClosedByBroker: the broker refused a request of ``prepare``.
        """
        self._thread.start()
        try:
            if self._patient:
                with contextlib.suppress(TimeoutError):
                    self._opened.result(self._server.connect_timeout)
            else:
                self._await(self._opened)
        except BaseException:
            self.close()
            raise

    def call(self, action: Callable[[Channel], Result]) -> Result:
        """Run ``action`` in the connection's thread and return its result; run it again if the connection is lost.

        Raises
        ------
        BrokerError: the connection is closed, lost permanently, or away while ``Server.hurried`` is set.
        Exception: as raised by ``action``.
        """
        future: Future[Result] = Future()
        self._submit(_Job(action, future))
        return self._await(future)

    def post(self, action: Callable[[Channel], None]) -> None:
        """Run ``action`` in the connection's thread without waiting; drop it if the connection is lost first."""
        with contextlib.suppress(BrokerError):
            self._submit(_Job(action, None))

    def renew(self, why: str) -> None:
        """Replace the connection by a new one. Call it in the connection's thread."""
        self._renew = why

    @property
    def _patient(self) -> bool:
        return self._server.outage_timeout == math.inf

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        connection = self._connection
        return connection is not None and bool(connection.is_open)

    @property
    def trouble(self) -> str:
        """As ``Broker.trouble``."""
        if self._blocked:
            return (
                f"RabbitMQ at {self._url} takes no messages now, because of an alarm ({self._blocked}): free memory or "
                "disk space there (rabbitmq-diagnostics alarms)"
            )
        if not self.connected:
            reason = f" ({self._error})" if self._error else ""
            return f"no connection to RabbitMQ at {self._url}{reason}: is it running? Connecting again"
        return ""

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._stop.is_set()

    def close(self) -> None:
        """Finish the submitted jobs, then disconnect. A thread that does not end within CLOSE_S is left behind."""
        self.stop()
        started = self._thread.ident is not None
        if started and threading.current_thread() is not self._thread and self._closing_since is not None:
            self._thread.join(max(0.0, self._closing_since + CLOSE_S - time.monotonic()))

    def stop(self) -> None:
        """Begin to close, without waiting."""
        if self._closing_since is None:
            self._closing_since = time.monotonic()
        self._stop.set()
        self._wake()

    def _await(self, future: Future[Result]) -> Result:
        """The future's result. During a long wait, report its reason; in a process that ends, do not wait long."""
        polls = hurried = 0
        while True:
            try:
                return future.result(timeout=POLL_S)
            except TimeoutError:
                if future.done():
                    return future.result()
            polls += 1
            hurried += self._server.hurried
            silent = f"RabbitMQ at {self._url} does not answer: it hangs, or the network is slow"
            if polls >= SLOW_POLLS or self.trouble:
                self._server.waiting(self.trouble or silent)
            if hurried * POLL_S >= PATIENCE_S:
                raise BrokerError(self.trouble or silent)

    def _parameters(self) -> list[Any]:
        return self._server.credentials.parameters(self._server.url, self._name, self._server.about)

    def _submit(self, job: _Job) -> None:
        with self._gate:
            if self._over:
                raise self.failure or BrokerError(f"the connection to {self._url} is closed")
            self._jobs.put(job)
        self._wake()

    def _wake(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(AMQPError, OSError):  # a lost connection: the thread checks its jobs anyway
                connection.add_callback_threadsafe(lambda: None)

    # the methods below run in the connection's thread

    def _run(self) -> None:
        try:
            self._live()
        except BrokerError as error:
            self.failure = error
        except Exception as error:  # callers must not wait for a thread that has ended
            self.failure = BrokerError(f"internal fault of the connection to {self._url}: {error!r}")
            self._log.exception("broker link failed")
        with self._gate:
            self._over = True
        gone = self.failure or BrokerError(f"the connection to {self._url} is closed")
        if not self._opened.done():
            self._opened.set_exception(gone)
        while job := self._next_job():
            if job.future:
                job.future.set_exception(gone)
        self._ended()

    def _live(self) -> None:
        """Connect and serve, again after each loss, until ``close`` or a timeout."""
        while self._connect():
            since = time.monotonic()
            if not self._opened.done():
                self._opened.set_result(None)
            try:
                self._serve()
                return
            except (AMQPError, OSError) as error:
                self._error = text(error)
                self._log.warning("broker connection lost", error=self._error)
            finally:
                self._disconnect()
            self._lost()
            if time.monotonic() - since > STEADY_S:
                self._pause = PAUSE_S[0]
            self._rest()

    def _connect(self) -> bool:
        """Connect and prepare a channel; False after ``close``."""
        timeout = self._server.outage_timeout if self._opened.done() else self._server.connect_timeout
        until = time.monotonic() + timeout
        while not self._stop.is_set():
            try:
                # in random order, so that clients spread over the nodes of a cluster
                nodes = self._parameters()
                self._connection = pika.BlockingConnection(random.sample(nodes, len(nodes)))
                self._watch_alarms()
                self._open_channel()
                if self._opened.done():
                    self._log.info("broker connected again")
                return True
            # BrokerError: a password or certificate file that is just being replaced
            except (AMQPError, AMQPConnectorException, OSError, BrokerError) as error:
                self._disconnect()
                self._error = text(error)
                late = time.monotonic() > until
                if not self._opened.done() and not (late and self._patient):
                    self._raise_if_permanent(error)
                if late and self._patient:
                    self._opened.set_result(None)
                    until = math.inf
                elif late:
                    raise BrokerError(
                        f"no RabbitMQ at {self._url} within {timeout:g} s ({text(error)}): "
                        "start one, or name another by --broker or GLIAFLOW_BROKER"
                    ) from None
                self._log.debug("broker not there yet", error=text(error))
            self._rest()
        return False

    def _raise_if_permanent(self, error: Exception) -> None:
        """Raise BrokerError if another attempt would not help."""
        if isinstance(error, ChannelClosedByBroker):
            self._opened.set_exception(error)
            raise BrokerError(text(error)) from None
        denied = (AuthenticationError, ProbableAuthenticationError, ProbableAccessDeniedError)
        cut = "StreamLostError" in str(error)  # a connection lost in the handshake, which pika reports as denied
        if (isinstance(error, denied) and not cut) or getattr(error, "reply_code", 0) in (403, 530):
            raise BrokerError(
                f"RabbitMQ at {self._url} refuses the access ({text(error)}): "
                "check user, password (of the URL, or in broker_password_file) and virtual host"
            ) from None
        if explanation := explain_tls_error(str(error)) or explain_tls_error(text(error)):
            raise BrokerError(f"no connection to RabbitMQ at {self._url}: {explanation}") from None

    def _rest(self) -> None:
        self._stop.wait(self._pause * random.uniform(0.5, 1))
        self._pause = min(PAUSE_S[1], 2 * self._pause)

    def _watch_alarms(self) -> None:
        # pika calls the callbacks of a BlockingConnection only between two calls, so not while a publish waits
        connection = self._connection._impl
        connection.add_on_connection_blocked_callback(lambda _, frame: self._alarm(frame.method.reason))
        connection.add_on_connection_unblocked_callback(lambda _, frame: self._alarm(""))

    def _alarm(self, reason: str) -> None:
        self._blocked = reason
        if reason:
            self._log.warning("the broker takes no messages now", alarm=reason)
        else:
            self._log.info("the broker takes messages again")

    def _open_channel(self) -> None:
        self._renew = ""
        self._channel = self._connection.channel()
        self._prepare(self._channel)

    def _serve(self) -> None:
        """Run jobs and process the connection's events until ``close``. Raises when the connection is lost."""
        while True:
            if job := self._next_job():
                self._do(job)
            elif self._stop.is_set():
                return
            else:
                self._connection.process_data_events(time_limit=1)
            if self._renew:
                raise AMQPConnectionError(self._renew)
            if self._channel.is_closed:  # by the broker, for example because an acknowledgement came too late
                raise ChannelWrongStateError("the broker closed the channel")

    def _do(self, job: _Job) -> None:
        try:
            result = job.action(self._channel)
        except (AMQPConnectionError, ChannelWrongStateError) as error:
            at_fault = isinstance(error, ConnectionClosedByBroker) and error.reply_code in FRAME_FAULTS
            if job.future and at_fault:
                job.future.set_exception(error)
            elif job.future:
                self._again = job
            raise
        except Exception as error:
            if not job.future:
                raise
            if self._channel.is_closed:
                self._open_channel()
            job.future.set_exception(error)
        else:
            if job.future:
                job.future.set_result(result)

    def _next_job(self) -> _Job | None:
        job, self._again = self._again, None
        if job is None:
            with contextlib.suppress(queues.Empty):
                job = self._jobs.get_nowait()
        return job

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._blocked = ""
        if connection is None:
            return
        with contextlib.suppress(AMQPError, OSError):
            if connection.is_open:
                connection.close()
            else:  # pika has no public way to free the sockets of a connection that was lost while it was set up
                connection._cleanup()


def text(error: Exception) -> str:
    """The text of a pika error. Many have none; connection errors wrap the system's error."""
    inner = getattr(error.args[0], "exception", None) if error.args else None
    message = getattr(error, "reply_text", "") or str(inner or error) or type(error).__name__
    wrapped = REPR.fullmatch(message)  # pika also wraps errors in its texts: StreamLostError: ("…",)
    return wrapped["text"] if wrapped else message
