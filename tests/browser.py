"""The console as a process, and Debian's Chromium that opens it.

Each module of tests has one console (``memory://``, the demo bundle) and one browser. Each test has a page of its own.
``conftest.py`` of a folder makes the fixtures available there.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect, sync_playwright
from processes import GLIAFLOW, environment
from requirements import require_program

SWITCHES = [  # no sandbox in a container, WebGL2 without a GPU, nothing that calls home
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 30_000
EXPECTED = ("Failed to load resource", "Blocked script execution in")  # of a refusal; of a script in a report
ANSWERED = ("ok", "no tumour", "failed")


@dataclass
class ConsoleProcess:
    """``gliaflow console`` as a process.

    Parameters
    ----------
    folder: of its state and its log. arguments: of the command. settings: as environment variables.
    """

    folder: Path
    arguments: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    broker: str = "memory://"
    address: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The address without the token."""
        return self.address.partition("?")[0]

    @property
    def token(self) -> str:
        return self.settings.get("GLIAFLOW_CONSOLE_TOKEN") or self.address.partition("token=")[2]

    @property
    def log(self) -> str:
        return (self.folder / "console.log").read_text()

    def start(self, port: int = 0) -> None:
        """Start it and wait until it prints its address."""
        with (self.folder / "console.log").open("w") as log:
            self.process = subprocess.Popen(
                [*GLIAFLOW, "console", "--port", str(port), *self.arguments],
                env=environment(self.folder, self.broker) | self.settings,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        lines: Queue[str] = Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        try:
            while "http://" not in self.address:
                self.address = lines.get(timeout=60).strip().removeprefix("console: ")
                assert self.address or self.process.poll() is None, self.log
        except Empty:
            self.stop(signal.SIGKILL)
            pytest.fail(f"the console printed no address:\n{self.log}")

    def _read(self, lines: Queue[str]) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                lines.put(line)
        lines.put("")

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send the signal and wait for the exit code."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        code = self.process.wait(20)
        self.address = ""
        return code

    def get(self, path: str) -> Any:
        """The JSON answer of the HTTP API."""
        return json.loads(self.request("GET", path))

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            f"{self.url}{path}", body, {"Authorization": f"Bearer {self.token}"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def wait_row(self, name: str, timeout: float = 60) -> dict[str, Any]:
        """The row of the newest scan with that name, once it is answered."""
        deadline = time.monotonic() + timeout
        while True:
            for row in self.get("api/scans")["scans"]:
                if row["name"] == name and row["status"] in ANSWERED:
                    return dict(row)
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)


def drop(page: Page, *paths: Path) -> None:
    """Drop files or folders on the page, as from a file manager. JavaScript alone cannot make a folder to drop."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    page.evaluate("addEventListener('drop', () => document.documentElement.setAttribute('dropped', ''), {once: true})")
    deadline = time.monotonic() + WAIT_MS / 1000
    while page.locator("html[dropped]").count() == 0:  # Chromium ignores a drop on a page that it has not drawn yet
        assert time.monotonic() < deadline, "the page got no drop"
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})
        page.wait_for_timeout(500)
    page.evaluate("document.documentElement.removeAttribute('dropped')")
    session.detach()


def scan_row(page: Page, name: str) -> Locator:
    """The row of the newest scan with that name."""
    link = page.get_by_role("link", name=name, exact=True)
    return page.locator("table.scans tbody tr").filter(has=link).first


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """A console with the stages inside and a folder of reports, which is empty at first."""
    require_program("chromium")  # before the console starts in vain
    folder = tmp_path_factory.mktemp("console")
    (folder / "reports").mkdir()
    process = ConsoleProcess(folder, ("--reports", str(folder / "reports")))
    process.start()
    yield process
    assert process.stop() == 0, process.log


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = require_program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield browser
        browser.close()


NewPage = Callable[..., Page]


@pytest.fixture
def new_page(chromium: Browser) -> Iterator[NewPage]:
    """Opens a page in a browser context of its own: without cookies of other tests. Options are those of the context.

    A script error, or content that the page's security policy blocks, fails the test.
    """
    expect.set_options(timeout=WAIT_MS)
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def report(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            problems.append(message.text)

    def open_page(address: str, **options: Any) -> Page:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", report)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(new_page: NewPage, console: ConsoleProcess) -> Page:
    """The console's first page, opened with its token."""
    return new_page(console.address)
