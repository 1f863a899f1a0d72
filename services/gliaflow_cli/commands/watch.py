"""``gliaflow watch``: a scan that is dropped into one folder is answered in another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags

if TYPE_CHECKING:
    from gliaflow.answer import Answer

    from gliaflow_cli.client.out_folder import Target
    from gliaflow_cli.client.table import ScanRow

POLL_S = 1.0
AT_ONCE = 200  # scans; between two rounds, watch can stop and sees new scans


def watch(
    inbox: Annotated[Path, typer.Argument(help="Folder in which scans appear.", parser=flags.given, metavar="INBOX")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the answers.")],
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
) -> None:
    """Answer each scan that is copied into INBOX, until Ctrl-C or SIGTERM."""
    import structlog
    from gliaflow.flow import open_flow
    from gliaflow_runner.serve import become_owner, stop_on_signals
    from gliaflow_runtime.health import serve_health
    from gliaflow_runtime.logs import configure_logging
    from gliaflow_runtime.settings import load_settings

    from gliaflow_cli.client.inbox import Inbox, write_answer
    from gliaflow_cli.client.out_folder import OutFolder
    from gliaflow_cli.client.summary import ON_PHANTOMS, is_on_phantoms

    settings = load_settings({"broker": broker, "bundle": bundle})
    configure_logging(settings.log_level, settings.log_format)
    log = structlog.get_logger()
    stop = stop_on_signals()
    out.mkdir(parents=True, exist_ok=True)
    become_owner(out)
    log.info("watching", inbox=str(inbox), out=str(out))
    on_phantoms = False
    with (
        OutFolder(out) as folder,
        open_flow(settings) as flow,
        serve_health(settings, lambda: {"broker": flow.broker.connected}),
    ):

        def answered(target: Target, answer: Answer, row: ScanRow) -> None:
            nonlocal on_phantoms
            log.info("answered", status=row.status, seconds=row.seconds, warnings=len(row.warnings))
            if not on_phantoms and is_on_phantoms([row]):
                on_phantoms = True
                log.warning(ON_PHANTOMS)
            write_answer(folder, folder.row(target.scan))

        scans = Inbox(inbox, folder)
        while not stop.wait(POLL_S):
            new = scans.new_scans()
            if list_name := scans.list_left_out():
                # names of files may name patients, so they are in a file and not in the log
                write = log.warning if new.left_out else log.info
                write("files left out", files=len(new.left_out), list=list_name)
            if new.targets:
                folder.answer(flow, new.targets[:AT_ONCE], answered)
