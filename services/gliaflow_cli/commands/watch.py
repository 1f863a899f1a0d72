"""``gliaflow watch``: a scan that is dropped into one folder is answered in another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags

if TYPE_CHECKING:
    from gliaflow.answer import Answer

POLL_S = 1.0


def watch(
    inbox: Annotated[Path, typer.Argument(help="Folder in which scans appear.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the answers.")],
    broker: flags.Broker = None,
) -> None:
    """Answer each scan that is dropped into INBOX, until SIGTERM."""
    import structlog
    from gliaflow.flow import open_flow
    from gliaflow_runner.serve import become_owner, stop_on_signals
    from gliaflow_runtime.health import serve_health
    from gliaflow_runtime.logs import configure_logging
    from gliaflow_runtime.settings import load_settings

    from gliaflow_cli.client.inbox import new_scans, write_answer
    from gliaflow_cli.client.table import TABLE, read_table, save_answers

    settings = load_settings({"broker": broker})
    configure_logging(settings.log_level, settings.log_format)
    log = structlog.get_logger()
    stop = stop_on_signals()
    out.mkdir(parents=True, exist_ok=True)
    become_owner(out)
    log.info("watching", inbox=str(inbox), out=str(out))
    with open_flow(settings) as flow, serve_health(settings, lambda: {"broker": flow.broker.connected}):
        while not stop.wait(POLL_S):
            new = new_scans(inbox, out)
            changed = {item.name: at for item, at in new}

            def answered(answer: Answer, changed: dict[str, int] = changed) -> None:
                log.info("answered", status=answer.status, seconds=answer.seconds)
                write_answer(out, answer, changed[answer.scan])

            if new:
                save_answers(flow, [item for item, _ in new], out, known=read_table(out / TABLE), answered=answered)
