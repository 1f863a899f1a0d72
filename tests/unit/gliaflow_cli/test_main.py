"""The command: all commands are registered, ``--help`` is fast, and errors have exit codes."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import gliaflow_cli.commands
import pytest
from gliaflow.submission import NoStage
from gliaflow_cli import main
from gliaflow_cli.commands.serve import Service
from gliaflow_plugins.contracts import PluginError
from gliaflow_runner.services import SERVICES
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.inference import DeviceError
from gliaflow_runtime.settings import SettingsError
from gliaflow_runtime.version import VERSION
from typer.main import get_command
from typer.testing import CliRunner

HELPERS = {"__init__", "answers_report", "plugins_new"}  # files in commands/ that are not commands
FILES = {path.stem for path in Path(gliaflow_cli.commands.__path__[0]).glob("*.py")} - HELPERS


def test_each_file_in_commands_is_a_command() -> None:
    assert {*get_command(main.app).commands} == FILES  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_command_has_help(name: str) -> None:
    done = CliRunner().invoke(main.app, [name, "--help"])
    assert done.exit_code == 0
    assert f"{name} [OPTIONS]" in done.output


@pytest.mark.parametrize("name", sorted(FILES))
def test_help_cuts_no_word_on_a_terminal_of_80_columns(name: str) -> None:
    done = CliRunner().invoke(main.app, [name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert not re.findall(r"\w+…", done.output)


@pytest.mark.parametrize("name", ["submit", "cohort", "train", "evaluate", "watch"])
def test_an_empty_path_is_bad_usage_and_not_the_current_folder(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, [name, "", *([] if name == "cohort" else ["--out", str(tmp_path / "out")])])
    assert done.exit_code == 2
    assert "the path is empty" in done.output
    assert not (tmp_path / "out").exists()


def test_the_versions_are_one_line() -> None:
    done = CliRunner().invoke(main.app, ["--version"])
    assert done.exit_code == 0
    assert done.output.count("\n") == 1
    for part in (f"gliaflow {VERSION}", f"Python {platform.python_version()}", "onnxruntime", platform.system()):
        assert part in done.output


def test_help_imports_no_large_library() -> None:
    code = """
import sys
import gliaflow_cli.main
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"numpy", "pydantic", "nibabel", "structlog", "matplotlib", "torch", "onnxruntime"}, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


INTERRUPTED_IMPORT = """
import signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            signal.raise_signal(signal.SIGTERM)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["gliaflow", *"{arguments}".split()]
from gliaflow_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments", "code", "text"),
    [
        ("gliaflow_cli.commands.demo", "--help", 130, "gliaflow: interrupted\n"),
        ("gliaflow_runtime.settings", "status", 130, "gliaflow: interrupted\n"),
        ("gliaflow_runtime.settings", "submit x --out out", 130, "interrupted: the answers so far are in "),
        ("gliaflow_runtime.settings", "watch in --out out", 0, ""),
        ("gliaflow_runtime.settings", "serve extractor", 0, ""),
    ],
)
def test_a_command_that_is_interrupted_while_it_is_imported_ends_without_a_traceback(
    tmp_path: Path, module: str, arguments: str, code: int, text: str
) -> None:
    program = INTERRUPTED_IMPORT.format(module=module, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(text)
    assert done.stderr.count("\n") == bool(text)


def test_serve_offers_the_services_that_exist() -> None:
    assert [service.value for service in Service] == list(SERVICES)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PluginError("x"), 2),
        (SettingsError("x"), 2),
        (BundleError("x"), 2),
        (DeviceError("x"), 2),
        (BrokerError("x"), 1),
        (NoStage("x"), 1),
        (OSError("x"), 1),
    ],
)
def test_an_error_that_a_user_can_fix_is_one_line_and_an_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == "gliaflow: x\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b: No such file or directory: check the path"),
        (IsADirectoryError(21, "Is a directory", "t.csv"), "t.csv: Is a directory: name a file, or move the folder"),
        (OSError(28, "No space left on device"), "No space left on device: free some space, or name a path on another"),
    ],
)
def test_an_error_of_the_system_is_a_sentence_with_the_file_and_the_remedy(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err.startswith(f"gliaflow: {text}")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise KeyError("x")

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(KeyError):
        main.main()


@pytest.mark.parametrize(
    "arguments", [("a", "--high", "IV"), ("a", "b", "--labelled"), ("a", "--labelled", "--grade", "HGG")]
)
def test_flags_that_read_a_cohort_need_labelled(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main.app, ["submit", *arguments, "--out", "x"])
    assert done.exit_code == 2
    assert "--labelled" in done.stderr


def test_processes_of_a_command_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    """multiprocessing starts ``python -c``, which looks for modules in the working folder first."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "multiprocessing.py").write_text("print('code that came with the scans')")
    (tmp_path / "command.py").write_text("""
from multiprocessing import get_context
from gliaflow_cli import main

def app():
    process = get_context("spawn").Process(target=print, args=("a fold",))
    process.start()
    process.join()

if __name__ == "__main__":
    main.app = app
    main.main()
""")
    command = [sys.executable, str(tmp_path / "command.py")]
    done = subprocess.run(command, cwd=tmp_path / "scans", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("a fold\n", "")


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("raise RuntimeError(NAME)", r"RuntimeError: P1\x1b[2J\u202e"),
        ("import warnings; warnings.warn(NAME)", r"UserWarning: P1\x1b[2J\u202e"),
        ("import os; os.stat(NAME)", r"gliaflow: P1\x1b[2J\u202e: No such file or directory: check the path"),
    ],
)
def test_a_hostile_name_in_an_unexpected_error_or_a_warning(code: str, shown: str, tmp_path: Path) -> None:
    program = f"""
from gliaflow_cli import main
NAME = "P1\\x1b[2J\\u202e"
def app():
    {code}
main.app = app
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == shown
