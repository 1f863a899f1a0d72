"""The operator's token and the address that is printed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from gliaflow_console import console
from gliaflow_console.console import address, operators_token, run_console, start_threads
from gliaflow_console.server import is_loopback, listen
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from structlog.testing import capture_logs

LONG = "0123456789abcdef"


def test_no_token_is_set() -> None:
    assert operators_token(Settings()) == ""


def test_the_token_of_a_file_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{LONG}\n")
    assert operators_token(Settings(console_token_file=tmp_path / "token")) == LONG
    assert operators_token(Settings(console_token_file=tmp_path / "token", console_token=LONG * 2)) == LONG * 2


@pytest.mark.parametrize("token", ["short", LONG[1:], f"{LONG} with spaces", f"{LONG}ü", f"{LONG}\n{LONG}", "x" * 513])
def test_a_weak_or_unusable_token_is_refused_without_quoting_it(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    for settings in (Settings(console_token=token), Settings(console_token_file=tmp_path / "token")):
        with pytest.raises(UsageError, match=r"GLIAFLOW_CONSOLE_TOKEN.*16 to 512.*python3 -c") as caught:
            operators_token(settings)
        assert token not in str(caught.value)


def test_a_file_that_is_missing_or_empty_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CONSOLE_TOKEN_FILE: .*missing: No such file or directory: check the path"):
        operators_token(Settings(console_token_file=tmp_path / "missing"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match=r"the file is empty: make one with: python3"):
        operators_token(Settings(console_token_file=tmp_path / "empty"))


def test_other_machines_need_a_token_of_the_operator() -> None:
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0: other machines .*GLIAFLOW_CONSOLE_TOKEN_FILE"):
        run_console(Settings(console_host="0.0.0.0", console_port=0), lambda address: None)


def test_the_printed_address_can_be_opened_on_this_machine() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):  # the second: all addresses of this machine
        with listen(host, 0) as listener:
            assert is_loopback(listener) == (host == "127.0.0.1")
            port = listener.getsockname()[1]
            shown = address(Settings(console_host=host), listener, "a/b")
            assert shown == f"http://127.0.0.1:{port}/?token=a%2Fb"


def test_the_operators_own_token_is_not_printed() -> None:
    with listen("localhost", 0) as listener:
        assert is_loopback(listener)
        assert address(Settings(), listener, "").endswith("/?token=(your token)")


def test_a_part_that_fails_starts_again(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "RETRY_S", 0.01)
    stopping, runs = threading.Event(), []

    def fails_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("Jane Doe")
        stopping.set()

    with capture_logs() as logged:
        (thread,) = start_threads(stopping, fails_once)
        thread.join(10)
    assert len(runs) == 2
    assert "RuntimeError at test_console.py" in str(logged)
    assert "Jane" not in str(logged)


def test_a_port_in_use_is_refused_with_the_remedy() -> None:
    with (
        listen("127.0.0.1", 0) as first,
        pytest.raises(UsageError, match=r"--port \d+: cannot listen there \(Address already in use\).*--port 0"),
    ):
        listen("127.0.0.1", first.getsockname()[1])


def test_a_name_that_is_no_address_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--host no\.such\.host\.invalid --port 1: cannot listen there"):
        listen("no.such.host.invalid", 1)
