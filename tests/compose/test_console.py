"""The console in its container: a scan that is posted to it is answered, and still there after a restart.

Run by ``make test-compose``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compose.stack import PORT, Stack, clone
from sample_scans import good_scan

CONSOLE = f"127.0.0.1:{PORT + 40}"
BROKER = f"amqp://gliaflow:gliaflow@localhost:{PORT + 41}/"
NAME = "Zanzibar"  # in the names of the scans

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(
        clone(tmp_path_factory),
        COMPOSE_PROJECT_NAME=f"gliaflow-console-test-{PORT}",
        GLIAFLOW_CONSOLE_PORT=str(PORT + 40),
        GLIAFLOW_AMQP_PORT=str(PORT + 41),
        GLIAFLOW_MANAGEMENT_PORT=str(PORT + 42),
    )
    try:
        stack.compose("up", "--build", "--wait", "--detach")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "20")


def token(stack: Stack) -> str:
    return (stack.folder / "secrets" / "console" / "token").read_text().strip()


def request(
    path: str, token: str = "", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """The status and the body of the answer."""
    given = {"Authorization": f"Bearer {token}"} if token else {}
    prepared = urllib.request.Request(f"http://{CONSOLE}{path}", body, given | (headers or {}))
    try:
        with urllib.request.urlopen(prepared, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def get(path: str, token: str) -> Any:
    status, body = request(path, token)
    assert status == 200, body
    return json.loads(body)


def wait_for(condition: Callable[[], Any], stack: Stack) -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline, stack.compose("logs", "console")
        time.sleep(1)
    return value


def test_only_its_token_opens_it_and_only_on_this_machine(stack: Stack) -> None:
    for path in ("/", "/api/status", "/api/events", "/js/main.js"):
        assert request(path)[0] == 401, path
        assert request(path, "wrong")[0] == 401, path
    assert request("/api/status", token(stack), headers={"Host": "evil.example"})[0] == 403
    assert request("/", token(stack))[0] == 200
    (container,) = [each for each in stack.containers() if each["Service"] == "console"]
    assert container["Health"] == "healthy"
    assert f"{CONSOLE}->8765" in container["Ports"]


def test_scans_of_this_and_of_other_clients_are_answered_and_survive_a_restart(stack: Stack, tmp_path: Path) -> None:
    key = token(stack)
    scan = good_scan(tmp_path / f"{NAME}.nii.gz").read_bytes()
    status, body = request(f"/api/scans?name={NAME}.nii.gz", key, scan)
    assert status == 202, body
    id = json.loads(body)["id"]
    row = wait_for(lambda: (row := get(f"/api/scans/{id}", key))["status"] not in ("queued", "working") and row, stack)
    assert (row["name"], row["status"], row["own"]) == (NAME, "ok", True), row
    mask = request(f"/api/scans/{id}/mask.nii.gz", key)
    good_scan(tmp_path / "scans.nii.gz", seed=1).rename(tmp_path / f"{NAME}2.nii.gz")
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(tmp_path / f"{NAME}2.nii.gz"), "--broker", BROKER]
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True, capture_output=True, timeout=300)
    others = wait_for(lambda: [row for row in get("/api/scans", key)["scans"] if not row["own"]], stack)
    assert [(row["name"], row["status"]) for row in others] == [(f"{NAME}2", "ok")]
    stack.compose("restart", "console")
    stack.compose("up", "--wait", "--detach")
    assert get(f"/api/scans/{id}", key) == row
    assert request(f"/api/scans/{id}/mask.nii.gz", key) == mask


def test_its_strip_shows_a_stopped_stage_and_an_operator_sees_the_console(stack: Stack) -> None:
    key = token(stack)

    def states() -> dict[str, str]:
        return {stage["name"]: stage["state"] for stage in get("/api/status", key)["stages"]}

    wait_for(lambda: set(states().values()) == {"ok"}, stack)
    assert get("/api/status", key)["problem"] == "", "it may read the management API"
    assert get("/api/dead", key)["problem"] == "", "it may read dead letters"
    stack.compose("stop", "generator")
    wait_for(lambda: states()["generator"] == "gone", stack)
    stack.compose("up", "--wait", "--detach")
    doctor = stack.compose("run", "--rm", "--no-deps", "-T", "operator", "doctor")
    assert "console: 1 connected" in doctor


def test_it_writes_only_its_folder_and_no_log_has_a_name_or_the_token(stack: Stack) -> None:
    services = json.loads(stack.compose("config", "--format", "json"))["services"]
    writable = {volume["target"] for volume in services["console"]["volumes"] if not volume.get("read_only")}
    assert writable == {"/console"}
    code = "import os; print(os.getuid(), oct(os.stat('/console').st_mode), sorted(os.listdir('/run/secrets')))"
    output = stack.compose("exec", "-T", "console", "python3", "-c", code).strip()
    assert output == "10001 0o40700 ['password', 'token']"
    metrics = "import urllib.request as u; print(u.urlopen('http://localhost:8080/metrics').read().decode())"
    text = stack.compose("logs") + stack.compose("exec", "-T", "console", "python3", "-c", metrics)
    assert "console-1" in text
    assert NAME not in text
    assert token(stack) not in text
