"""``gliaflow plugins``: what is installed, and what failed to load."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gliaflow_cli.terminal import console

app = typer.Typer(invoke_without_command=True)


@app.callback()
def plugins(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Each option's meaning, and each plugin's file.")
    ] = False,
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
    console.print(f"next:  cd {folder} && pip install -e '.[test]' && pytest && gliaflow plugins", soft_wrap=True)


def show_plugins(console: Console, verbose: bool = False) -> int:
    """Print the plugins of each kind, and the problems. The exit code is 1 if a plugin failed to load."""
    from gliaflow_plugins.kinds import KINDS
    from gliaflow_plugins.registry import load_registry

    registry = load_registry()
    for kind in KINDS.values():
        plugins = registry.of(kind)
        if not plugins:
            continue
        console.print(f"{kind.name}s", style="bold")
        longest = max(map(len, plugins))
        for name, plugin in plugins.items():
            origin = registry.origins[kind.name, name]
            options = plugin.options.model_fields if kind.has_options else {}
            console.print(f"  {name:{longest}}  {origin.distribution} {origin.version}", soft_wrap=True)
            if verbose:
                console.print(f"      {origin.file}", soft_wrap=True)
                for option, about in options.items():
                    _print_indented(console, f"{option}={about.default}  {about.description or ''}")
            elif options:
                _print_indented(console, ", ".join(f"{option}={about.default}" for option, about in options.items()))
    for problem in registry.problems:
        console.print(f"failed  {problem}", style="red", soft_wrap=True)
    return 1 if registry.problems else 0


def _print_indented(console: Console, text: str) -> None:
    """Print a text below its plugin, wrapped to the terminal. No word is cut."""
    indent = " " * 6
    lines = textwrap.wrap(
        text,
        max(40, console.width),
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(*lines, sep="\n", soft_wrap=True)
