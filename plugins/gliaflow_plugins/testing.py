"""The conformance kit: ``pytest --gliaflow MODULE`` checks whether a plugin can train, serve and compete.

MODULE has the hooks. Each thing that it registers must pass the checks of its kind (``gliaflow_plugins.conformance``).
``addopts = "--gliaflow mine"`` in pyproject.toml makes this permanent. Variants are fitted with their defaults, or with
``--gliaflow-option steps=50``. A check that takes longer than ``--gliaflow-deadline`` is ended.

A failing check prints a few lines: what is expected, what the plugin gave, and the line of the plugin's own code.
"""

from __future__ import annotations

import faulthandler
import linecache
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

DEADLINE_S = 300.0
GRACE_S = 30.0  # beyond the deadline: then native code hangs, which nothing can interrupt, and the process is ended
LINES, WIDTH = 6, 400  # of an error's text
PRINTED = 5  # lines of what a failing check printed

_terminal = pytest.StashKey[int]()  # a file descriptor


class DeadlineExceeded(BaseException):
    """A check took too long. Not an Exception: a plugin that catches its own errors must not catch this one."""


class _Item(pytest.Item):
    """A check as a test of pytest."""

    check: Callable[[], None]
    module: str

    def runtest(self) -> None:
        from gliaflow_plugins.conformance import NotRun

        try:
            with _deadline(self.config.getoption("gliaflow_deadline"), self.config.stash[_terminal]):
                self.check()
        except NotRun as error:
            pytest.skip(str(error))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        error = excinfo.value
        lines = str(error).strip().splitlines() or [""]
        text = "\n".join(line[:WIDTH] for line in lines[:LINES]) + ("\n…" if len(lines) > LINES else "")
        if not isinstance(error, AssertionError | DeadlineExceeded):
            text = f"{type(error).__name__}: {text}"
        return f"{self.name}: {text}\n    {_own_line(error, self.module)}"

    def reportinfo(self) -> tuple[Path, int, str]:
        return Path(__file__), 0, self.name


def _own_line(error: BaseException, module: str) -> str:
    """The last line of the plugin's own code in the tracebacks of an error; if there is none, the plugin's file."""
    package = module.partition(".")[0]
    cause: BaseException | None = error
    while cause is not None:
        for frame, number in reversed(list(traceback.walk_tb(cause.__traceback__))):
            name = frame.f_globals.get("__name__", "")
            if name.partition(".")[0] == package and not name.startswith("gliaflow_plugins."):
                code = frame.f_code
                line = linecache.getline(code.co_filename, number).strip()
                return f"{code.co_filename}:{number}, in {code.co_name}: {line}"
        cause = cause.__cause__
    return f"in {getattr(sys.modules.get(module), '__file__', module)}"


@contextmanager
def _deadline(seconds: float, terminal: int) -> Iterator[None]:
    """Raise DeadlineExceeded in this code after so many seconds; end the process if that does not help.

    Where there is no SIGALRM (Windows), the process is ended at once. Then the stack shows where it was.
    """
    interruptible = hasattr(signal, "SIGALRM")
    faulthandler.dump_traceback_later(seconds + GRACE_S * interruptible, exit=True, file=terminal)
    if not interruptible:
        yield
        faulthandler.cancel_dump_traceback_later()
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise DeadlineExceeded(
            f"did not end within {seconds:g} s. Is there an endless loop? If not, shorten the fit "
            "(--gliaflow-option steps=50) or allow more time (--gliaflow-deadline SECONDS)"
        )

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again each second: a loop may catch everything
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # pytest-timeout's
        faulthandler.cancel_dump_traceback_later()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gliaflow``, ``--gliaflow-option`` and ``--gliaflow-deadline``."""
    group = parser.getgroup("gliaflow", "gliaflow plugins")
    group.addoption("--gliaflow", metavar="MODULE", help="check the plugins that the hooks in MODULE register")
    group.addoption(
        "--gliaflow-option", metavar="NAME=VALUE", action="append", default=[], help="an option of its variants"
    )
    group.addoption(
        "--gliaflow-deadline",
        metavar="SECONDS",
        type=float,
        default=DEADLINE_S,
        help=f"the longest that one check may take (default: {DEADLINE_S:g})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the terminal's stderr, which pytest replaces while a check runs."""
    if config.getoption("gliaflow"):
        config.stash[_terminal] = os.dup(2)


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks to the collected tests."""
    module = config.getoption("gliaflow")
    if not module:
        return
    from gliaflow_plugins.conformance import checks

    options = dict(text.split("=", 1) for text in config.getoption("gliaflow_option"))
    for name, check in checks(module, options):
        item = _Item.from_parent(session, name=name)
        item.check, item.module = check, module
        items.append(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the last lines of what a check printed: torch logs thousands of lines while it exports a network."""
    outcome = yield
    if isinstance(item, _Item):
        report = outcome.get_result()  # type: ignore[attr-defined]
        report.sections = [
            (title, "\n".join(text.splitlines()[-PRINTED:])) for title, text in report.sections if "log" not in title
        ]
