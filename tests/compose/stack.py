"""The stack of ``docker-compose.yml`` under test, and a clone of the repository to build it from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from requirements import skip_or_fail

ROOT = Path(__file__).parents[2]
PORT = int(os.environ.get("GLIAFLOW_TEST_COMPOSE_PORT", "25672"))


class Stack:
    """The containers of one compose project, with a project name, ports and folders of its own."""

    def __init__(self, folder: Path, *overrides: str, **settings: str) -> None:
        self.folder = folder
        self.files = [argument for file in ("docker-compose.yml", *overrides) for argument in ("-f", file)]
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": f"gliaflow-test-{PORT}",
            "GLIAFLOW_AMQP_PORT": str(PORT),
            "GLIAFLOW_AMQPS_PORT": str(PORT - 1),
            "GLIAFLOW_MANAGEMENT_PORT": str(PORT + 1),
            "GLIAFLOW_CONSOLE_PORT": str(PORT + 2),
            "GLIAFLOW_VERSION": "test",
            **settings,
        }

    def compose(self, *arguments: str, check: bool = True, seconds: float = 600, **settings: str) -> str:
        command = ["docker", "compose", *self.files, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | settings, capture_output=True, text=True, timeout=seconds
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def containers(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.compose("ps", "--format", "json").splitlines()]


def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks or would add, as a fresh clone would have them."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        skip_or_fail("no Docker engine answers")
    folder = tmp_path_factory.mktemp("clone") / "gliaflow"
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder
