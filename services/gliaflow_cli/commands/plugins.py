"""``gliaflow plugins``: what is installed, and what failed to load."""

from __future__ import annotations

from gliaflow_plugins.registry import load_registry
from rich.console import Console
from rich.table import Table


def show_plugins(console: Console, verbose: bool = False) -> int:
    """``gliaflow plugins``: 1 if one failed to load."""
    registry = load_registry()
    table = Table("kind", "name", "from", "options", box=None)
    for kind, found in (
        ("augmentation", registry.augmentations),
        ("generator", registry.generators),
        ("classifier", registry.classifiers),
        ("step", registry.steps),
        ("reader", registry.readers),
    ):
        for name, plugin in found.items():
            origin = registry.origins[kind, name]
            options = getattr(plugin, "options", None)
            told = ", ".join(f"{k}={f.default}" for k, f in options.model_fields.items()) if options else ""
            table.add_row(kind, name, f"{origin.distribution} {origin.version}", "" if verbose else told)
            if verbose:
                table.add_row("", "", origin.file, "")
                for option, about in (options.model_fields if options else {}).items():
                    table.add_row("", f"  {option}", str(about.default), about.description or "")
    console.print(table)
    for problem in registry.problems:
        console.print(f"failed  {problem}", style="red", soft_wrap=True)
    return 1 if registry.problems else 0
