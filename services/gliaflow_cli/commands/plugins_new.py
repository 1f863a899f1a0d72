"""``gliaflow plugins new``: a plugin's folder, to begin from. It passes its own tests as it is."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.errors import UsageError

KINDS = ("generator", "classifier", "augmentation", "step", "reader")


def write_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """The files of a plugin ``name`` of this kind, written to ``folder``.

    Raises
    ------
    UsageError: the name cannot be one or is taken, the kind is not known, or the folder is there.
    """
    module = f"gliaflow_{name.replace('-', '_')}"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r}: a plugin's name is of lower-case letters and digits, with single dashes between")
    if kind not in KINDS:
        raise UsageError(f"--kind: {kind!r} is not one of {', '.join(KINDS)}")
    if name in getattr(load_registry(), f"{kind}s") or find_spec(module) is not None:
        raise UsageError(f"{name!r}: there is a {kind} or a package {module} already; choose another name")
    if folder.exists():
        raise UsageError(f"{folder}: is there already; name another --out")
    cls = "".join(map(str.capitalize, [*name.split("-"), kind]))  # Cohort alone would hide what a reader returns
    values = {"name": name, "module": module, "kind": kind, "cls": cls}
    templates = files("gliaflow_plugins") / "templates"
    folder.mkdir(parents=True)
    written = [folder / "pyproject.toml", folder / f"{module}.py"]
    for path, template in zip(written, ("pyproject.toml", f"{kind}.py"), strict=True):
        text = (templates / f"{template}.tmpl").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(values), encoding="utf-8")
    return written
