"""Settings: a flag overrides the environment, which overrides the file; an error names its setting."""

import subprocess
import sys
from pathlib import Path

import pytest
from gliaflow_cli.learning import read_options
from gliaflow_cli.main import app
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings, SettingsError, available_cores, load_settings
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("BROKER", "THREADS", "CONFIG", "ROOTS", "TRAIN_OPTIONS"):
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


@pytest.mark.parametrize("text", ['["/data", "s3://scans"]', "/data,s3://scans", "/data, s3://scans"])
def test_a_list_in_the_environment_has_commas_or_is_json(monkeypatch, text):
    monkeypatch.setenv("GLIAFLOW_ROOTS", text)
    assert load_settings().roots == ["/data", "s3://scans"]


@pytest.mark.parametrize("text", ["steps=100,reacgan.steps=200", '{"steps": "100", "reacgan.steps": "200"}'])
def test_options_in_the_environment_have_the_form_of_the_flag_or_are_json(monkeypatch, text):
    monkeypatch.setenv("GLIAFLOW_TRAIN_OPTIONS", text)
    assert load_settings().train_options == {"steps": "100", "reacgan.steps": "200"}
    assert read_options(["steps=100", "reacgan.steps=200"]) == read_options(["steps=100,reacgan.steps=200"])
    assert read_options(["steps=100,reacgan.steps=200"]) == load_settings().train_options


def test_options_in_the_file_are_a_table(elsewhere):
    (elsewhere / "gliaflow.toml").write_text("[train_options]\nsteps = 100\nreacgan.steps = 200\n")
    assert load_settings().train_options == {"steps": 100, "reacgan.steps": 200}


@pytest.mark.parametrize(
    ("file", "environment", "reason"),
    [
        ("", {"GLIAFLOW_THREADS": "many"}, "^GLIAFLOW_THREADS: 'many': .*valid integer.*0: one for each core"),
        ("", {"gliaflow_threads": "many"}, "^GLIAFLOW_THREADS: 'many'"),
        ("threads = 2", {"GLIAFLOW_THREADS": "many"}, "^GLIAFLOW_THREADS: 'many'"),
        ("", {"GLIAFLOW_DEVICE": "tpu"}, "^GLIAFLOW_DEVICE: 'tpu': .*'cpu' or 'cuda'"),
        ("batch = 0", {}, "^gliaflow.toml: batch: 0: .*greater than or equal to 1.*slices in one run"),
        ("surprise = 1", {}, "^gliaflow.toml: surprise: no such setting.*--show-settings lists all"),
        ("not toml", {}, "^gliaflow.toml: not TOML: .*line 1"),
        ("", {"GLIAFLOW_CONFIG": "missing.toml"}, "missing.toml: no such file"),
        ("", {"GLIAFLOW_ROOTS": "[1"}, r"^GLIAFLOW_ROOTS: '\[1': not JSON.*/data,s3://bucket/scans"),
        ("", {"GLIAFLOW_TRAIN_OPTIONS": "steps"}, "^GLIAFLOW_TRAIN_OPTIONS: 'steps': .*name=value.*steps=400"),
        ("", {"GLIAFLOW_TRAIN_OPTIONS": "{steps"}, "^GLIAFLOW_TRAIN_OPTIONS: '{steps': not JSON.*steps=400"),
        ("train_options = 3", {}, "^gliaflow.toml: train_options: 3: .*steps=400"),
        ("", {"GLIAFLOW_BUNDLE_SHA256": "0d8b8e8c71e6"}, "^GLIAFLOW_BUNDLE_SHA256: .*64 digits"),
    ],
)
def test_an_error_has_the_name_that_the_user_wrote_and_what_is_expected(
    elsewhere, monkeypatch, file, environment, reason
):
    (elsewhere / "gliaflow.toml").write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=reason):
        load_settings()


def test_an_error_names_the_flag(monkeypatch):
    monkeypatch.setenv("GLIAFLOW_THREADS", "2")
    with pytest.raises(SettingsError, match=r"^--threads: -1: "):
        load_settings({"threads": -1})
    with pytest.raises(UsageError, match=r"^--option: 'steps' is not name=value; for example steps=100"):
        read_options(["steps"])


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("GLIAFLOW_BROKER", "http://me:s3cret@somewhere/")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)
    shown = CliRunner().invoke(app, ["serve", "extractor", "--broker", "amqp://me:s3cret@here/", "--show-settings"])
    assert "broker = amqp://me@here/" in shown.output
    assert "s3cret" not in shown.output
    monkeypatch.setenv("GLIAFLOW_BROKER", "memory://")
    monkeypatch.setenv("GLIAFLOW_MANAGEMENT", "http://me:s3cret@here:15672")
    shown = CliRunner().invoke(app, ["serve", "extractor", "--show-settings"])
    assert "broker = memory://  #" in shown.output
    assert "management = http://me@here:15672  #" in shown.output


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
