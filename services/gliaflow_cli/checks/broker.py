"""Checks of a RabbitMQ: queues, policies, versions, alarms."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from gliaflow_proto import Queue
from gliaflow_proto.routing import ALL_QUEUES, ASSEMBLER, BALANCER, EXCHANGE, RECORDER, STAGE_QUEUES
from gliaflow_runtime.broker.interface import Broker, BrokerError
from gliaflow_runtime.version import VERSION

from gliaflow_cli.checks.outcome import Unseen, Wrong
from gliaflow_cli.client.management import Management, ManagementError

CLOCKS_S = 5.0  # two clocks may differ by so much
IMPORT = "rabbitmqctl import_definitions deploy/rabbitmq/definitions.json"
SERVICE = {ASSEMBLER: "classifier", BALANCER: "generator", RECORDER: "trainer"}  # that run another service's stage

# The lengths of deploy/rabbitmq/definitions.json: how many messages a queue holds. A test compares both.
LENGTHS = {"preprocessor": 256, "extractor": 128, "classifier": 128, "generator": 1024, "balancer": 64, "recorder": 128}
TUNABLE = ("max-length", "delivery-limit", "expires")  # an operator may choose other values


def check_answer(broker: Broker, name: str) -> str:
    """The messages that wait, by queue."""
    waiting = {_short(queue): broker.depth(queue.name) for queue in ALL_QUEUES}
    dead = sum(broker.depth(queue.dead) for queue in ALL_QUEUES)
    busy = ", ".join(f"{queue} {count}" for queue, count in waiting.items() if count) or "none"
    return f"{name} answers; messages waiting: {busy}; dead letters: {dead}{' (gliaflow dead list)' if dead else ''}"


def check_queues(broker: Broker) -> str:
    """Whether each stage's queue exists, is of the expected kind, and has a consumer."""
    states = {queue: broker.queue_state(queue.name) for queue in STAGE_QUEUES}
    if not any(states.values()):
        raise Wrong("no stage has run on this broker yet: docker compose up --wait, or gliaflow serve STAGE for each")
    mistakes = []
    for queue, state in states.items():
        name = _short(queue)
        serve = f"gliaflow serve {SERVICE.get(queue, name)}"
        if state is None:
            mistakes.append(f"{name} has no queue, so no stage takes its messages: {serve}")
            continue
        try:
            broker.declare(queue)
        except BrokerError as error:
            if "ACCESS_REFUSED" in str(error):  # a client's user may only read
                continue
            mistakes.append(
                f"{name}: not declared by gliaflow ({error}): stop the stages, rabbitmqctl delete_queue {queue.name} "
                "(the messages in it are lost), start the stages again"
            )
        if not state.consumers:
            mistakes.append(f"{name} has no consumer, {state.waiting} messages wait: {serve}, or find out why it ended")
    if mistakes:
        raise Wrong(*mistakes)
    return f"all {len(STAGE_QUEUES)} have consumers"


def expected_policy(queue: Queue) -> dict[str, Any]:
    """The limits of a stage's queue in deploy/rabbitmq/definitions.json."""
    policy: dict[str, Any] = {"delivery-limit": 20}
    if _short(queue) in LENGTHS:
        policy["max-length"] = LENGTHS[_short(queue)]
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
