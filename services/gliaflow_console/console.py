"""The console as a whole: scans, pipeline, threads and server, from the start to the end of the process."""

from __future__ import annotations

import math
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from urllib.parse import quote

import structlog
from gliaflow.opening import open_flow
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.logs import where
from gliaflow_runtime.settings import Settings

from gliaflow_console.app import build_app
from gliaflow_console.context import Console
from gliaflow_console.guard import Access
from gliaflow_console.networks import Networks
from gliaflow_console.observer import Observer
from gliaflow_console.sender import ScanSender
from gliaflow_console.server import ConsoleServer, is_loopback, listen
from gliaflow_console.stages import StageStrip
from gliaflow_console.store import ScanStore

FIRST_S = 3.0  # the longest wait for the broker until the page comes up
RETRY_S = 5.0
LEAVE_S = 6.0  # the longest wait for the threads at the end
TOKEN = re.compile(r"[!-~]{16,512}")  # characters of a header, without the space
TOKEN_FILE_BYTES = 4096
MAKE_ONE = (
    "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))', and set it as "
    "GLIAFLOW_CONSOLE_TOKEN, or put it into a file and name that as GLIAFLOW_CONSOLE_TOKEN_FILE"
)

log = structlog.get_logger()


def run_console(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve the console until SIGTERM or SIGINT.

    Parameters
    ----------
    announce: gets the address, once browsers can open it.

    Raises
    ------
    UsageError: a setting cannot be used. The text says what to do.
    KeyboardInterrupt: the process was ended by a signal.
    """
    with ExitStack() as stack:
        own_token = operators_token(settings)
        listener = stack.enter_context(listen(settings.console_host, settings.console_port))
        if not own_token and not is_loopback(listener):
            raise UsageError(
                f"--host {settings.console_host}: other machines can reach this address, so the console needs a token "
                f"of yours there: {MAKE_ONE}"
            )
        stopping = threading.Event()
        store = stack.enter_context(ScanStore(settings))
        roots = [*settings.roots, str(store.uploads)]  # of the stages in this process
        flow = stack.enter_context(
            open_flow(
                settings.model_copy(update={"roots": roots}),
                waiting=lambda reason: log.warning("waiting", reason=reason),
                connect_timeout=FIRST_S,
                outage_timeout=math.inf,
            )
        )
        console = Console(
            settings,
            flow,
            store,
            StageStrip(settings, flow, stopping),
            Observer(flow.broker, store, stopping),
            ScanSender(flow, store, stopping),
            Networks(settings),
            stopping,
        )
        token = own_token or secrets.token_urlsafe(32)
        access = Access(token, tuple(settings.console_names), int(settings.console_upload_mib * 2**20))
        stack.enter_context(serve_health(settings, lambda: {"broker": flow.broker.connected}))
        server = ConsoleServer(build_app(console, access), stopping)
        loops = (console.stages.run, console.observer.run, console.sender.run, partial(store.keep_tidy, stopping))
        stack.callback(_leave, console, start_threads(stopping, *loops))
        announce(address(settings, listener, "" if own_token else token))
        server.run([listener])


def start_threads(stopping: threading.Event, *loops: Callable[[], None]) -> list[threading.Thread]:
    """Run each loop in a thread, until the console stops. One that fails starts again: the page must not grow old."""

    def keep(loop: Callable[[], None]) -> None:
        while not stopping.is_set():
            try:
                loop()
            except Exception as error:
                log.error("a part of the console failed, and starts again", error=where(error))
                stopping.wait(RETRY_S)

    threads = [threading.Thread(target=keep, args=[loop], name="console", daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    return threads


def _leave(console: Console, threads: list[threading.Thread]) -> None:
    """End the threads, also if the broker is away, before the flow is closed."""
    console.stopping.set()
    console.flow.broker.hurried = True
    console.sender.stop()
    deadline = time.monotonic() + LEAVE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def operators_token(settings: Settings) -> str:
    """The token of the settings; empty: there is none.

    Raises
    ------
    UsageError: its file cannot be read, or it is too short. The text does not quote it.
    """
    token, name = settings.console_token, "GLIAFLOW_CONSOLE_TOKEN"
    if not token and settings.console_token_file is not None:
        name = f"GLIAFLOW_CONSOLE_TOKEN_FILE: {settings.console_token_file}"
        try:
            with settings.console_token_file.open("rb") as file:
                token = file.read(TOKEN_FILE_BYTES).decode("utf-8", "replace").strip()
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}: check the path, its owner and permissions") from None
        if not token:
            raise UsageError(f"{name}: the file is empty: {MAKE_ONE}")
    if token and not TOKEN.fullmatch(token):
        raise UsageError(f"{name}: expected 16 to 512 letters, digits and signs of ASCII, without spaces: {MAKE_ONE}")
    return token


def address(settings: Settings, listener: socket.socket, token: str) -> str:
    """The address of the console for a browser on this machine. ``token`` empty: the operator's, which is not shown."""
    host = settings.console_host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{listener.getsockname()[1]}/?token={quote(token, safe='') if token else '(your token)'}"
