"""``gliaflow dead``: read dead letters where they lie, and send them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace

import numpy as np
from gliaflow_proto import Message, ProtocolError, Queue, decode, encode
from gliaflow_proto.routing import ALL_QUEUES
from gliaflow_runner.pipeline import open_broker
from gliaflow_runtime.broker.interface import DIED_AT, REASON, Broker, Consumer, Delivery
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from rich.console import Console

AT_ONCE = 200  # each may weigh 8 MiB, and all of them are held while they are looked at
Letter = tuple[Queue, Consumer, Delivery]


def list_letters(settings: Settings, console: Console) -> None:
    """``gliaflow dead list``."""
    with open_broker(settings) as broker, _letters(broker) as letters:
        # copies: their stage ended between writing the dead letter and letting go of the message
        copies = Counter((queue.name, letter.message_id or letter.body) for queue, _, letter in letters)
        count = len(copies)
        for queue, _, letter in letters:
            if not (times := copies.pop((queue.name, letter.message_id or letter.body), 0)):
                continue
            scan = message.scan.name or message.scan.id if (message := _decoded(letter)) else "?"
            died = letter.headers.get(DIED_AT, "?")[:19]
            where = queue.name.removeprefix("gliaflow.")
            line = f"{letter.message_id[:12] or '?':12}  {died:19}  {where:12}  {scan}: {reason(letter)}"
            line += f" ({times} copies)" if times > 1 else ""
            console.print(line, soft_wrap=True)
        hidden = _waiting(broker)
    if hidden:
        console.print(f"and {hidden} more (gliaflow dead replay or a look at the broker's management page)")
    console.print(f"{count + hidden} dead letters on {settings.broker.split('@')[-1]}")


def show_letter(start: str, settings: Settings, console: Console) -> None:
    """``gliaflow dead show``."""
    with open_broker(settings) as broker, _letters(broker) as letters:
        for queue, _, letter in _chosen(letters, [start]):
            console.print(f"{letter.message_id} in {queue.name}", style="bold")
            console.print(f"reason: {reason(letter)}", soft_wrap=True)
            console.print(f"bytes: {len(letter.body)}")
            for name, value in letter.headers.items():
                console.print(f"header {name}: {value}", soft_wrap=True)
            message = _decoded(letter)
            console.print(_described(message) if message else "not a message that can be read", soft_wrap=True)


def replay_letters(starts: Sequence[str], every: bool, settings: Settings, console: Console) -> None:
    """``gliaflow dead replay``."""
    if bool(starts) == every:
        raise UsageError("name the dead letters to replay by their ids, or all of them with --all")
    if settings.broker.startswith("memory:"):
        raise UsageError("memory:// has no stages that run on: submit the scans again instead")
    with open_broker(settings) as broker, _letters(broker) as letters:
        total = _waiting(broker) + len(letters)
        chosen = letters if every else _chosen(letters, starts)
        for queue, consumer, letter in chosen:
            broker.send(queue.name, _another_attempt(letter), message_id=letter.message_id)
            consumer.ack(letter)
    console.print(f"{len(chosen)} of {total} sent back to their queues")
    console.print("answers go to the submissions that sent them; where those have ended, submit the scans again")


def _another_attempt(letter: Delivery) -> bytes:
    """The message with its scan's attempt counted up: what became of the last one does not hold for it."""
    message = _decoded(letter)
    if message is None:
        return letter.body
    scan = replace(message.scan, attempt=message.scan.attempt + 1)
    return encode(replace(message, scan=scan), "lz4")


def _waiting(broker: Broker) -> int:
    return sum(broker.depth(queue.dead) for queue in ALL_QUEUES)


def reason(letter: Delivery) -> str:
    """Why it died: as the stage said, or as the broker did."""
    return letter.headers.get(REASON) or letter.headers.get("x-first-death-reason") or "not said"


@contextmanager
def _letters(broker: Broker) -> Iterator[list[Letter]]:
    """Every dead letter, held open; what is not acknowledged stays where it was."""
    letters: list[Letter] = []
    consumers = []
    for queue in ALL_QUEUES:
        room = min(broker.depth(queue.dead), AT_ONCE - len(letters))
        if room <= 0:
            continue
        consumer = broker.consume(Queue(queue.dead), room)
        consumers.append(consumer)
        while room and (letter := consumer.next(timeout=1.0)) is not None:
            letters.append((queue, consumer, letter))
            room -= 1
    try:
        yield letters
    finally:
        for consumer in consumers:
            consumer.close()


def _chosen(letters: Sequence[Letter], starts: Sequence[str]) -> list[Letter]:
    for start in starts:
        if not any(letter.message_id.startswith(start) for _, _, letter in letters):
            raise UsageError(f"no dead letter's id starts with {start!r} (see `gliaflow dead list`)")
    return [item for item in letters if item[2].message_id.startswith(tuple(starts))]


def _decoded(letter: Delivery) -> Message | None:
    try:
        return decode(letter.body)
    except ProtocolError:
        return None


def _described(value: object, indent: str = "") -> str:
    """A message as indented lines; tensors by dtype and shape, bytes by length."""
    lines = []
    for item in fields(value):  # type: ignore[arg-type]
        found = getattr(value, item.name)
        if is_dataclass(found):
            lines += [f"{indent}{item.name}:", _described(found, indent + "  ")]
        elif isinstance(found, np.ndarray):
            lines.append(f"{indent}{item.name}: {found.dtype} {list(found.shape)}")
        elif isinstance(found, bytes):
            lines.append(f"{indent}{item.name}: {len(found)} bytes")
        else:
            lines.append(f"{indent}{item.name}: {found}")
    return "\n".join(lines)
