"""Settings: a flag overrides the environment, which overrides the files; an error names its setting.

The file of the working folder may have come with scans, so it sets little. The user's own file sets everything.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from gliaflow_cli.learning import read_options
from gliaflow_cli.main import app
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import WORKING_FOLDER, Settings, SettingsError, available_cores, load_settings
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("BROKER", "THREADS", "CONFIG", "ROOTS", "TRAIN_OPTIONS"):
        monkeypatch.delenv(f"GLIAFLOW_{name}", raising=False)
    return tmp_path / "folder"


@pytest.fixture
def own(tmp_path):
    """The user's own file."""
    (tmp_path / "config" / "gliaflow").mkdir(parents=True)
    return tmp_path / "config" / "gliaflow" / "gliaflow.toml"


def test_the_default_broker_is_in_memory():
    assert load_settings().broker == "memory://"


def test_a_flag_overrides_the_environment_which_overrides_the_files(elsewhere, own, monkeypatch):
    own.write_text('threads = 1\nbatch = 6\nprefetch = 9\nbroker = "amqp://own/"\n')
    (elsewhere / "gliaflow.toml").write_text("threads = 2\nbatch = 7\n")
    monkeypatch.setenv("GLIAFLOW_THREADS", "3")
    monkeypatch.setenv("GLIAFLOW_BROKER", "amqp://environment/")
    settings = load_settings({"broker": "amqp://flag/", "threads": None})
    assert (settings.broker, settings.threads, settings.batch, settings.prefetch) == ("amqp://flag/", 3, 7, 9)
    monkeypatch.delenv("GLIAFLOW_BROKER")
    assert load_settings().broker == "amqp://own/"


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - set(WORKING_FOLDER)))
def test_the_file_of_the_working_folder_sets_nothing_else_than_how_to_compute_and_log(elsewhere, own, name):
    """Somebody's scans come in a folder, and the user goes there to work. A new setting is refused by default."""
    own.write_text("threads = 2\n")
    (elsewhere / "gliaflow.toml").write_text(f'{name} = "amqp://somewhere/"\n')
    with pytest.raises(SettingsError, match=rf"^gliaflow.toml: {name}: .*flag, GLIAFLOW_{name.upper()}, or your own"):
        load_settings({"broker": "memory://"})
    assert set(WORKING_FOLDER) == {"device", "threads", "batch", "prefetch", "log_level", "log_format"}


def test_only_the_file_that_the_environment_names_is_read(elsewhere, own, tmp_path, monkeypatch):
    own.write_text("threads = 1\n")
    (elsewhere / "gliaflow.toml").write_text('broker = "amqp://somewhere/"\n')
    (tmp_path / "mine.toml").write_text('broker = "amqp://mine/"\n')
    monkeypatch.setenv("GLIAFLOW_CONFIG", str(tmp_path / "mine.toml"))
    assert (load_settings().broker, load_settings().threads) == ("amqp://mine/", 0)
    monkeypatch.setenv("GLIAFLOW_CONFIG", "gliaflow.toml")
    with pytest.raises(SettingsError, match=r"^GLIAFLOW_CONFIG: gliaflow.toml: not an absolute path"):
        load_settings()


def test_in_the_folder_of_the_users_own_file_everything_is_set(own, monkeypatch):
    own.write_text('broker = "amqp://own/"\n')
    monkeypatch.chdir(own.parent)
    assert load_settings().broker == "amqp://own/"


def test_relative_folders_of_the_user_are_ignored(elsewhere, monkeypatch):
    """They would be in the working folder."""
    (elsewhere / "gliaflow").mkdir()
    (elsewhere / "gliaflow" / "gliaflow.toml").write_text('broker = "amqp://somewhere/"\n')
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, ".")
    monkeypatch.setenv("HOME", "/home/me")
    assert load_settings().broker == "memory://"
    assert load_settings().state == Path("/home/me/.local/state/gliaflow")


def test_an_error_names_the_users_own_file(own):
    own.write_text("batch = 0\n")
    with pytest.raises(SettingsError, match=rf"^{own}: batch: 0: "):
        load_settings()


@pytest.mark.parametrize(
    ("text", "reason"), [("a = " + "[" * 20_000, "not TOML: .*recursion"), ("#" * 70_000, "over the limit of 65536")]
)
def test_a_file_that_would_take_all_memory_is_refused(elsewhere, text, reason):
    (elsewhere / "gliaflow.toml").write_text(text)
    with pytest.raises(SettingsError, match=f"^gliaflow.toml: {reason}"):
        load_settings()


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


def test_options_in_the_file_are_a_table(own):
    own.write_text("[train_options]\nsteps = 100\nreacgan.steps = 200\n")
    assert load_settings().train_options == {"steps": 100, "reacgan.steps": 200}


@pytest.mark.parametrize(
    ("file", "environment", "reason"),
    [
        ("", {"GLIAFLOW_THREADS": "many"}, "^GLIAFLOW_THREADS: 'many': .*valid integer.*0: one for each core"),
        ("", {"gliaflow_threads": "many"}, "^GLIAFLOW_THREADS: 'many'"),
        ("threads = 2", {"GLIAFLOW_THREADS": "many"}, "^GLIAFLOW_THREADS: 'many'"),
        ("", {"GLIAFLOW_DEVICE": "a gpu"}, "^GLIAFLOW_DEVICE: 'a gpu': .*cuda, tensorrt, openvino"),
        ("batch = 0", {}, "^gliaflow.toml: batch: 0: .*greater than or equal to 1.*the most slices in the U-Net"),
        ("surprise = 1", {}, "^gliaflow.toml: surprise: no such setting.*--show-settings lists all"),
        ("not toml", {}, "^gliaflow.toml: not TOML: .*line 1"),
        ("", {"GLIAFLOW_CONFIG": "/missing.toml"}, "/missing.toml: no such file"),
        ("", {"GLIAFLOW_ROOTS": "[1"}, r"^GLIAFLOW_ROOTS: '\[1': not JSON.*/data,s3://bucket/scans"),
        ("", {"GLIAFLOW_TRAIN_OPTIONS": "steps"}, "^GLIAFLOW_TRAIN_OPTIONS: 'steps': .*name=value.*steps=400"),
        ("", {"GLIAFLOW_TRAIN_OPTIONS": "{steps"}, "^GLIAFLOW_TRAIN_OPTIONS: '{steps': not JSON.*steps=400"),
        ("", {"GLIAFLOW_TRAIN_OPTIONS": "[3]"}, r"^GLIAFLOW_TRAIN_OPTIONS: '\[3\]': .*steps=400"),
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
    monkeypatch.setenv("GLIAFLOW_CONSOLE_TOKEN", "s3cret-token-of-the-console")
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
