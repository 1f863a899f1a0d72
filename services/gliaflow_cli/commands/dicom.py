"""``gliaflow dicom``: a DICOM node that answers the FLAIR series a PACS sends, and the studies it has set aside."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import until_stopped
from gliaflow_cli.terminal import console

if TYPE_CHECKING:
    from gliaflow_runtime.settings import Settings

app = typer.Typer(invoke_without_command=True)

Spool = Annotated[
    Path | None, typer.Option("--spool", help="Folder for images and answers; default: dicom in gliaflow's state.")
]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids, or the start of them.", metavar="ID")]
Every = Annotated[bool, typer.Option("--all", help="Every study that is set aside.")]


@app.callback()
@until_stopped()
def dicom(
    context: typer.Context,
    allow: Annotated[
        str | None, typer.Option("--allow", help="AE titles that may send images: ORTHANC,CT1; any: every sender.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="Where answers go: AE@HOST:PORT or https://HOST/dicom-web; repeatable."),
    ] = None,
    pacs: Annotated[
        str | None,
        typer.Option("--pacs", help="AE@HOST:PORT of the archive that says how many images a series has (C-FIND)."),
    ] = None,
    capture: Annotated[
        bool | None, typer.Option("--capture", help="Also send a secondary capture, for viewers without SEG.")
    ] = None,
    spool: Spool = None,
    ae: Annotated[str | None, typer.Option("--ae", help="Own AE title; default: GLIAFLOW.")] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; default: 11112.")] = None,
    settle: Annotated[
        float | None, typer.Option("--settle", help="A study is read when no image came for so many seconds.")
    ] = None,
    sequences: flags.Sequences = None,
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
    health_port: Annotated[
        int | None, typer.Option("--health-port", help="Port for /livez, /readyz, /metrics.")
    ] = None,
) -> None:
    """Receive studies from a PACS, answer their FLAIR series, and send the answers back, until Ctrl-C or SIGTERM.

    Try it with an Orthanc on this machine (AE title ORTHANC, port 4242): `gliaflow dicom --allow ORTHANC --to
    ORTHANC@localhost:4242`, and send a study from Orthanc to GLIAFLOW, localhost, 11112.

    An answer is a segmentation (SEG) and a report (SR) in the same study. They are sent until each --to accepts them.
    Studies that cannot be answered are set aside: `gliaflow dicom list` shows why; `retry` and `delete` end it.

    The spool holds patient data. Logs, metrics and the broker get none. TLS and limits: the settings dicom_* of
    `gliaflow serve extractor --show-settings`.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold patients' headers
    if context.invoked_subcommand:
        return
    settings = _settings(
        spool,
        dicom_allow=allow,
        dicom_to=",".join(to) if to else None,
        dicom_pacs=pacs,
        dicom_capture=capture,
        dicom_ae=ae,
        dicom_host=host,
        dicom_port=port,
        dicom_settle_s=settle,
        sequences=sequences,
        broker=broker,
        bundle=bundle,
        health_port=health_port,
    )
    import threading

    from gliaflow_runtime.ending import interrupt_on_signals
    from gliaflow_runtime.folders import become_owner
    from gliaflow_runtime.logs import configure_logging

    if settings.dicom_capture:
        from gliaflow_pages.drawing import require_matplotlib

        require_matplotlib()
    configure_logging(settings.log_level, settings.log_format)
    interrupt_on_signals(code=0)
    if settings.dicom_spool.exists():
        become_owner(settings.dicom_spool)
    import structlog
    from gliaflow_dicom.node.node import run_node
    from gliaflow_runtime.logs import where

    log = structlog.get_logger()
    threading.excepthook = lambda error: log.warning("a thread ended", error=error.exc_value and where(error.exc_value))
    run_node(settings, lambda: log.info("stopped: images and answers stay in the spool for the next start"))


@app.command("list")
def list_studies(spool: Spool = None) -> None:
    """Print each study that is set aside: id, time, kind, images, StudyInstanceUID, reason."""
    import time

    from gliaflow_dicom.node.aside import list_aside, study_uid

    folder = _existing_spool(spool)
    studies = list_aside(folder)
    for each in studies:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.at))
        images = f"{each.images} image{'' if each.images == 1 else 's'}"
        uid = study_uid(folder, each.study)
        console.print(f"{each.study[:12]}  {at}  {each.kind:10}  {images}, study {uid}: {each.reason}", soft_wrap=True)
    console.print(f"{_count(len(studies))} set aside in {folder}")


@app.command("retry")
def retry_studies(
    ids: Ids = None,
    every: Every = False,
    series: Annotated[
        list[str] | None,
        typer.Option("--series", help="Take this series: its number, UID, or a part of its description; repeatable."),
    ] = None,
    spool: Spool = None,
) -> None:
    """Have studies read again, once the cause is fixed. An incomplete series is taken as it is."""
    from gliaflow_dicom.node.aside import check_series, choose_aside, list_aside, take_back
    from gliaflow_runtime.errors import UsageError

    if bool(ids) == every:
        raise UsageError("name the studies to retry by their ids (gliaflow dicom list), or all of them with --all")
    if series and not all(text.strip() for text in series):
        raise UsageError("--series is empty: give a SeriesNumber, a SeriesInstanceUID or a part of the description")
    folder = _existing_spool(spool)
    studies = list_aside(folder) if every else choose_aside(folder, ids or [])
    for each in studies if series else ():
        check_series(folder, each.study, series or ())
    for each in studies:
        with _moved(each.study):
            take_back(folder, each.study, declared=series or [])
    console.print(f"to be read again by the node: {_count(len(studies))}")


@app.command("delete")
def delete_studies(
    ids: Ids = None,
    every: Every = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    spool: Spool = None,
) -> None:
    """Delete studies that are set aside, with their images, for good."""
    from gliaflow_dicom.node.aside import choose_aside, delete_aside, list_aside
    from gliaflow_runtime.errors import UsageError

    if bool(ids) == every:
        raise UsageError("name the studies to delete by their ids (gliaflow dicom list), or all of them with --all")
    folder = _existing_spool(spool)
    studies = list_aside(folder) if every else choose_aside(folder, ids or [])
    if studies and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this deletes {_count(len(studies))} for good: add --yes")
        typer.confirm(f"Delete {_count(len(studies))} for good?", abort=True)
    for each in studies:
        with _moved(each.study):
            delete_aside(folder, each.study)
    console.print(f"{_count(len(studies))} deleted")


def _count(studies: int) -> str:
    return f"{studies} {'study' if studies == 1 else 'studies'}"


@contextmanager
def _moved(study: str) -> Iterator[None]:
    """Say why a study is not set aside any more."""
    from gliaflow_runtime.errors import UsageError

    try:
        yield
    except FileNotFoundError:
        raise UsageError(
            f"study {study[:12]} is not set aside any more: more of its images came, or it was deleted"
        ) from None


def _existing_spool(spool: Path | None) -> Path:
    """The spool of a node, to be changed as its owner. Raises UsageError: there is none, or it cannot be read."""
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.folders import become_owner, why_unreadable

    folder = _settings(spool).dicom_spool
    if folder.is_dir():
        become_owner(folder)
        if problem := why_unreadable(folder):
            raise UsageError(problem)
    if not (folder / "aside").is_dir():
        raise UsageError(f"there is no spool in {folder}: name it with --spool or GLIAFLOW_DICOM_SPOOL")
    return folder


def _settings(spool: Path | None, **given: object) -> Settings:
    """The settings. Raises UsageError: the extra ``dicom`` is not installed."""
    from gliaflow_plugins.cohorts.dicom_scans import INSTALL
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.settings import load_settings

    try:
        import pynetdicom  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(f"gliaflow dicom needs: {INSTALL}") from None
    return load_settings({"dicom_spool": spool, **given})
