"""``gliaflow status``: the queues and the stages of a broker."""

from __future__ import annotations

from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console

REFRESH_S = 2.0


def status(
    broker: flags.Broker = None,
    management: flags.Management = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Print again every two seconds, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print the queues of a broker, their rates, the time left, and the stages that run."""
    import json
    import time
    from dataclasses import asdict

    from gliaflow_client.management import Management
    from gliaflow_client.queues import as_lines, read_status
    from gliaflow_runner.broker import open_broker
    from gliaflow_runtime.settings import load_settings
    from rich.console import Group
    from rich.live import Live

    settings = load_settings({"broker": broker, "management": management})
    api = None
    if not settings.broker.startswith("memory:"):
        api = Management(settings.broker, settings.management, settings.broker_password_file)
    with open_broker(settings, connect_timeout=5) as connection:

        def read() -> list[str]:
            status = read_status(connection, api, settings.broker.split("@")[-1])
            return json.dumps(asdict(status), indent=2).split("\n") if as_json else as_lines(status)

        if not watch:
            console.print(*read(), sep="\n", soft_wrap=True)
            return
        while not console.is_terminal:
            console.print(*read(), sep="\n", soft_wrap=True, end="\n\n")
            time.sleep(REFRESH_S)
        with Live(Group(*read()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_S)
                live.update(Group(*read()), refresh=True)
