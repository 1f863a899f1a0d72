"""``gliaflow plugins new``: writes the folder of a plugin to start from. It passes its own tests unchanged."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from gliaflow_plugins.kinds import KINDS
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.errors import UsageError


def an(kind: str) -> str:
    """The kind of a plugin with its article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def write_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """Write a plugin ``name`` of this kind to ``folder``, from the kind's template, and return its files.

    Raises
    ------
    UsageError: the name is not valid or is taken, the kind is unknown, or the folder exists.
    """
    module = f"gliaflow_{name.replace('-', '_')}"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"{name!r}: use lower-case letters and digits, with single dashes between, for a plugin's name"
        )
    if kind not in KINDS:
        raise UsageError(f"--kind: {kind!r} is not one of {', '.join(KINDS)}")
    if name in load_registry().of(KINDS[kind]) or find_spec(module) is not None:
        raise UsageError(f"{name!r}: {an(kind)} or a package {module} of this name exists; choose another name")
    if folder.exists():
        raise UsageError(f"{folder} exists already; name another folder with --out")
    # The class name ends in the kind: a reader called Cohort would hide the Cohort that it returns.
    cls = "".join(map(str.capitalize, [*name.split("-"), kind]))
    is_fitted = KINDS[kind].method == "fit"
    values = {
        "name": name,
        "module": module,
        "kind": kind,
        "a_kind": an(kind),
        "cls": cls,
        "fits": ', "gliaflow[train]"' if is_fitted else "",  # its checks need torch
        "options": " --gliaflow-option steps=200" if is_fitted else "",  # a short fit is enough for them
    }
    templates = files("gliaflow_plugins") / "templates"
    (folder / module).mkdir(parents=True)
    written = {
        folder / "pyproject.toml": "pyproject.toml.tmpl",
        folder / module / "__init__.py": KINDS[kind].template,
    }
    for path, template in written.items():
        text = (templates / template).read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(values), encoding="utf-8")
    return list(written)
