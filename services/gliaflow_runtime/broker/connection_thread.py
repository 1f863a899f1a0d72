"""A pika connection and the thread that owns it.

pika's connections are not thread-safe, and one that nobody attends to misses its heartbeats. So each belongs to a
thread of its own that attends to it all the time; other threads leave jobs for it.
"""

from __future__ import annotations

import contextlib
import queue as queues
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import pika
import structlog
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # a handshake that stalls is no AMQPError
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

from gliaflow_runtime.broker.credentials import Access, tls_trouble
from gliaflow_runtime.broker.interface import BrokerError, without_password

PAUSE_S = (0.1, 10.0)  # between attempts to connect: first and longest
STEADY_S = 5.0  # a connection that lived so long was a good one: the pauses start anew
FRAME_FAULTS = range(501, 506)  # reply codes that blame what was sent, not the state of the broker

log = structlog.get_logger()
Channel = Any  # pika is not typed for us
Result = TypeVar("Result")


@dataclass
class _Job:
    action: Callable[[Channel], Any]
    future: Future[Any] | None  # None: nobody waits for it


class Link:
    """A connection with one channel, and the thread that owns both.

    Parameters
    ----------
    url, timeouts, access: as ``AmqpBroker`` takes them.
    name: for the log.
    prepare: called with each new channel.
    lost: called when the connection is gone, before the next one.
    ended: called when there will be none any more.
    about: more to show of this client, beside the name.
    """

    def __init__(
        self,
        url: str,
        timeouts: tuple[float, float],
        access: Access,
        name: str,
        prepare: Callable[[Channel], None],
        lost: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.failure: BrokerError | None = None
        self._parameters: Callable[[], list[Any]] = lambda: access.parameters(url, name, about)
        self._parameters()  # what is wrong with URL or files is told at once
        self._url = without_password(url)
        self._first_timeout, self._outage_timeout = timeouts
        self._log = log.bind(broker=self._url, link=name)
        self._prepare, self._lost, self._ended = prepare, lost, ended
        self._jobs: queues.SimpleQueue[_Job] = queues.SimpleQueue()
        self._again: _Job | None = None  # was in work when the connection went
        self._connection: Any = None
        self._channel: Channel = None
        self._renew = ""
        self._pause = PAUSE_S[0]
        self._stop = threading.Event()
        self._gate = threading.Lock()  # so that no job is left behind by a thread that has ended
        self._over = False
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"gliaflow {name}", daemon=True)

    def open(self) -> None:
        """Connect for the first time.

        Raises
        ------
        BrokerError: no broker within the time, or it refuses the access.
        ChannelClosedByBroker: it refused what ``prepare`` asked for.
        """
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.close()
            raise

    def call(self, action: Callable[[Channel], Result]) -> Result:
        """Run ``action`` in the link's thread and wait for its result; again, should the connection be lost meanwhile.

        Raises
        ------
        BrokerError: the link is closed or lost for good.
        Exception: what ``action`` raised.
        """
        future: Future[Result] = Future()
        self._leave(_Job(action, future))
        return future.result()

    def post(self, action: Callable[[Channel], None]) -> None:
        """Have ``action`` run in the link's thread; forget it should the connection be lost first."""
        with contextlib.suppress(BrokerError):
            self._leave(_Job(action, None))

    def renew(self, why: str) -> None:
        """Give up this connection for a new one. Called in the link's thread."""
        self._renew = why

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        connection = self._connection
        return connection is not None and bool(connection.is_open)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._stop.is_set()

    def close(self) -> None:
        """Finish the jobs that were left, then disconnect."""
        self._stop.set()
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _leave(self, job: _Job) -> None:
        with self._gate:
            if self._over:
                raise self.failure or BrokerError(f"the connection to {self._url} is closed")
            self._jobs.put(job)
        self._wake()

    def _wake(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(AMQPError, OSError):  # it is being lost: the thread looks at the jobs anyway
                connection.add_callback_threadsafe(lambda: None)

    # what follows runs in the link's thread

    def _run(self) -> None:
        try:
            self._live()
        except BrokerError as error:
            self.failure = error
        except Exception as error:  # never leave callers waiting for a thread that died
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
        """Connect, serve, and again after each loss, until ``close`` or a time limit."""
        while self._connect(self._outage_timeout if self._opened.done() else self._first_timeout):
            since = time.monotonic()
            if not self._opened.done():
                self._opened.set_result(None)
            try:
                self._serve()
                return
            except (AMQPError, OSError) as error:
                self._log.warning("broker connection lost", error=text(error))
            finally:
                self._disconnect()
            self._lost()
            if time.monotonic() - since > STEADY_S:
                self._pause = PAUSE_S[0]
            self._rest()

    def _connect(self, timeout: float) -> bool:
        """Connect and prepare a channel; False once the link was closed."""
        until = time.monotonic() + timeout
        while not self._stop.is_set():
            try:
                # in another order each time: the links of a cluster's clients spread over its nodes
                nodes = self._parameters()
                self._connection = pika.BlockingConnection(random.sample(nodes, len(nodes)))
                self._open_channel()
                if self._opened.done():
                    self._log.info("broker connected again")
                return True
            # BrokerError: a file that is being changed
            except (AMQPError, AMQPConnectorException, OSError, BrokerError) as error:
                self._disconnect()
                if not self._opened.done():
                    self._refuse(error)
                if time.monotonic() > until:
                    raise BrokerError(
                        f"no RabbitMQ at {self._url} within {timeout:g} s ({text(error)}): "
                        "start one, or name another by --broker or GLIAFLOW_BROKER"
                    ) from None
                self._log.debug("broker not there yet", error=text(error))
            self._rest()
        return False

    def _refuse(self, error: Exception) -> None:
        """Raise where another attempt would not help."""
        if isinstance(error, ChannelClosedByBroker):
            self._opened.set_exception(error)
            raise BrokerError(text(error)) from None
        denied = (AuthenticationError, ProbableAuthenticationError, ProbableAccessDeniedError)
        cut = "StreamLostError" in str(error)  # in the handshake: pika takes that for a refusal
        if (isinstance(error, denied) and not cut) or getattr(error, "reply_code", 0) in (403, 530):
            raise BrokerError(
                f"RabbitMQ at {self._url} refuses the access ({text(error)}): "
                "check user, password (of the URL, or in broker_password_file) and virtual host"
            ) from None
        if trouble := tls_trouble(str(error)) or tls_trouble(text(error)):
            raise BrokerError(f"no connection to RabbitMQ at {self._url}: {trouble}") from None

    def _rest(self) -> None:
        self._stop.wait(self._pause * random.uniform(0.5, 1))
        self._pause = min(PAUSE_S[1], 2 * self._pause)

    def _open_channel(self) -> None:
        self._renew = ""
        self._channel = self._connection.channel()
        self._prepare(self._channel)

    def _serve(self) -> None:
        """Do jobs and attend to the connection until the link is closed. Raises when the connection is lost."""
        while True:
            if job := self._next_job():
                self._do(job)
            elif self._stop.is_set():
                return
            else:
                self._connection.process_data_events(time_limit=1)
            if self._renew:
                raise AMQPConnectionError(self._renew)
            if self._channel.is_closed:  # by the broker: an acknowledgement came too late, or the like
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
        if connection is None:
            return
        with contextlib.suppress(AMQPError, OSError):
            if connection.is_open:
                connection.close()
            else:  # pika keeps the sockets of one that was lost as soon as it stood, and has no public way to free them
                connection._cleanup()


def text(error: Exception) -> str:
    """A pika error in words. Many have none of their own; one of connecting wraps what the system said."""
    inner = getattr(error.args[0], "exception", None) if error.args else None
    return getattr(error, "reply_text", "") or str(inner or error) or type(error).__name__
