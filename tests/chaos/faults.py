"""The faults: each does one thing to the running system, undoes it, and says to what it did it.

``FAULTS`` holds them by name; a new one is a function here with ``@fault(...)`` above it.
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

import msgpack
from clients import Clients
from fleet import FAKETIME, SERVICES, Fleet, Replica
from gliaflow_proto.routing import ASSEMBLER, STAGE_QUEUES
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from ledger import Ledger
from node import Node
from proxy import Proxy

DEFINITIONS = Path(__file__).resolve().parents[2] / "deploy" / "rabbitmq" / "definitions.json"
HEARTBEAT_S = 5  # of the connections here; a peer that is silent for two of them is given up


@dataclass
class World:
    """All that a fault can lay hands on."""

    fleet: Fleet
    clients: Clients
    node: Node
    proxy: Proxy
    ledger: Ledger
    bundles: list[Path]
    disk: Path | None  # a small file system of its own with the logs and what clients write; None: may not be mounted


@dataclass(frozen=True)
class Fault:
    strike: Callable[[World, random.Random], str]
    weight: int
    quick: bool  # over within a few seconds
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


def _some(world: World, rng: random.Random) -> Replica:
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
    """SIGTERM; the supervisor starts it again once it has left."""
    replica = _some(world, rng)
    _stop(replica)
    return replica.name


def _stop(replica: Replica) -> None:
    """As ``docker stop`` does: SIGTERM, and SIGKILL where that has not helped within ten seconds."""
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
    return _freeze(_some(world, rng), rng.uniform(0.5, HEARTBEAT_S - 1))


@fault(5, quick=False)
def freeze_past_the_heartbeat(world: World, rng: random.Random) -> str:
    """SIGSTOP until the broker has given its connections up."""
    return _freeze(_some(world, rng), rng.uniform(2.5, 3.5) * HEARTBEAT_S)


@fault(2, quick=False)
def freeze_past_the_deadline(world: World, rng: random.Random) -> str:
    """SIGSTOP for longer than a message may be in work."""
    return _freeze(_some(world, rng), 25)


@fault(4, quick=False)
def slow_consumer(world: World, rng: random.Random) -> str:
    """Every replica of a stage gets a tenth of the time."""
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
    """kill -9; then ``submit --resume``."""
    return world.clients.kill(rng)


@fault(3)
def freeze_client(world: World, rng: random.Random) -> str:
    """SIGSTOP of a client that has answers waiting."""
    name = world.clients.kill(rng, signal.SIGSTOP)
    time.sleep(rng.uniform(1, 3) * HEARTBEAT_S)
    for client in list(world.clients.running.values()):
        client.send_signal(signal.SIGCONT)
    return name


@fault(8)
def close_connections(world: World, rng: random.Random) -> str:
    """The operator closes all connections."""
    world.node.ctl("close_all_connections", "chaos")
    return "all"


@fault(8)
def cut_connections(world: World, rng: random.Random) -> str:
    """A reset of every connection."""
    return f"{world.proxy.cut()} connections"


@fault(6)
def cut_in_a_frame(world: World, rng: random.Random) -> str:
    """Every connection ends after so many more bytes, most likely within a message."""
    after = int(10 ** rng.uniform(0.5, 4.5))
    return f"{world.proxy.cut(after)} connections after {after} bytes"


@fault(5, quick=False)
def half_open_connections(world: World, rng: random.Random) -> str:
    """Bytes vanish and neither side is told: only heartbeats find out."""
    count = world.proxy.lose()
    time.sleep(2 * HEARTBEAT_S)
    return f"{count} connections"


@fault(4)
def stall_the_network(world: World, rng: random.Random) -> str:
    """Nothing passes for a while, sometimes longer than the heartbeat."""
    seconds = rng.choice([1, 3, 3 * HEARTBEAT_S])
    world.proxy.stall(True)
    time.sleep(seconds)
    world.proxy.stall(False)
    return f"{seconds} s"


@fault(4)
def slow_network(world: World, rng: random.Random) -> str:
    """Each piece of a stream is late."""
    world.proxy.delay_s = rng.uniform(0.02, 0.3)
    time.sleep(4)
    late, world.proxy.delay_s = world.proxy.delay_s, 0
    return f"{1000 * late:.0f} ms"


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
    """kill -9 of the node, and a start from what lies on its disk."""
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
    """The broker's disk is all but full: it blocks its publishers."""
    with _altered(world, ["set_disk_free_limit", "100000GB"], ["set_disk_free_limit", "1GB"]):
        time.sleep(rng.uniform(1, 6))
    return "node"


@fault(4, quick=False)
def memory_alarm(world: World, rng: random.Random) -> str:
    """The broker's memory is all but full: it blocks its publishers."""
    low, usual = ["set_vm_memory_high_watermark", "0.000001"], ["set_vm_memory_high_watermark", "0.4"]
    with _altered(world, low, usual):
        time.sleep(rng.uniform(1, 6))
    return "node"


@fault(5, quick=False)
def full_queue(world: World, rng: random.Random) -> str:
    """A queue that holds one message refuses the next."""
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
    """The broker takes back what was not acknowledged within two seconds."""
    call = "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, channel_tick_interval, {})."
    change, back = call.format(2000, 2000), call.format(1_800_000, 60_000)
    with _altered(world, ["eval", change], ["eval", back]):
        world.node.ctl("close_all_connections", "chaos")  # for new channels, which read it
        time.sleep(8)
    world.node.ctl("close_all_connections", "chaos")
    return "node"


@fault(3, quick=False)
def delete_queue(world: World, rng: random.Random) -> str:
    """A stage's queue is deleted or purged by hand: only the client knows then what is missing."""
    name, how = rng.choice(STAGE_QUEUES).name, rng.choice(["delete_queue", "purge_queue"])
    with world.node.lock:
        world.node.ctl(how, name, within_s=5)
    return f"{how} {name}"


@fault(1, quick=False)
def delete_answers(world: World, rng: random.Random) -> str:
    """The queue of a submission is deleted with the answers in it."""
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
    """The disk with the stages' logs and the clients' answers is full."""
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
    """The clock of one process, or of all, jumps by up to a day, forwards or back."""
    offset = f"{rng.choice([-86400, -3600, -30, 30, 3600, 86400]):+d}"
    chosen = world.fleet.replicas if rng.random() < 0.3 else [_some(world, rng)]
    for replica in chosen:
        replica.set_clock(offset)
    return f"{'all' if len(chosen) > 1 else chosen[0].name} by {offset} s"


@fault(12)
def poison(world: World, rng: random.Random) -> str:
    """A message that nobody can work on, to a stage or to a client."""
    number = rng.randrange(10**9)
    what = rng.choice(sorted(POISON))
    body = POISON[what](rng)
    submissions = world.ledger.submissions()[-4:]
    target = rng.choice([*STAGE_QUEUES[:5], *([None] if submissions else [])])
    key = f"prediction.{rng.choice(submissions)}" if target is None else target.keys[0].replace("*", "unlabelled")
    with AmqpBroker(world.node.url) as broker:
        message_id = f"poison-{number}-{what}"
        try:
            if target is not None:
                broker.declare(target)
            world.ledger.poison[message_id] = (target or ASSEMBLER).name  # which gets what clients get
            broker.publish(key, body, message_id=message_id, mandatory=target is not None)
        except BrokerError:
            world.ledger.poison.pop(message_id, None)
            return f"{what} for {key}: refused at the door"
    return f"{what} for {key}"


def _scan(**more: object) -> bytes:
    scan = {"id": "p", "submission": "poison", "name": "poison"}
    packed: bytes = msgpack.packb({"schema": "gliaflow/1", "kind": "slices", "id": "p", "scan": scan} | more)
    return packed


def _deep(depth: int) -> bytes:
    return b"\x91" * depth + b"\x01"


POISON: dict[str, Callable[[random.Random], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda rng: rng.randbytes(rng.randrange(1, 5000)),
    "text": lambda _: b"this is no message",
    "nested": lambda _: _deep(100_000),
    "long-array": lambda _: b"\xdd\xff\xff\xff\xff",
    "schema": lambda _: msgpack.packb({"schema": "gliaflow/9", "kind": "scan"}),
    "kind": lambda _: _scan(kind="surprise"),
    "fields": lambda _: _scan(kind="scan"),
    "part": lambda _: _scan(part=[5, 2]),
    "shape": lambda _: _scan(
        geometry={
            "affine": [1.0] * 16,
            "shape": [2**30] * 3,
            "orientation": [0, 1, 1, 1, 2, 1],
            "origin": [0.0, 0.0],
            "step": [1.0, 1.0],
            "size": [2**20, 2**20],
            "slices": list(range(16)),
        },
        tensors={"image": {"dtype": "FP16", "shape": [2**31, 2**31], "encoding": "raw", "data": b"xx"}},
    ),
    "bomb": lambda _: _scan(
        tensors={"image": {"dtype": "FP64", "shape": [2**26], "encoding": "lz4", "data": bytes(1000)}}
    ),
    "heavy": lambda _: bytes(15 * 2**20),
    "oversize": lambda _: bytes(17 * 2**20),
}


@fault(2, quick=False)
def swap_bundle(world: World, rng: random.Random) -> str:
    """The stages go over to another bundle one by one, in any order, while scans stream."""
    now = world.fleet.replicas[0].bundle
    other = world.bundles[0] if now == world.bundles[1] else world.bundles[1]
    for replica in rng.sample(world.fleet.replicas, len(world.fleet.replicas)):
        replica.bundle = other
        _stop(replica)
        time.sleep(rng.uniform(0, 2))
    return other.name
