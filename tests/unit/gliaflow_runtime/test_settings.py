"""Settings: a flag overrides the environment, which overrides the file; an error names its setting."""

import subprocess
import sys
from pathlib import Path

import pytest
from gliaflow_cli.main import app
from gliaflow_runtime.settings import Settings, SettingsError, available_cores, load_settings
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("BROKER", "THREADS", "CONFIG", "ROOTS"):
        monkeypatch.delenv(f"GLIAFLOW_{name}", raising=False)
    return tmp_path


def test_the_default_broker_is_in_memory():
    assert load_settings().broker == "memory://"


def test_a_flag_overrides_the_environment_which_overrides_the_file(elsewhere, monkeypatch):
    (elsewhere / "gliaflow.toml").write_text('threads = 2\nbatch = 7\nbroker = "amqp://file/"\n')
    monkeypatch.setenv("GLIAFLOW_THREADS", "3")
    monkeypatch.setenv("GLIAFLOW_BROKER", "amqp://environment/")
    settings = load_settings({"broker": "amqp://flag/", "threads": None})
    assert (settings.broker, settings.threads, settings.batch) == ("amqp://flag/", 3, 7)


def test_a_list_in_the_environment_is_json(monkeypatch):
    monkeypatch.setenv("GLIAFLOW_ROOTS", '["/data", "s3://scans"]')
    assert load_settings().roots == ["/data", "s3://scans"]


@pytest.mark.parametrize(
    ("file", "environment", "reason"),
    [
        ("", {"GLIAFLOW_THREADS": "many"}, "threads"),
        ("", {"GLIAFLOW_DEVICE": "tpu"}, "device"),
        ("batch = 0", {}, "batch"),
        ("surprise = 1", {}, "surprise"),
        ("not toml", {}, "TOML|Expected|line"),
        ("", {"GLIAFLOW_CONFIG": "missing.toml"}, "missing.toml: no such file"),
        ("", {"GLIAFLOW_ROOTS": "/data"}, "roots"),
        ("", {"GLIAFLOW_BUNDLE_SHA256": "0d8b8e8c71e6"}, "bundle_sha256"),
    ],
)
def test_an_error_names_the_setting(elsewhere, monkeypatch, file, environment, reason):
    (elsewhere / "gliaflow.toml").write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=reason):
        load_settings()


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("GLIAFLOW_BROKER", "http://me:s3cret@somewhere/")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)
    shown = CliRunner().invoke(app, ["serve", "extractor", "--broker", "amqp://me:s3cret@here/", "--show-settings"])
    assert "broker = amqp://me@here/" in shown.output
    assert "s3cret" not in shown.output


def test_every_setting_has_a_description():
    assert all(field.description for field in Settings.model_fields.values())


def test_available_cores_follow_the_affinity_of_the_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert available_cores() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_for_the_log_does_not_stop_the_process():
    code = """
import structlog
from gliaflow_runtime.logs import configure_logging
configure_logging("info", "json")
for _ in range(10_000):
    structlog.get_logger().info("a line that cannot be written")
print("still here")
"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert done.stdout == "still here\n"
