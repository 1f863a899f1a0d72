"""The faults. Each disturbs the running system, undoes the disturbance, and returns the name of its target.

``FAULTS`` holds them by name. A new fault is a function here with the decorator ``@fault(...)``.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clients import Clients
from fleet import FAKETIME, SERVICES, Fleet, Replica
from gliaflow_proto.routing import ASSEMBLERS, STAGE_QUEUES
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from ledger import Ledger
from node import Node
from poison import POISON
from proxy import Proxy

DEFINITIONS = Path(__file__).resolve().parents[2] / "deploy" / "rabbitmq" / "definitions.json"
HEARTBEAT_S = 5  # of the connections; RabbitMQ closes one that is silent for two heartbeats


@dataclass
class World:
    """The parts of the system that a fault can disturb."""

    fleet: Fleet
    clients: Clients
    node: Node
    proxy: Proxy
    ledger: Ledger
    bundles: list[Path]
    disk: Path | None  # a small file system with the logs and the clients' output; None: cannot be mounted


@dataclass(frozen=True)
class Fault:
    strike: Callable[[World, random.Random], str]
    weight: int
    quick: bool  # ends within a few seconds
    needs: Callable[[World], bool]


FAULTS: dict[str, Fault] = {}
Strike = Callable[[World, random.Random], str]


def fault(
    weight: int, *, quick: bool = True, needs: Callable[[World], bool] = lambda _: True
) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        FAULTS[strike.__name__.replace("_", "-")] = Fault(strike, weight, quick, needs)
        return strike

    return register


def _random_replica(world: World, rng: random.Random) -> Replica:
    return rng.choice(world.fleet.replicas)


@fault(20)
def kill_stage(world: World, rng: random.Random) -> str:
    """kill -9."""
    replica = world.fleet.replicas[rng.randrange(len(world.fleet.replicas))]
    replica.signal(signal.SIGKILL)
    return replica.name


@fault(6)
def kill_service(world: World, rng: random.Random) -> str:
    """kill -9 of every replica at once."""
    service = rng.choice(SERVICES)
    for replica in world.fleet.of(service):
        replica.signal(signal.SIGKILL)
    return service


@fault(8)
def drain_stage(world: World, rng: random.Random) -> str:
    """SIGTERM. The supervisor starts the stage again after its exit."""
    replica = _random_replica(world, rng)
    _stop(replica)
    return replica.name


def _stop(replica: Replica) -> None:
    """Do as ``docker stop``: SIGTERM, and SIGKILL after ten seconds."""
    process = replica.process
    process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)


def _freeze(replica: Replica, seconds: float) -> str:
    process = replica.process
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)
    return f"{replica.name} for {seconds:.1f} s"


@fault(8)
def freeze_briefly(world: World, rng: random.Random) -> str:
    """SIGSTOP for less than the heartbeat."""
    return _freeze(_random_replica(world, rng), rng.uniform(0.5, HEARTBEAT_S - 1))


@fault(5, quick=False)
def freeze_past_the_heartbeat(world: World, rng: random.Random) -> str:
    """SIGSTOP until the broker has closed the stage's connections."""
    return _freeze(_random_replica(world, rng), rng.uniform(2.5, 3.5) * HEARTBEAT_S)


@fault(2, quick=False)
def freeze_past_the_deadline(world: World, rng: random.Random) -> str:
    """SIGSTOP for longer than the deadline of a message."""
    return _freeze(_random_replica(world, rng), 25)


@fault(4, quick=False)
def slow_consumer(world: World, rng: random.Random) -> str:
    """Every replica of a stage runs a tenth of the time."""
    service = rng.choice(SERVICES)
    until = time.monotonic() + 6
    while time.monotonic() < until:
        processes = [replica.process for replica in world.fleet.of(service)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(0.45)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    return service


@fault(8)
def kill_client(world: World, rng: random.Random) -> str:
    """kill -9, then ``submit --resume``."""
    return world.clients.kill(rng)


@fault(3)
def freeze_client(world: World, rng: random.Random) -> str:
    """SIGSTOP of a client while answers wait for it."""
    name = world.clients.kill(rng, signal.SIGSTOP)
    time.sleep(rng.uniform(1, 3) * HEARTBEAT_S)
    for client in list(world.clients.running.values()):
        client.send_signal(signal.SIGCONT)
    return name


@fault(8)
def close_connections(world: World, rng: random.Random) -> str:
    """An operator closes all connections."""
    world.node.ctl("close_all_connections", "chaos")
    return "all"


@fault(8)
def cut_connections(world: World, rng: random.Random) -> str:
    """Reset every connection."""
    return f"{world.proxy.cut()} connections"


@fault(6)
def cut_in_a_frame(world: World, rng: random.Random) -> str:
    """End every connection after a number of further bytes, most likely inside a message."""
    after = int(10 ** rng.uniform(0.5, 4.5))
    return f"{world.proxy.cut(after)} connections after {after} bytes"


@fault(5, quick=False)
def half_open_connections(world: World, rng: random.Random) -> str:
    """Bytes vanish and neither side is notified: only heartbeats detect it."""
    count = world.proxy.lose()
    time.sleep(2 * HEARTBEAT_S)
    return f"{count} connections"


@fault(4)
def stall_the_network(world: World, rng: random.Random) -> str:
    """No byte passes for a while, sometimes for longer than the heartbeat."""
    seconds = rng.choice([1, 3, 3 * HEARTBEAT_S])
    world.proxy.stall(True)
    time.sleep(seconds)
    world.proxy.stall(False)
    return f"{seconds} s"


@fault(4)
def slow_network(world: World, rng: random.Random) -> str:
    """Each chunk of a stream is delayed."""
    world.proxy.delay_s = rng.uniform(0.02, 0.3)
    time.sleep(4)
    delay_s, world.proxy.delay_s = world.proxy.delay_s, 0
    return f"{1000 * delay_s:.0f} ms"


@fault(3, quick=False)
def restart_broker(world: World, rng: random.Random) -> str:
    """stop_app and start_app."""
    with world.node.lock:
        try:
            world.node.ctl("stop_app")
            time.sleep(rng.uniform(0, 4))
        finally:
            world.node.ctl("start_app")
        world.node.await_answer()
    return "node"


@fault(3, quick=False, needs=lambda world: world.node.private)
def kill_broker(world: World, rng: random.Random) -> str:
    """kill -9 of the node, and a restart from its disk."""
    with world.node.lock:
        world.node.kill(rng.uniform(0, 3))
    return "node"


@contextmanager
def _altered(world: World, change: list[str], back: list[str]) -> Iterator[None]:
    with world.node.lock:
        try:
            world.node.ctl(*change)
            yield
        finally:
            world.node.ctl(*back)


@fault(4, quick=False)
def disk_alarm(world: World, rng: random.Random) -> str:
    """The broker's disk is almost full: it blocks its publishers."""
    with _altered(world, ["set_disk_free_limit", "100000GB"], ["set_disk_free_limit", "1GB"]):
        time.sleep(rng.uniform(1, 6))
    return "node"


@fault(4, quick=False)
def memory_alarm(world: World, rng: random.Random) -> str:
    """The broker's memory is almost full: it blocks its publishers."""
    low, usual = ["set_vm_memory_high_watermark", "0.000001"], ["set_vm_memory_high_watermark", "0.4"]
    with _altered(world, low, usual):
        time.sleep(rng.uniform(1, 6))
    return "node"


@fault(5, quick=False)
def full_queue(world: World, rng: random.Random) -> str:
    """A queue with a limit of one message refuses the next."""
    name = rng.choice(STAGE_QUEUES).name
    policies = json.loads(DEFINITIONS.read_text())["policies"]
    definition = next(policy["definition"] for policy in policies if policy["name"] == name) | {"max-length": 1}
    pattern = "^" + name.replace(".", "\\.") + "$"
    change = ["set_policy", "chaos", pattern, json.dumps(definition), "--priority", "50", "--apply-to", "queues"]
    with _altered(world, change, ["clear_policy", "chaos"]):
        time.sleep(rng.uniform(2, 6))
    return name


@fault(2, quick=False)
def consumer_timeout(world: World, rng: random.Random) -> str:
    """The broker takes back messages that were not acknowledged within two seconds."""
    call = "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, channel_tick_interval, {})."
    change, back = call.format(2000, 2000), call.format(1_800_000, 60_000)
    with _altered(world, ["eval", change], ["eval", back]):
        world.node.ctl("close_all_connections", "chaos")  # new channels read the setting
        time.sleep(8)
    world.node.ctl("close_all_connections", "chaos")
    return "node"


@fault(3, quick=False)
def delete_queue(world: World, rng: random.Random) -> str:
    """An operator deletes or purges a stage's queue: only the client then knows which scans are missing."""
    name, command = rng.choice(STAGE_QUEUES).name, rng.choice(["delete_queue", "purge_queue"])
    with world.node.lock:
        world.node.ctl(command, name, within_s=5)
    return f"{command} {name}"


@fault(1, quick=False)
def delete_answers(world: World, rng: random.Random) -> str:
    """The queue of a submission is deleted, with the answers in it."""
    listed = world.node.ctl("list_queues", "name").split()
    names = sorted(name for name in listed if name.startswith("gliaflow.submission."))
    if not names:
        return "no submission"
    name = rng.choice(names)
    with world.node.lock:
        world.node.ctl("delete_queue", name, within_s=5)
    return name[:30]


@fault(3, needs=lambda world: world.disk is not None)
def full_disk(world: World, rng: random.Random) -> str:
    """The disk with the stages' logs and the clients' output is full."""
    assert world.disk is not None
    filler = world.disk / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
    except OSError:
        pass
    time.sleep(rng.uniform(1, 4))
    filler.unlink()
    return str(world.disk.name)


@fault(5, needs=lambda _: FAKETIME is not None)
def clock_jump(world: World, rng: random.Random) -> str:
    """The clock of one stage, or of all stages, jumps by up to a day, forwards or back."""
    offset = f"{rng.choice([-86400, -3600, -30, 30, 3600, 86400]):+d}"
    chosen = world.fleet.replicas if rng.random() < 0.3 else [_random_replica(world, rng)]
    for replica in chosen:
        replica.set_clock(offset)
    return f"{'all' if len(chosen) > 1 else chosen[0].name} by {offset} s"


@fault(12)
def poison(world: World, rng: random.Random) -> str:
    """An invalid message to a stage or to a client."""
    number = rng.randrange(10**9)
    kind = rng.choice(sorted(POISON))
    body = POISON[kind](rng)
    submissions = world.ledger.submissions()[-4:]
    target = rng.choice([*STAGE_QUEUES[:5], *([None] if submissions else [])])
    key = f"prediction.{rng.choice(submissions)}" if target is None else target.keys[0].replace("*", "unlabelled")
    with AmqpBroker(world.node.url) as broker:
        message_id = f"poison-{number}-{kind}"
        try:
            if target is not None:
                broker.declare(target)
            world.ledger.poison[message_id] = (target or ASSEMBLERS[0]).name  # the assembler receives it too
            broker.publish(key, body, message_id=message_id, mandatory=target is not None)
        except BrokerError:
            world.ledger.poison.pop(message_id, None)
            return f"{kind} for {key}: refused by the broker"
    return f"{kind} for {key}"


@fault(3)
def change_shards(world: World, rng: random.Random) -> str:
    """Another number of assemblers. The preprocessors change to it one by one; the classifiers learn of it later."""
    number = rng.randint(1, len(ASSEMBLERS))
    for replica in [*world.fleet.of("classifier"), *world.fleet.of("preprocessor")]:
        replica.settings["GLIAFLOW_ASSEMBLER_SHARDS"] = str(number)
    for replica in world.fleet.of("preprocessor"):
        _stop(replica)
    return str(number)


@fault(2, quick=False)
def swap_bundle(world: World, rng: random.Random) -> str:
    """The stages change to another bundle one by one, in random order, while scans stream."""
    current = world.fleet.replicas[0].bundle
    other = world.bundles[0] if current == world.bundles[1] else world.bundles[1]
    for replica in rng.sample(world.fleet.replicas, len(world.fleet.replicas)):
        replica.bundle = other
        _stop(replica)
        time.sleep(rng.uniform(0, 2))
    return other.name
