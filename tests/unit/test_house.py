"""The rules of the house: style, types, and who may import whom."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        [sys.executable, "-m", "mypy"],
        ["lint-imports"],
    ],
    ids=["ruff", "format", "mypy", "imports"],
)
def test_rules(command):
    path = [str(Path(sys.executable).parent / command[0])] if command[0] != sys.executable else [sys.executable]
    done = subprocess.run([*path, *command[1:]], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_serving_loads_no_torch():
    """Every module that serves, imported in a process of its own."""
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("serving imports torch")
sys.meta_path.insert(0, NoTorch())
import gliaflow_runner.pipeline, gliaflow_cli.commands.run, gliaflow_cli.commands.demo
import gliaflow_cli.commands.demo_report, gliaflow_cli.commands.watch
import gliaflow_cli.commands.dead, gliaflow_cli.commands.plugins, gliaflow_trainer.service
"""
    subprocess.run([sys.executable, "-c", code], check=True)
