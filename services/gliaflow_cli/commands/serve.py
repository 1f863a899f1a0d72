"""``gliaflow serve``: one service as a process."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import until_stopped
from gliaflow_cli.terminal import console


class Service(StrEnum):
    """The names in ``gliaflow_runner.services.SERVICES``, which takes long to import."""

    preprocessor = "preprocessor"
    extractor = "extractor"
    generator = "generator"
    classifier = "classifier"
    trainer = "trainer"


@until_stopped()
def serve(
    stage: Annotated[Service, typer.Argument(help="The stage to run.")],
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    generator: flags.Served = None,
    health_port: Annotated[
        int | None, typer.Option("--health-port", help="Port for /livez, /readyz, /metrics.")
    ] = None,
    prefetch: Annotated[int | None, typer.Option("--prefetch", help="Messages that it holds at a time.")] = None,
    root: Annotated[
        list[str] | None, typer.Option("--root", help="A folder or URL that scan URIs may point into; repeatable.")
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", help="Trainer: folder of the feature store.")] = None,
    bundles: Annotated[
        Path | None, typer.Option("--bundles", help="Folder of bundles; the trainer writes new ones into it.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Trainer: demo, small or paper, as for `gliaflow train`.")
    ] = None,
    show: Annotated[bool, typer.Option("--show-settings", help="Print every setting with its value and exit.")] = False,
) -> None:
    """Run one stage on a broker. Ctrl-C or SIGTERM lets it finish the message in work, then ends it.

    The trainer records the features of labelled scans and fits new bundles on them. It needs the extra "train".
    """
    from gliaflow_runner.keeper import outlive_kills
    from gliaflow_runtime.broker.url import without_password
    from gliaflow_runtime.logs import configure_logging
    from gliaflow_runtime.settings import SECRET, load_settings

    settings = load_settings(
        {
            "broker": broker,
            "bundle": bundle,
            "device": device,
            "threads": threads,
            "generator": generator,
            "health_port": health_port,
            "prefetch": prefetch,
            "roots": root or None,
            "store": store,
            "bundles": bundles,
            "train_profile": profile,
        }
    )
    if show:
        for name, field in type(settings).model_fields.items():
            value = getattr(settings, name)
            shown = without_password(value) if name in SECRET else value
            console.print(f"{name} = {shown}  # {field.description}", soft_wrap=True)
        return
    if settings.broker.startswith("memory:"):
        raise typer.BadParameter(
            "memory:// is inside one process, so a stage alone on it never gets a message; "
            f"name a RabbitMQ: --broker amqp://{stage.value}@localhost/"
        )
    configure_logging(settings.log_level, settings.log_format)
    killed = outlive_kills(stage.value, settings) if settings.restart_killed else ""
    from gliaflow_runner.serve import serve as serve_stage  # after the fork: it takes memory

    serve_stage(stage.value, settings, killed)
