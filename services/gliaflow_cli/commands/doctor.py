"""``gliaflow doctor``: the usual mistakes, each with what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console

if TYPE_CHECKING:
    from gliaflow_runtime.settings import Settings


def doctor(
    broker: flags.Broker = None,
    management: flags.Management = None,
    bundle: flags.Bundle = None,
    device: flags.Device = None,
    inbox: Annotated[Path | None, typer.Option("--inbox", help="Check this inbox too.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Check this folder for answers too.")] = None,
) -> None:
    """Check this machine, the bundle and the broker for the usual mistakes, and print the remedy for each.

    Exit code 1: something is wrong.
    """
    from gliaflow_runtime.settings import load_settings

    settings = load_settings({"broker": broker, "management": management, "bundle": bundle, "device": device})
    raise typer.Exit(1 if examine(settings, inbox, out) else 0)


def examine(settings: Settings, inbox: Path | None = None, out: Path | None = None) -> int:
    """Run all checks, print their results, and return the number of mistakes."""
    from gliaflow_client.management import CLIENT_SERVICES, Management
    from gliaflow_runner.broker import open_broker
    from gliaflow_runtime.broker.interface import BrokerError

    from gliaflow_cli.checks import broker as of_broker
    from gliaflow_cli.checks import machine
    from gliaflow_cli.checks.stages import check_client_service, check_killed

    wrong = _run("onnxruntime", machine.check_onnxruntime)
    wrong += _run("device", lambda: machine.check_device(settings.device))
    wrong += _run("bundle", lambda: machine.check_bundle(settings))
    wrong += _run("plugins", machine.check_plugins)
    wrong += _run("folders", lambda: machine.check_folders(settings, inbox, out))
    if settings.broker.startswith("memory:"):
        console.print("ok     broker: memory://, inside each command; for RabbitMQ: --broker amqp://…", soft_wrap=True)
        return wrong
    try:
        connection = open_broker(settings, connect_timeout=5)
    except (BrokerError, ValueError) as error:
        start = (
            ". To start one: docker compose up --wait rabbitmq, or install rabbitmq-server and "
            f"load gliaflow's limits: {of_broker.IMPORT}"
        )
        remedy = start if "no RabbitMQ" in str(error) else ""
        console.print(f"wrong  broker: {error}{remedy}", style="red", soft_wrap=True)
        return wrong + 1
    api = Management(settings.broker, settings.management, settings.broker_password_file)
    with connection:
        wrong += _run("broker", lambda: of_broker.check_answer(connection, settings.broker.split("@")[-1]))
        wrong += _run("queues", lambda: of_broker.check_queues(connection))
        wrong += _run("declarations", lambda: of_broker.check_declarations(api))
        wrong += _run("policies", lambda: of_broker.check_policies(api))
        wrong += _run("versions", lambda: of_broker.check_versions(api))
        wrong += _run("alarms", lambda: of_broker.check_alarms(api))
        wrong += _run("killed stages", lambda: check_killed(api))
        for user, name in CLIENT_SERVICES.items():
            wrong += _run(name, partial(check_client_service, api, user))
    return wrong


def _run(name: str, check: Callable[[], str]) -> int:
    """Print the result of a check, and return the number of mistakes that it found."""
    from gliaflow_cli.checks.outcome import Unseen, Wrong

    try:
        console.print(f"ok     {name}: {check()}", soft_wrap=True)
    except Unseen as error:
        console.print(f"?      {name}: not checked: {error}", style="yellow", soft_wrap=True)
    except Wrong as error:
        for text in error.args:
            console.print(f"wrong  {name}: {text}", style="red", soft_wrap=True)
        return len(error.args)
    except Exception as error:  # any other error is a mistake too, and the remaining checks still run
        console.print(f"wrong  {name}: {error}", style="red", soft_wrap=True)
        return 1
    return 0
