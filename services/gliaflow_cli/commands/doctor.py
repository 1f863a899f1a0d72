"""``gliaflow doctor``: the usual mistakes, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gliaflow_plugins.registry import load_registry
from gliaflow_proto import Queue
from gliaflow_proto.routing import ALL_QUEUES, ASSEMBLER, BALANCER, CLASSIFIER, EXCHANGE, RECORDER, STAGE_QUEUES
from gliaflow_runner.pipeline import SERVICES, open_broker
from gliaflow_runtime.broker.interface import Broker, BrokerError
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.inference import DeviceError
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import VERSION
from rich.console import Console

from gliaflow_cli.client.management import Management, ManagementError

NEEDS_BYTES = 2**30  # free disk below which something is about to fail
CLOCKS_S = 5.0  # that two clocks may differ
IMPORT = "rabbitmqctl import_definitions deploy/rabbitmq/definitions.json"
SERVICE = {ASSEMBLER.name: CLASSIFIER.name, BALANCER.name: "gliaflow.generator", RECORDER.name: "gliaflow.trainer"}

# What deploy/rabbitmq/definitions.json sets: how many messages a queue holds; a test keeps both in step.
LENGTHS = {"preprocessor": 256, "extractor": 128, "classifier": 128, "generator": 1024, "balancer": 64, "recorder": 128}
TUNABLE = ("max-length", "delivery-limit", "expires")  # other values of these are an operator's choice


class Wrong(Exception):
    """What is wrong, a text each that says what to do."""


class Unseen(Exception):
    """What could not be looked at, and why. No mistake by itself."""


def run_doctor(settings: Settings, console: Console, *, inbox: Path | None = None, out: Path | None = None) -> int:
    """Tell what is right and what is wrong; 0 when nothing is wrong."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("onnxruntime", _onnxruntime),
        ("device", lambda: _device(settings.device)),
        ("bundle", lambda: _bundle(settings)),
        ("plugins", _plugins),
        ("folders", lambda: _folders(settings, inbox, out)),
    ]
    wrong = _tell(checks, console)
    if settings.broker.startswith("memory:"):
        console.print(
            "ok     broker: memory://, inside each command; for RabbitMQ name it: --broker amqp://…", soft_wrap=True
        )
        return 1 if wrong else 0
    try:
        broker = open_broker(settings, connect_timeout=5)
    except (BrokerError, ValueError) as error:
        console.print(f"wrong  broker: {_how_to_start(error)}", style="red", soft_wrap=True)
        return 1
    management = Management(settings.broker, settings.management, settings.broker_password_file)
    with broker:
        checks = [
            ("broker", lambda: _broker(settings, broker)),
            ("queues", lambda: _queues(broker)),
            ("policies", lambda: _policies(management)),
            ("versions", lambda: _versions(management)),
            ("alarms", lambda: _alarms(management)),
        ]
        wrong += _tell(checks, console)
    return 1 if wrong else 0


def _tell(checks: Sequence[tuple[str, Callable[[], str]]], console: Console) -> int:
    """One line or more for each check; returns how many things are wrong."""
    wrong = 0
    for name, check in checks:
        try:
            console.print(f"ok     {name}: {check()}", soft_wrap=True)
        except Unseen as error:
            console.print(f"?      {name}: not looked at: {error}", style="yellow", soft_wrap=True)
        except Wrong as error:
            wrong += len(error.args)
            for text in error.args:
                console.print(f"wrong  {name}: {text}", style="red", soft_wrap=True)
        except Exception as error:  # whatever it is, the doctor tells it and looks on
            wrong += 1
            console.print(f"wrong  {name}: {error}", style="red", soft_wrap=True)
    return wrong


def _onnxruntime() -> str:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(found) == 2:
        raise DeviceError(f"{' and '.join(found)} break each other in one environment: uninstall both, install one")
    if not found:
        raise DeviceError("not installed: pip install 'gliaflow[serve]' or 'gliaflow[serve-gpu]'")
    return found[0]


def _device(device: str) -> str:
    """Whether the device that is asked for is there; the bundle's networks then run on it."""
    if device != "cuda":
        return device
    import onnxruntime

    found = []
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        found.append(
            "this onnxruntime has no CUDA: pip uninstall -y onnxruntime onnxruntime-gpu, then "
            "pip install 'gliaflow[serve-gpu]'; or use --device cpu"
        )
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        said = (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found.append(
            f"no GPU is seen (nvidia-smi: {error}): install NVIDIA's driver; in a container use deploy/compose.gpu.yml "
            "and the NVIDIA Container Toolkit on the host"
        )
    else:
        if "mismatch" in said.lower():
            found.append(f"nvidia-smi: {said}: the driver was updated under the running kernel module; reboot")
        elif done.returncode or "GPU" not in said:
            found.append(
                f"no GPU is seen (nvidia-smi: {said or done.returncode}): is the driver loaded, the GPU passed in?"
            )
    if found:
        raise Wrong(*found)
    return f"cuda, {said.splitlines()[0]}"


def _bundle(settings: Settings) -> str:
    bundle = load_bundle(settings.bundle, sha256=settings.bundle_sha256, state=settings.state)
    for name in bundle.manifest.files:
        bundle.read(name)
    for make in SERVICES.values():
        make(bundle, settings)  # loads and warms every network on the device that was asked for
    return f"{bundle.id} on {settings.device}, all digests match and all networks run"


def _plugins() -> str:
    registry = load_registry()
    if registry.problems:
        raise Wrong(*(f"{problem} (mend or uninstall it; gliaflow plugins -v)" for problem in registry.problems))
    return f"generators {', '.join(registry.generators)}"


def _folders(settings: Settings, inbox: Path | None, out: Path | None) -> str:
    """Whether the folders that stages write to can be written, and how much room there is."""
    found = []
    for folder in filter(None, (settings.state, settings.store, settings.bundles, out)):
        standing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
            found.append(f"{standing} cannot be written by this user: chown or chmod it, or name another folder")
        elif (free := shutil.disk_usage(standing).free) < NEEDS_BYTES:
            found.append(f"{standing}: only {free / 2**20:.0f} MiB free on its disk: make room")
    if inbox is not None:
        found += _unreadable(inbox)
    if found:
        raise Wrong(*dict.fromkeys(found))
    free = shutil.disk_usage(next(p for p in (settings.state, *settings.state.absolute().parents) if p.exists())).free
    return f"can be written, {free / 2**30:.0f} GiB free"


def _unreadable(inbox: Path) -> Iterator[str]:
    """In an inbox. The containers read it as a user of their own, who is none of ours: others must be able to."""
    if not inbox.is_dir():
        yield f"{inbox}: no such folder: make it"
        return
    for path in (inbox, *sorted(inbox.rglob("*"))):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            yield f"{path}: the containers' user cannot read it: chmod -R o+rX {inbox}"
            return


def _how_to_start(error: Exception) -> str:
    if "no RabbitMQ" not in str(error):
        return str(error)
    return (
        f"{error}. To start one: docker compose up --wait rabbitmq, or install rabbitmq-server and "
        f"load gliaflow's limits: {IMPORT}"
    )


def _broker(settings: Settings, broker: Broker) -> str:
    where = settings.broker.split("@")[-1]
    waiting = {queue.name.removeprefix("gliaflow."): broker.depth(queue.name) for queue in ALL_QUEUES}
    dead = sum(broker.depth(queue.dead) for queue in ALL_QUEUES)
    busy = ", ".join(f"{name} {count}" for name, count in waiting.items() if count) or "none"
    return f"{where} answers; messages waiting: {busy}; dead letters: {dead}{' (gliaflow dead list)' if dead else ''}"


def _queues(broker: Broker) -> str:
    """Whether each stage's queue stands, is what the stages expect, and has somebody who reads it."""
    states = {queue: broker.look(queue.name) for queue in STAGE_QUEUES}
    if not any(states.values()):
        raise Wrong("no stage has run on this broker yet: docker compose up --wait, or gliaflow serve STAGE for each")
    found = []
    for queue, state in states.items():
        name = queue.name.removeprefix("gliaflow.")
        serve = f"gliaflow serve {SERVICE.get(queue.name, queue.name).removeprefix('gliaflow.')}"
        if state is None:
            found.append(f"{name} has no queue, so no stage takes its messages: {serve}")
            continue
        try:
            broker.declare(queue)
        except BrokerError as error:
            if "ACCESS_REFUSED" in str(error):  # a client's user may only look
                continue
            found.append(
                f"{name}: declared by something else than gliaflow ({error}): stop the stages, "
                f"rabbitmqctl delete_queue {queue.name} (what waits in it is lost), start them again"
            )
        if not state.consumers:
            found.append(f"{name} has no consumer, {state.waiting} messages wait: {serve}, or look why it ended")
    if found:
        raise Wrong(*found)
    return f"all {len(STAGE_QUEUES)} have consumers"


def expected_policy(queue: Queue) -> dict[str, Any]:
    """The limits of a stage's queue, as deploy/rabbitmq/definitions.json sets them."""
    name = queue.name.removeprefix("gliaflow.")
    policy: dict[str, Any] = {"delivery-limit": 20}
    if name in LENGTHS:
        policy["max-length"] = LENGTHS[name]
    if queue == BALANCER:
        return policy | {"overflow": "drop-head"}
    if queue == RECORDER:
        policy["expires"] = 3_600_000
    return policy | {
        "overflow": "reject-publish",
        "dead-letter-exchange": EXCHANGE,
        "dead-letter-routing-key": queue.dead_key,
        "dead-letter-strategy": "at-least-once",
    }


def _policies(management: Management) -> str:
    """Whether the broker's limits are those that the stages rely on."""
    try:
        policies = {queue: management.policy(queue.name) for queue in ALL_QUEUES}
    except ManagementError as error:
        raise Unseen(str(error)) from None
    found, tuned, bare = [], [], []
    for queue, policy in policies.items():
        name = queue.name.removeprefix("gliaflow.")
        if policy is None:
            bare.append(name)
            continue
        have = policy["definition"]
        for key, value in expected_policy(queue).items():
            if key in TUNABLE and key in have:
                tuned += [f"{name} {key} {have[key]} instead of {value}"] if have[key] != value else []
            elif have.get(key) != value:
                said = f"{key} is {have[key]!r}" if key in have else f"{key} is missing"
                found.append(
                    f"{name}: {said}, not {value!r}, by policy {policy['name']!r}, which comes first: {IMPORT}"
                )
    if bare:
        found.append(
            f"no policy for {', '.join(bare)}: queues grow without limit and the broker gives nothing up: {IMPORT}"
        )
    if found:
        raise Wrong(*found)
    return "those of deploy/rabbitmq" + (f", but for {'; '.join(tuned)}" if tuned else "")


def _versions(management: Management) -> str:
    """Whether all stages are of this version and serve one bundle."""
    try:
        clients = [c for c in management.clients() if c.queue in {q.name for q in ALL_QUEUES}]
    except ManagementError as error:
        raise Unseen(str(error)) from None
    by_version: dict[str, set[str]] = {}
    by_bundle: dict[str, set[str]] = {}
    for client in clients:
        name = client.queue.removeprefix("gliaflow.")
        by_version.setdefault(client.version, set()).add(name)
        by_bundle.setdefault(client.bundle, set()).add(name)
    found = [
        f"gliaflow {other} runs {', '.join(sorted(names))}, but this is {VERSION}: give all of them one version"
        for other, names in sorted(by_version.items())
        if other != VERSION
    ]
    if len(by_bundle) > 1:
        told = "; ".join(f"{bundle}: {', '.join(sorted(names))}" for bundle, names in sorted(by_bundle.items()))
        found.append(f"the stages serve different bundles ({told}): start all of them with one GLIAFLOW_BUNDLE")
    if found:
        raise Wrong(*found)
    return f"{len(clients)} consumers, gliaflow {VERSION}, {', '.join(by_bundle) or 'no stage runs'}"


def _alarms(management: Management) -> str:
    """What the broker itself complains of, and whether its clock and ours agree."""
    try:
        alarms = management.alarms()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    found = [f"the broker blocks all publishers, being short of {a.rpartition(': ')[2]} ({a})" for a in alarms]
    found = [f"{text}: make room, or move its limit in deploy/rabbitmq/rabbitmq.conf" for text in found]
    apart = time.time() - (management.clock or time.time())
    if abs(apart) > CLOCKS_S:
        found.append(f"the broker's clock and this one are {abs(apart):.0f} s apart: synchronise both (NTP)")
    if found:
        raise Wrong(*found)
    return "none, and the clocks agree"
