"""The digest of the code that a plugin depends on. A fit that was kept is reused while the digest is the same."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "gliaflow_plugins"


def digest(files: Iterable[Path]) -> str:
    """16 hexadecimal digits that change with any of ``files``."""
    code = hashlib.sha256()
    for path in sorted(files):
        code.update(path.read_bytes() if path.is_file() else str(path).encode())
    return code.hexdigest()[:16]


def imported_files(module: str, root: Path) -> set[Path]:
    """The file of ``module`` and of each ``gliaflow_plugins`` module that it imports, directly or indirectly.

    Imports inside functions count. The files are parsed and not executed.

    Parameters
    ----------
    root: the folder that contains the package.
    """
    files: set[Path] = set()
    pending = [module]
    while pending:
        path = _file_of(pending.pop(), root)
        if path is None or path in files:
            continue
        files.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                pending += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:  # the names may be modules too
                pending += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return files


def _file_of(module: str, root: Path) -> Path | None:
    if module.partition(".")[0] != PACKAGE:
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
