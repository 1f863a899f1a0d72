"""``gliaflow watch``: a scan that is dropped into one folder is answered in another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import until_stopped

if TYPE_CHECKING:
    from gliaflow.answer import Answer
    from gliaflow.flow import Flow
    from gliaflow_client.inbox import Inbox
    from gliaflow_client.out_folder import OutFolder, Target
    from gliaflow_client.table import ScanRow

POLL_S = 1.0
RETRY_S = 5.0  # after a folder could not be used
AT_ONCE = 200  # scans; after each round, watch looks for new scans


@until_stopped()
def watch(
    inbox: Annotated[Path, typer.Argument(help="Folder in which scans appear.", parser=flags.given, metavar="INBOX")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the answers.")],
    capture: flags.Capture = False,
    sequences: flags.Sequences = None,
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
) -> None:
    """Answer each scan that is copied into INBOX, until Ctrl-C or SIGTERM."""
    from gliaflow.opening import open_flow
    from gliaflow_client.inbox import Inbox
    from gliaflow_client.out_folder import OutFolder
    from gliaflow_runtime.ending import interrupt_on_signals
    from gliaflow_runtime.folders import become_owner, why_unreadable, why_unwritable
    from gliaflow_runtime.health import serve_health
    from gliaflow_runtime.logs import configure_logging
    from gliaflow_runtime.settings import load_settings

    if capture:
        from gliaflow_pages.drawing import require_matplotlib

        require_matplotlib()
    settings = load_settings({"broker": broker, "bundle": bundle, "sequences": sequences})
    configure_logging(settings.log_level, settings.log_format)
    log = _log()
    interrupt_on_signals(code=0)
    out.mkdir(parents=True, exist_ok=True)
    become_owner(out)
    log.info("watching", inbox=str(inbox), out=str(out))
    state = State()
    with (
        _until_interrupted(lambda: log.info("stopped: the next start sends the scans without an answer")),
        serve_health(settings, state.ready),
    ):
        while True:
            try:
                state.require(why_unreadable(inbox) or why_unwritable(out))
                with (
                    OutFolder(out, capture=capture) as folder,
                    open_flow(settings, waiting=lambda reason: log.warning("waiting", reason=reason)) as state.flow,
                ):
                    scans = Inbox(inbox, folder, settings.dicom_settle_s, state.flow.sequences)
                    while True:
                        time.sleep(POLL_S)
                        state.require(why_unreadable(inbox) or why_unwritable(out))
                        _answer_new(scans, folder, state)
                        state.works()
            except OSError as error:
                check = f"check the owner and permissions of {out} and of the files in it, and the space on its disk"
                state.fails(f"{error.filename or out}: {error.strerror}: {check}" if error.errno else str(error))
                time.sleep(RETRY_S)


class State:
    """What keeps ``watch`` from working now. The log names each new problem once."""

    def __init__(self) -> None:
        self.flow: Flow | None = None
        self.problem = ""
        self.on_phantoms = False  # the log says so once

    def ready(self) -> dict[str, bool]:
        return {"broker": self.flow is not None and self.flow.broker.connected, "folders": not self.problem}

    def require(self, problem: str) -> None:
        """Raise OSError if there is a problem."""
        if problem:
            raise OSError(problem)

    def fails(self, problem: str) -> None:
        if problem != self.problem:
            _log().error("waits until the folders can be used", reason=problem)
        self.problem = problem

    def works(self) -> None:
        if self.problem:
            _log().info("the folders can be used again")
        self.problem = ""


def _answer_new(scans: Inbox, folder: OutFolder, state: State) -> None:
    """Answer the scans without an answer, at most AT_ONCE of them."""
    from gliaflow_client.inbox import write_answer
    from gliaflow_client.summary import ON_PHANTOMS, is_on_phantoms

    log = _log()

    def answered(target: Target, answer: Answer, row: ScanRow) -> None:
        log.info("answered", status=row.status, seconds=row.seconds, warnings=len(row.warnings))
        if not state.on_phantoms and is_on_phantoms([row]):
            state.on_phantoms = True
            log.warning(ON_PHANTOMS)
        write_answer(folder, folder.row(target.scan))

    new = scans.new_scans()
    if list_name := scans.list_left_out():
        # names of files may name patients, so they are in a file and not in the log
        write = log.warning if new.left_out else log.info
        write("files left out", files=len(new.left_out), list=list_name)
    if new.targets:
        assert state.flow is not None
        folder.answer(state.flow, new.targets[:AT_ONCE], answered)


def _log() -> Any:
    import structlog

    return structlog.get_logger()


@contextmanager
def _until_interrupted(stopped: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stopped()
