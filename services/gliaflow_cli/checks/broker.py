"""Checks of a RabbitMQ: queues, policies, versions, alarms."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from gliaflow_client.management import Management, ManagementError
from gliaflow_proto import Queue
from gliaflow_proto.routing import ALL_QUEUES, ASSEMBLERS, BALANCER, RECORDER, STAGE_QUEUES, exchange_of
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.version import VERSION

from gliaflow_cli.checks.outcome import Unseen, Wrong

CLOCKS_S = 5.0  # two clocks may differ by so much
IMPORT = "rabbitmqctl import_definitions secrets/rabbitmq/definitions.json"
SERVICE = dict.fromkeys(ASSEMBLERS, "classifier") | {
    BALANCER: "generator",
    RECORDER: "trainer",
}  # that run another service's stage

# The limits of deploy/rabbitmq/definitions.json: how many messages and MiB a queue holds. A test compares both.
LIMITS = {
    "preprocessor": (256, 1024),
    "extractor": (128, 1024),
    "classifier": (128, 1024),
    **{queue.name.removeprefix("gliaflow."): (None, 1024) for queue in ASSEMBLERS},
    "generator": (1024, 64),
    "balancer": (64, 512),
    "recorder": (128, 1024),
}
VERSION_0_1 = {("gliaflow", "scan"), ("gliaflow", "generate")}  # harmless: nobody may publish these there any more
TUNABLE = ("max-length", "max-length-bytes", "delivery-limit", "expires")  # an operator may choose other values


def check_answer(broker: Broker, name: str) -> str:
    """The messages that wait, by queue."""
    waiting = {_short(queue): broker.depth(queue.name) for queue in ALL_QUEUES}
    dead = sum(broker.depth(queue.dead) for queue in ALL_QUEUES)
    busy = ", ".join(f"{queue} {count}" for queue, count in waiting.items() if count) or "none"
    return f"{name} answers; messages waiting: {busy}; dead letters: {dead}{' (gliaflow dead list)' if dead else ''}"


def check_queues(broker: Broker) -> str:
    """Whether each stage's queue exists and has a consumer."""
    states = {queue: broker.queue_state(queue.name) for queue in STAGE_QUEUES}
    if not any(state and state.consumers for state in states.values()):
        raise Wrong("no stage runs on this broker: docker compose up --wait, or gliaflow serve STAGE for each")
    mistakes = []
    for queue, state in states.items():
        serve = f"gliaflow serve {SERVICE.get(queue, _short(queue))}"
        if state is None:
            mistakes.append(f"{_short(queue)} has no queue, so no stage takes its messages: {IMPORT}, then {serve}")
        elif not state.consumers:
            waits = f"{_short(queue)} has no consumer, {state.waiting} messages wait"
            mistakes.append(f"{waits}: {serve}, or find out why it ended")
    if mistakes:
        raise Wrong(*mistakes)
    return f"all {len(STAGE_QUEUES)} have consumers"


def check_declarations(management: Management) -> str:
    """Whether the stages' queues have the kind and the bindings that gliaflow declares."""
    try:
        details, bindings = management.queues(), management.bindings()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    mistakes = []
    for queue in STAGE_QUEUES:
        detail = details.get(queue.name)
        if detail is None:  # check_queues reports it
            continue
        single = bool(detail.get("arguments", {}).get("x-single-active-consumer"))
        if detail.get("type") != "quorum" or single != queue.single_active:
            mistakes.append(
                f"{_short(queue)}: not declared by gliaflow (a queue of another kind): stop the stages, rabbitmqctl "
                f"delete_queue {queue.name} (the messages in it are lost), {IMPORT}, start the stages again"
            )
        bound = bindings.get(queue.name, set())
        needed = {(exchange_of(key), key) for key in queue.keys}
        mistakes += [
            f"{_short(queue)}: not bound to the exchange {exchange} with the key {key}: {IMPORT}"
            for exchange, key in sorted(needed - bound)
        ]
        mistakes += [
            f"{_short(queue)}: also bound to the exchange {exchange} with the key {key!r}, by which it may get forged "
            f"messages: stop the stages, rabbitmqctl delete_queue {queue.name} --if-empty, {IMPORT}"
            for exchange, key in sorted(bound - needed - {("", queue.name), *VERSION_0_1})
        ]
    if mistakes:
        raise Wrong(*mistakes)
    return "queues and bindings are those of deploy/rabbitmq"


def expected_policy(queue: Queue) -> dict[str, Any]:
    """The limits of a stage's queue in deploy/rabbitmq/definitions.json."""
    count, mebibytes = LIMITS[_short(queue)]
    policy: dict[str, Any] = {"delivery-limit": 20, "max-length-bytes": mebibytes * 2**20}
    if count is not None:
        policy["max-length"] = count
    if queue == BALANCER:
        return policy | {"overflow": "drop-head"}
    if queue == RECORDER:
        policy["expires"] = 3_600_000
    return policy | {
        "overflow": "reject-publish",
        "dead-letter-exchange": queue.dead,
        "dead-letter-strategy": "at-least-once",
    }


def check_policies(management: Management) -> str:
    """Whether the broker has the limits that the stages rely on."""
    try:
        policies = {queue: management.policy(queue.name) for queue in ALL_QUEUES}
    except ManagementError as error:
        raise Unseen(str(error)) from None
    mistakes, tuned, bare = [], [], []
    for queue, policy in policies.items():
        name = _short(queue)
        if policy is None:
            bare.append(name)
            continue
        actual = policy["definition"]
        for key, value in expected_policy(queue).items():
            if actual.get(key) == value:
                continue
            if key in TUNABLE and key in actual:
                tuned.append(f"{name} {key} {actual[key]} instead of {value}")
                continue
            difference = f"{key} is {actual[key]!r}" if key in actual else f"{key} is missing"
            mistakes.append(
                f"{name}: {difference}, not {value!r}, by policy {policy['name']!r}, which has priority: {IMPORT}"
            )
    if bare:
        mistakes.append(
            f"no policy for {', '.join(bare)}: queues grow without limit and messages are retried for ever: {IMPORT}"
        )
    if mistakes:
        raise Wrong(*mistakes)
    return "those of deploy/rabbitmq" + (f", but for {'; '.join(tuned)}" if tuned else "")


def check_versions(management: Management) -> str:
    """Whether all stages have this version and serve one bundle."""
    names = {queue.name for queue in ALL_QUEUES}
    try:
        clients = [client for client in management.clients() if client.queue in names]
    except ManagementError as error:
        raise Unseen(str(error)) from None
    by_version: dict[str, set[str]] = defaultdict(set)
    by_bundle: dict[str, set[str]] = defaultdict(set)
    for client in clients:
        name = client.queue.removeprefix("gliaflow.")
        by_version[client.version].add(name)
        by_bundle[client.bundle].add(name)
    mistakes = [
        f"gliaflow {other} runs {', '.join(sorted(stages))}, but this is {VERSION}: give all of them one version"
        for other, stages in sorted(by_version.items())
        if other != VERSION
    ]
    if len(by_bundle) > 1:
        each = "; ".join(f"{bundle}: {', '.join(sorted(stages))}" for bundle, stages in sorted(by_bundle.items()))
        mistakes.append(f"the stages serve different bundles ({each}): start all of them with one GLIAFLOW_BUNDLE")
    if mistakes:
        raise Wrong(*mistakes)
    return f"{len(clients)} consumers, gliaflow {VERSION}, {', '.join(by_bundle) or 'no stage runs'}"


def check_alarms(management: Management) -> str:
    """Whether the broker has an alarm, and whether its clock agrees with this machine's."""
    try:
        alarms = management.alarms()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    mistakes = [
        f"the broker blocks all publishers, being short of {alarm.rpartition(': ')[2]} ({alarm}): make room, or change "
        "the limit in deploy/rabbitmq/rabbitmq.conf"
        for alarm in alarms
    ]
    apart = time.time() - (management.clock or time.time())
    if abs(apart) > CLOCKS_S:
        mistakes.append(f"the broker's clock and this one are {abs(apart):.0f} s apart: synchronise both (NTP)")
    if mistakes:
        raise Wrong(*mistakes)
    return "none, and the clocks agree"


def _short(queue: Queue) -> str:
    return queue.name.removeprefix("gliaflow.")
