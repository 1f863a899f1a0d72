"""The rules of the house: style, types, imports, sizes and names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ROOMS = ("proto", "plugins", "services")
PACKAGES = sorted(path.parent for room in ROOMS for path in (ROOT / room).glob("*/__init__.py"))
LONG_FUNCTIONS_ALLOWED = 4
HTML = re.compile(r"<(div|table|tr|td|span|p|html|style|section|figure|svg)\b")


@cache
def sources() -> dict[Path, ast.Module]:
    """The syntax tree of each Python file in the rooms, by its path from the root of the repository."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield path, node


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]],
    ids=["ruff", "format", "mypy", "imports"],
)
def test_the_tools_of_make_check_accept_the_tree(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_serving_imports_no_torch() -> None:
    """Import every module but those of the rooms that learn, in a process in which torch cannot be imported."""
    code = """
import importlib, pkgutil, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("serving imports torch")

sys.meta_path.insert(0, NoTorch())
learning = ("gliaflow_trainer", "gliaflow_evaluation", "gliaflow_plugins.networks")
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.startswith(learning) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
importlib.import_module("gliaflow_trainer.service")
"""
    packages = [path.name for path in PACKAGES if path.name not in ("gliaflow_trainer", "gliaflow_evaluation")]
    done = subprocess.run([sys.executable, "-c", code, *packages], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_functions_take_few_parameters() -> None:
    """Eight or more are too many: pass one object. The signatures of typer's commands are the command line itself."""
    long = []
    for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if path.parent.name == "commands" and node.name == path.stem:
            continue
        positional = [*node.args.posonlyargs, *node.args.args]
        bound = bool(positional) and positional[0].arg in ("self", "cls")
        count = len(positional) + len(node.args.kwonlyargs) - bound
        if count >= 8:
            long.append(f"{path}:{node.lineno} {node.name} takes {count}")
    assert len(long) <= LONG_FUNCTIONS_ALLOWED, "\n".join(long)


def test_files_are_short() -> None:
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {str(path): count for path, count in lines.items() if count > 400} == {}


def test_html_is_in_templates_and_not_in_python() -> None:
    found = [
        f"{path}:{node.lineno} {node.value[:60]!r}"
        for path, node in nodes(ast.Constant)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and HTML.search(node.value)
    ]
    assert found == []


def test_public_classes_have_names_of_their_own() -> None:
    homes = defaultdict(list)
    for package in PACKAGES:
        for path, tree in sources().items():
            if (ROOT / path).is_relative_to(package):
                for node in tree.body:
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                        homes[node.name].append(str(path))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_folders_of_unit_tests_are_named_after_packages() -> None:
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders - {"deploy"} <= {path.name for path in PACKAGES}
