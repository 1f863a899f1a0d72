"""``gliaflow console``: scans, masks, queues and generators in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import until_stopped
from gliaflow_cli.terminal import console as terminal


@until_stopped()
def console(
    port: Annotated[
        int | None, typer.Option("--port", help="Port to listen on; default: 8765; 0: a free one.", min=0, max=65535)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Keep scans and answers in this folder, with predictions.csv and masks as `submit`."
        ),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option("--reports", help="Folder with evaluations and trainings to show.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; default: 127.0.0.1, this machine only.")
    ] = None,
    broker: flags.Broker = None,
    management: flags.Management = None,
    bundle: flags.Bundle = None,
    sequences: flags.Sequences = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
) -> None:
    """Show scans, masks, queues and generators in a browser, until Ctrl-C or SIGTERM.

    It prints an address: open it in a browser, and drop a scan on the page. Without --broker the stages run inside, so
    this one command is all that is needed. With --broker it shows a running pipeline and sends your scans to it.

    The address has a token. Everyone with the token can use the console. Programs send it in a header
    (docs/console-api.md):

    curl -H "Authorization: Bearer TOKEN" --data-binary @a.nii.gz "http://127.0.0.1:8765/api/scans?name=a.nii.gz"

    With --host 0.0.0.0 other machines can open the console. It then needs a token of yours (GLIAFLOW_CONSOLE_TOKEN or
    GLIAFLOW_CONSOLE_TOKEN_FILE), and a proxy with TLS in front of it. GLIAFLOW_CONSOLE_NAMES has the names by which
    browsers address it. Limits: the settings console_* of `gliaflow serve extractor --show-settings`.
    """
    import resource

    from gliaflow_runtime.settings import load_settings

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold patients' scans
    settings = load_settings(
        {
            "console_port": port,
            "console_folder": out,
            "console_reports": reports,
            "console_host": host,
            "broker": broker,
            "management": management,
            "bundle": bundle,
            "sequences": sequences,
            "device": device,
            "threads": threads,
        }
    )
    from gliaflow_runtime.ending import interrupt_on_signals
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.folders import become_owner
    from gliaflow_runtime.logs import configure_logging

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UsageError(
            "the console needs packages that are not installed: pip install 'gliaflow[serve,console]'"
        ) from None
    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    configure_logging(level, settings.log_format)
    interrupt_on_signals(code=0)
    if settings.console_folder is not None:
        settings.console_folder.mkdir(parents=True, exist_ok=True)
        become_owner(settings.console_folder)
    from gliaflow_console.console import run_console

    def announce(address: str) -> None:
        terminal.print(f"console: {address}", soft_wrap=True)
        if settings.console_folder is None:
            terminal.print("Scans and answers live as long as this process. --out DIR keeps them.", soft_wrap=True)

    run_console(settings, announce)
