"""``gliaflow plugins``: what is installed, and what failed to load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gliaflow_cli.terminal import console

app = typer.Typer(invoke_without_command=True)


@app.callback()
def plugins(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Each option's meaning, and each file.")] = False,
) -> None:
    """List what is installed: from where, with which options, and what failed to load and why."""
    if context.invoked_subcommand is None:
        raise typer.Exit(show_plugins(console, verbose))


@app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Its name: lower-case letters, digits, dashes.")],
    kind: Annotated[
        str, typer.Option("--kind", help="generator, classifier, augmentation, step or reader.")
    ] = "generator",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: gliaflow-NAME.")] = None,
) -> None:
    """Write a plugin to start from: a package that installs, and that passes `pytest` unchanged."""
    from gliaflow_cli.commands.plugins_new import write_plugin

    folder = out or Path(f"gliaflow-{name}")
    for path in write_plugin(name, kind, folder):
        console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"next:  cd {folder} && pip install -e . && pytest && gliaflow plugins", soft_wrap=True)


def show_plugins(console: Console, verbose: bool = False) -> int:
    """Print the table of plugins and the problems. The exit code is 1 if a plugin failed to load."""
    from gliaflow_plugins.kinds import KINDS
    from gliaflow_plugins.registry import load_registry
    from rich.table import Table

    registry = load_registry()
    table = Table("kind", "name", "from", "options", box=None)
    for kind in KINDS.values():
        for name, plugin in registry.of(kind).items():
            origin = registry.origins[kind.name, name]
            options = plugin.options.model_fields if kind.has_options else {}
            defaults = ", ".join(f"{option}={about.default}" for option, about in options.items())
            table.add_row(kind.name, name, f"{origin.distribution} {origin.version}", "" if verbose else defaults)
            if verbose:
                table.add_row("", "", origin.file, "")
                for option, about in options.items():
                    table.add_row("", f"  {option}", str(about.default), about.description or "")
    console.print(table)
    for problem in registry.problems:
        console.print(f"failed  {problem}", style="red", soft_wrap=True)
    return 1 if registry.problems else 0
