"""The containers of ``docker compose up`` on a real Docker engine. Run by ``make test-compose``.

The stack has a project name, ports and folders of its own, so that it does not disturb another stack.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from compose.stack import PORT, ROOT, Stack, clone
from gliaflow_cli.commands.plugins_new import write_plugin
from gliaflow_runtime.bundle.load import demo_bundle
from safetensors import safe_open
from sample_scans import good_scan

pytestmark = pytest.mark.compose
BROKER = f"amqp://gliaflow:gliaflow@localhost:{PORT}/"
STAGES = ("preprocessor", "extractor", "classifier", "generator")
SERVICES = ("rabbitmq", *STAGES, "inbox", "console")
OBSERVERS = ("prometheus", "grafana")  # third-party images, which see only counts
DASK = ("dask-scheduler", "dask-worker", "evaluate")  # of evaluations: they need no broker and no secret
TLS = ("-f", "deploy/compose.tls.yml")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, built from a clone, started and healthy."""
    stack = Stack(clone(tmp_path_factory))
    stack.compose("up", "--build", "--wait", "--detach")
    yield stack
    if os.environ.get("GLIAFLOW_KEEP_STACK") != "1":
        stack.compose("down", "--volumes", "--timeout", "20")


def submit(scans: Path, out: Path, broker: str) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(out), "--broker", broker]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with (out / "predictions.csv").open() as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(4):
        good_scan(folder / f"p{number}.nii.gz", seed=number)
    return folder


def test_every_container_is_healthy_and_no_stage_runs_as_root(stack: Stack) -> None:
    containers = stack.containers()
    assert {c["Service"]: c["Health"] for c in containers} == dict.fromkeys(SERVICES, "healthy")
    for service in STAGES:
        assert stack.compose("exec", "-T", service, "id", "-u").strip() == "10001"


def test_image_is_small_and_has_no_torch(stack: Stack) -> None:
    size = subprocess.run(
        ["docker", "image", "inspect", "gliaflow:test", "--format", "{{.Size}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(size.stdout) < 600e6
    no_torch = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is not None)"
    stack.compose("exec", "-T", "extractor", "python3", "-c", no_torch)


def test_only_the_trainer_has_torch_and_it_starts_only_with_its_profile(stack: Stack) -> None:
    """The configuration is checked only: test_trainer.py builds the image."""
    plain, train = (
        json.loads(stack.compose(*profile, "config", "--format", "json"))["services"]
        for profile in ((), ("--profile", "train"))
    )
    assert set(plain) == {*SERVICES, "secrets"}
    assert set(train) - set(plain) == {"trainer"}
    built = {
        name: service["build"]["args"].get("EXTRA", "serve") for name, service in train.items() if "build" in service
    }
    assert {name for name, extra in built.items() if "train" in extra} == {"trainer"}
    trainer = train["trainer"]
    assert trainer["read_only"]
    assert trainer["cap_drop"] == ["ALL"]
    writable = {volume["target"] for volume in trainer["volumes"] if not volume.get("read_only")}
    assert writable == {"/store", "/bundles"}


def test_no_container_has_more_than_it_needs(stack: Stack) -> None:
    services = json.loads(stack.compose("--profile", "*", "config", "--format", "json"))["services"]
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name
        if name == "secrets":
            continue
        assert int(service["pids_limit"]) > 0, name
        if name in DASK:
            assert set(service["networks"]) == {"dask"}, name
            assert [v["target"] for v in service["volumes"] if not v.get("read_only")] == ["/reports"], name
        elif name not in OBSERVERS:
            assert "stages" in service["networks"], name
            folder = "rabbitmq" if name == "rabbitmq" else name
            (mounted,) = [v["source"] for v in service["volumes"] if v["target"] == "/run/secrets"]
            assert mounted.endswith(f"/secrets/{folder}"), "a service sees only its own secrets"
    for name in STAGES:
        code = "import os; print(open('/proc/self/status').read(), os.listdir('/run/secrets'))"
        status = stack.compose("exec", "-T", name, "python3", "-c", code)
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "['password']" in status
    assert "rabbitmq" in stack.compose("exec", "-T", "rabbitmq", "id", "-un")
    connect_to_internet = "import socket; socket.create_connection(('1.1.1.1', 53), 3)"
    assert (
        "unreachable"
        in subprocess.run(
            ["docker", "compose", "exec", "-T", "extractor", "python3", "-c", connect_to_internet],
            cwd=stack.folder,
            env=stack.environment,
            capture_output=True,
            text=True,
        ).stderr
    )


def test_passwords_are_only_in_files(stack: Stack) -> None:
    ids = stack.compose("ps", "--all", "--quiet").split()
    text = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=True).stdout
    text += stack.compose("logs") + stack.compose("config")
    files = list((stack.folder / "secrets").glob("*/password"))
    users_file = json.loads((ROOT / "deploy/rabbitmq/users.json").read_text())
    assert {file.parent.name for file in files} == {user["name"] for user in users_file["users"]}
    for file in files:
        if file.parent.name != "gliaflow":
            assert file.read_text().strip() not in text, file
    users = stack.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "-q", "list_users")
    assert "guest" not in users
    assert {line.split()[0] for line in users.splitlines()[1:]} == {file.parent.name for file in files}


def test_runbook(stack: Stack, scans: Path, tmp_path: Path) -> None:
    """docs/operations.md: rotate a password while scans pass, drain a stage, replay dead letters, roll back."""
    for number in range(4, 16):
        good_scan(scans / f"p{number}.nii.gz", seed=number)
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(tmp_path / "out")]
    client = subprocess.Popen([*command, "--broker", BROKER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = (stack.folder / "secrets/extractor/password").read_text()
    stack.compose("run", "--rm", "secrets", "--new", "extractor")
    assert (stack.folder / "secrets/extractor/password").read_text() != before
    stack.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "import_definitions", "/run/secrets/definitions.json")
    stack.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "close_all_connections", "rotated")
    stack.compose("stop", "extractor")
    assert "drained" in stack.compose("logs", "extractor")
    report = stack.compose("run", "--rm", "--no-deps", "-T", "operator", "doctor", check=False)
    assert "extractor has no consumer" in report
    assert "policies: those of deploy/rabbitmq" in report
    stack.compose("up", "--wait", "--detach", "extractor")
    assert client.wait(300) == 1, "one scan is broken"
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = {row["scan"]: row["status"] for row in csv.DictReader(file)}
    assert [scan for scan, status in rows.items() if status != "ok"] == ["broken"]
    assert "broken" in stack.compose("run", "--rm", "--no-deps", "-T", "operator", "dead", "list")
    assert "sent back" in stack.compose("run", "--rm", "--no-deps", "-T", "operator", "dead", "replay", "--all")

    shutil.copytree(demo_bundle(), stack.folder / "bundles" / "former")
    manifest = (stack.folder / "bundles" / "former" / "manifest.json").read_bytes()
    pin = hashlib.sha256(manifest).hexdigest()
    chosen = {"GLIAFLOW_BUNDLE": "/bundles/former", "GLIAFLOW_BUNDLE_SHA256": pin}
    stack.compose("up", "--wait", "--detach", **chosen)
    assert pin[:12] in stack.compose("logs", "extractor")
    stack.compose("up", "--detach", check=False, **chosen | {"GLIAFLOW_BUNDLE_SHA256": "0" * 64})
    time.sleep(5)
    assert f"its sha256 is {pin}, but bundle_sha256 pins {'0' * 64}" in stack.compose("logs", "preprocessor")
    stack.compose("up", "--wait", "--detach")


def test_a_second_clone_with_the_same_project_is_refused_before_it_touches_the_queues(
    stack: Stack, scans: Path, tmp_path: Path
) -> None:
    second = Stack(tmp_path / "gliaflow")
    shutil.copytree(stack.folder, second.folder, ignore=shutil.ignore_patterns("secrets"))
    second.compose("up", "--wait", "--detach", check=False)
    log = second.compose("logs", "secrets")
    for part in (str(stack.folder), str(second.folder), "COMPOSE_PROJECT_NAME", "GLIAFLOW_AMQP_PORT"):
        assert part in log
    assert {c["Service"] for c in second.containers()} == set(), "no container of the second clone runs"
    stack.compose("up", "--wait", "--detach")
    rows = submit(scans, tmp_path / "out", BROKER)
    assert {row["status"] for row in rows.values()} == {"ok"}


def test_doctor_reports_a_stage_that_was_killed_for_memory(stack: Stack, scans: Path, tmp_path: Path) -> None:
    """The stage is started again, its message is delivered again, and nothing is lost."""
    pid = 'ps = __import__("pathlib").Path("/proc").glob("[0-9]*/status"); '
    pid += 'print(max(int(p.parent.name) for p in ps if "Name:\\tgliaflow" in p.read_text()))'
    child = stack.compose("exec", "-T", "extractor", "python3", "-c", pid).strip()
    stack.compose("exec", "-T", "extractor", "python3", "-c", f"import os; os.kill({child}, 9)")
    rows = submit(scans, tmp_path / "out", BROKER)
    assert {row["status"] for row in rows.values()} == {"ok"}
    report = stack.compose("run", "--rm", "--no-deps", "-T", "operator", "doctor", check=False)
    assert "killed stages: extractor" in report
    assert "killed 1 times" in report
    stack.compose("up", "--wait", "--detach", "--no-deps", "--force-recreate", "extractor")
    assert "killed 1 times" not in stack.compose("run", "--rm", "--no-deps", "-T", "operator", "doctor", check=False)


def test_a_disk_alarm_holds_scans_up_and_loses_none(stack: Stack, scans: Path, tmp_path: Path) -> None:
    rabbitmqctl = ("exec", "-T", "-u", "rabbitmq", "rabbitmq", "rabbitmqctl", "-q", "set_disk_free_limit")
    stack.compose(*rabbitmqctl, "100000GB")
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(tmp_path / "out")]
    client = subprocess.Popen([*command, "--broker", BROKER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(10)
    assert client.poll() is None
    assert "short of disk" in stack.compose("run", "--rm", "--no-deps", "-T", "operator", "doctor", check=False)
    stack.compose(*rabbitmqctl, "1GB")
    assert client.wait(200) == 0


def test_policies_apply(stack: Stack) -> None:
    for _ in range(30):
        listed = stack.compose(
            "exec", "-T", "-u", "rabbitmq", "rabbitmq", "rabbitmqctl", "-q", "list_policies", check=False
        )
        if "gliaflow.extractor" in listed:
            return
        time.sleep(1)
    pytest.fail(f"no policy: {listed}")


def test_submitting_from_the_host_gives_the_answers_of_one_process(stack: Stack, scans: Path, tmp_path: Path) -> None:
    expected = submit(scans, tmp_path / "memory", "memory://")
    answered = submit(scans, tmp_path / "compose", BROKER)
    assert answered.keys() == expected.keys()
    for name, row in expected.items():
        assert abs(float(row["p_hgg"]) - float(answered[name]["p_hgg"])) < 1e-6
        one, other = (np.asarray(nib.load(tmp_path / d / f"{name}_seg.nii.gz").dataobj) for d in ("memory", "compose"))
        np.testing.assert_array_equal(one, other)


def test_scan_dropped_into_the_inbox_is_answered_in_the_outbox(stack: Stack) -> None:
    good_scan(stack.folder / "inbox" / "dropped.nii.gz")
    (stack.folder / "inbox" / "broken.nii.gz").write_bytes(b"not a scan")
    answers = [stack.folder / "outbox" / f"{name}.json" for name in ("dropped", "broken")]
    deadline = time.monotonic() + 60
    while not all(answer.exists() for answer in answers):
        assert time.monotonic() < deadline, stack.compose("logs", "inbox")
        time.sleep(0.5)
    time.sleep(1)
    assert [json.loads(answer.read_text())["status"] for answer in answers] == ["ok", "failed"]
    assert (stack.folder / "outbox" / "dropped_seg.nii.gz").exists()
    assert answers[0].stat().st_uid == (stack.folder / "outbox").stat().st_uid


def test_an_inbox_whose_outbox_cannot_be_written_waits_says_why_and_continues(stack: Stack) -> None:
    outbox = stack.folder / "outbox"
    owner = outbox.stat()
    for path in (outbox, *outbox.iterdir()):
        os.chown(path, 1000, 1000)  # root could write into any folder
    stack.compose("restart", "inbox")
    outbox.chmod(0o555)
    good_scan(stack.folder / "inbox" / "later.nii.gz")
    deadline = time.monotonic() + 60
    while "/outbox: user 1000 cannot write into it. It belongs to user 1000" not in stack.compose("logs", "inbox"):
        assert time.monotonic() < deadline, stack.compose("logs", "inbox")
        time.sleep(1)
    (inbox,) = [c for c in stack.containers() if c["Service"] == "inbox"]
    assert inbox["State"] == "running", "it waits, and is not restarted again and again"
    outbox.chmod(0o755)
    while not (outbox / "later.json").exists():
        assert time.monotonic() < deadline + 60, stack.compose("logs", "inbox")
        time.sleep(1)
    for path in (outbox, *outbox.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)
    stack.compose("restart", "inbox")


def test_three_extractors_share_the_work(stack: Stack, scans: Path, tmp_path: Path) -> None:
    stack.compose("up", "--wait", "--detach", "--scale", "extractor=3")
    for number in range(4, 16):
        good_scan(scans / f"p{number}.nii.gz", seed=number)
    rows = submit(scans, tmp_path / "out", BROKER)
    assert [row["status"] for row in rows.values()] == ["ok"] * 16
    worked = []
    read = "import urllib.request as u; print(u.urlopen('http://localhost:8080/metrics').read().decode())"
    for index in (1, 2, 3):
        metrics = stack.compose("exec", "-T", "--index", str(index), "extractor", "python3", "-c", read)
        (line,) = [x for x in metrics.splitlines() if x.startswith('gliaflow_messages_total{outcome="done"')]
        worked.append(float(line.split()[-1]))
    assert all(count > 0 for count in worked), worked


def test_killed_stages_come_back_and_no_scan_is_lost(stack: Stack, scans: Path, tmp_path: Path) -> None:
    for number in range(4, 12):
        good_scan(scans / f"p{number}.nii.gz", seed=number)
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(tmp_path / "out")]
    client = subprocess.Popen([*command, "--broker", BROKER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2)
    for service in ("extractor", "classifier"):
        stack.compose("kill", service)
    stack.compose("up", "--wait", "--detach")
    assert client.wait(200) == 0


def test_generator_can_be_exchanged_for_another_of_the_bundle(stack: Stack, tmp_path: Path) -> None:
    def generator_of(out: Path) -> str:
        command = [sys.executable, "-m", "gliaflow_cli", "generate", "--grade", "LGG", "--count", "20"]
        command += ["--broker", BROKER]
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, timeout=100)
        with safe_open(out, "np") as file:
            return str(file.metadata()["generator"])

    assert generator_of(tmp_path / "before.safetensors") == "infogan"
    stack.compose("up", "--wait", "--detach", GLIAFLOW_GENERATOR="reacgan")
    assert generator_of(tmp_path / "after.safetensors") == "reacgan"
    stack.compose("up", "--detach", GLIAFLOW_GENERATOR="nobody")
    until = time.monotonic() + 60
    while "has no 'nobody'; there is: infogan, reacgan" not in stack.compose("logs", "generator"):
        assert time.monotonic() < until, "the generator does not name its error"
        time.sleep(1)
    others = {c["Service"]: c["Health"] for c in stack.containers() if c["Service"] != "generator"}
    assert set(others.values()) == {"healthy"}, "the other services keep running"
    stack.compose("up", "--wait", "--detach")


def test_plugins_work_from_the_image_and_from_a_folder(stack: Stack, scans: Path, tmp_path: Path) -> None:
    """A bundle needs a step from a folder of plugins. A broken plugin in it is reported and stops no stage."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    dockerfile = page.split("```dockerfile\n")[1].split("```")[0].replace("gliaflow:latest", "gliaflow:test")
    shutil.copytree(ROOT / "plugins/examples/gliaflow-meanvar", tmp_path / "image" / "gliaflow-meanvar")
    (tmp_path / "image" / "Dockerfile").write_text(dockerfile)
    subprocess.run(["docker", "build", "-q", "-t", "gliaflow:meanvar", tmp_path / "image"], check=True, timeout=300)
    listed = subprocess.run(["docker", "run", "--rm", "gliaflow:meanvar", "plugins"], capture_output=True, text=True)
    assert "meanvar" in listed.stdout
    assert listed.returncode == 0, listed.stdout

    _, code = write_plugin("darken", "step", tmp_path / "darken")
    shutil.copytree(code.parent, stack.folder / "plugins.d" / code.parent.name)
    (stack.folder / "plugins.d" / "broken.py").write_text("import a_module_that_is_not_there\n")
    bundle = stack.folder / "bundles" / "darker"
    shutil.copytree(demo_bundle(), bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["input"]["steps"] = [{"name": "darken", "options": {"percentile": 95}}]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    chosen = {"GLIAFLOW_BUNDLE": "/bundles/darker"}
    stack.compose("up", "--detach", check=False, **chosen)  # the other stages wait for a healthy preprocessor
    time.sleep(5)
    assert "no usable step 'darken'" in stack.compose("logs", "preprocessor"), "a folder of plugins is off by default"
    stack.compose("up", "--wait", "--detach", GLIAFLOW_PLUGINS="/plugins.d", **chosen)
    usual = submit(scans, tmp_path / "usual", "memory://")
    darker = submit(scans, tmp_path / "darker", BROKER)
    assert {row["status"] for row in darker.values()} <= {"ok", "no tumour"}
    assert any(darker[name]["tumour_ml"] != row["tumour_ml"] for name, row in usual.items())
    assert "broken" in stack.compose("exec", "-T", "preprocessor", "gliaflow", "plugins", check=False)
    stack.compose("up", "--wait", "--detach")


def test_tls_override_requires_client_certificates(stack: Stack, scans: Path, tmp_path: Path) -> None:
    """This must be the last test, because the stack needs TLS from here on."""
    stack.compose(*TLS, "up", "--wait", "--detach")
    secrets = stack.folder / "secrets" / "gliaflow"
    settings = {f"GLIAFLOW_BROKER_{name}": str(secrets / f"{name.lower()}.pem") for name in ("CA", "CERT", "KEY")}
    settings["GLIAFLOW_BROKER_PASSWORD_FILE"] = str(secrets / "password")
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(tmp_path / "out")]
    command += ["--broker", f"amqps://gliaflow@localhost:{PORT - 1}/"]
    subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, timeout=300)
    del settings["GLIAFLOW_BROKER_CERT"], settings["GLIAFLOW_BROKER_KEY"]
    refused = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1
    assert "the broker refuses our certificate" in refused.stderr
    stack.compose(*TLS, "run", "--rm", "--no-deps", "-T", "operator", "doctor")
