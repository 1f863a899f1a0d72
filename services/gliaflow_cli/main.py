"""The ``gliaflow`` command. It only registers: each command is a file in ``commands``."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from types import TracebackType
from typing import Annotated

import typer
from gliaflow_runtime.ending import INTERRUPTED, end_now, interrupt_on_signals
from gliaflow_runtime.visible import visible

from gliaflow_cli.commands import (
    augment,
    cohort,
    console,
    dead,
    demo,
    dicom,
    doctor,
    evaluate,
    generate,
    phantom,
    plugins,
    quantize,
    serve,
    status,
    store,
    submit,
    train,
    watch,
)
from gliaflow_cli.terminal import Commands, print_error

app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def _print_versions(wanted: bool) -> None:
    if wanted:
        from gliaflow_runtime.version import versions

        typer.echo(versions())
        raise typer.Exit


@app.callback()
def gliaflow(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Print all versions and exit."),
    ] = False,
) -> None:
    """Brain MRI scans in; tumour masks, deep features, class-balanced synthetic features and a glioma grade out.

    Try `gliaflow demo --out out/demo`, then `gliaflow submit SCANS --out out`.

    Settings: flags, then GLIAFLOW_* in the environment, then gliaflow.toml in the working folder (only those that say
    how to compute and log), then your own ~/.config/gliaflow/gliaflow.toml.

    Exit codes: 0 all well, 1 some scans failed, 2 bad usage, 130 interrupted.

    Not a medical device.
    """


for command in (
    demo.demo,
    serve.serve,
    submit.submit,
    watch.watch,
    console.console,
    generate.generate,
    phantom.phantom,
    cohort.cohort,
    train.train,
    quantize.quantize,
    evaluate.evaluate,
    augment.augment,
    doctor.doctor,
    status.status,
    store.store,
):
    app.command()(command)
app.add_typer(dead.app, name="dead")
app.add_typer(dicom.app, name="dicom")
app.add_typer(plugins.app, name="plugins")


def main() -> None:
    """Run the command. An error that the user can fix is printed in one line."""
    interrupt_on_signals()
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that this one starts import nothing from the working folder
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal without UTF-8
    sys.excepthook = _print_bug
    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print_error(error, _sentence(error))
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            end_now(INTERRUPTED)  # stages in this process may still compute
        raise


def _print_bug(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """Print the traceback of an unexpected error. Its text may have names of files in it."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        print(visible(line), file=sys.stderr)


def _print_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print a Python warning on one line."""
    print(visible(f"{category.__name__}: {message}"), file=sys.stderr)


def _sentence(error: Exception) -> str:
    """The error's text. An error of the system: the file, what is wrong with it, and where it can be, the remedy."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    remedies = {
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path: a part of it is a file",
        errno.EEXIST: "a file has this name: name another path",
        errno.EISDIR: "name a file, or move the folder",
        errno.EACCES: "check its owner and permissions, or name another path",
        errno.EPERM: "check its owner and permissions, or name another path",
        errno.EROFS: "name a path on a disk that can be written",
        errno.ENOSPC: "free some space, or name a path on another disk",
        errno.ENAMETOOLONG: "name a shorter path",
    }
    reason = error.strerror or type(error).__name__
    remedy = remedies.get(error.errno, "")
    parts = [os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "", reason, remedy]
    return ": ".join(part for part in parts if part)


def _exit_code(error: Exception) -> int | None:
    """2 for a mistake in the request, 1 for work that could not be done, None for a bug."""
    from gliaflow_plugins.contracts import PluginError
    from gliaflow_runtime.broker.interface import BrokerError
    from gliaflow_runtime.errors import UsageError

    if isinstance(error, UsageError | PluginError):
        return 2
    if isinstance(error, BrokerError | OSError):
        return 1
    return None
