"""Server-sent events: what changes in the console, read and serialised once for all streams."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from gliaflow_console import events
from gliaflow_console.events import Events


@dataclass
class FakeScan:
    id: str
    own: bool = True

    def row(self) -> dict[str, Any]:
        return {"id": self.id}


@dataclass
class FakeStore:
    version: int = 0
    scans: list[FakeScan] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)  # the versions for which changes were read

    def add(self, id: str, own: bool = True) -> None:
        self.scans.append(FakeScan(id, own))
        self.version += 1

    def newest(self, limit: int) -> list[FakeScan]:
        self.reads.append(events.FIRST)
        return self.scans[::-1][:limit]

    def changes(self, since: int) -> Any:
        self.reads.append(since)
        return SimpleNamespace(version=self.version, rows=self.scans[since:], removed=["gone"])

    def __len__(self) -> int:
        return len(self.scans)


class Page:
    """A browser that reads a stream."""

    def __init__(self, source: Events) -> None:
        self._stream = source.stream()

    async def read(self) -> list[tuple[str, dict[str, Any]]]:
        """The events that come next, together."""
        return [message(block) for block in (await anext(self._stream)).decode().split("\n\n") if block]


def message(block: str) -> tuple[str, dict[str, Any]]:
    lines = dict(line.split(": ", 1) for line in block.splitlines())
    return lines["event"], json.loads(lines["data"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_S", 0.05)


def source(store: FakeStore, status: dict[str, Any]) -> Events:
    console: Any = SimpleNamespace(store=store, stopping=threading.Event())
    return Events(console, lambda: dict(status))


def test_a_stream_begins_with_everything_and_continues_with_what_changes() -> None:
    async def reads() -> None:
        store, status = FakeStore(), {"dead": 0}
        store.add("a")
        page = Page(source(store, status))
        assert await page.read() == [
            ("status", {"dead": 0}),
            ("scans", {"version": 1, "rows": [{"id": "a"}], "removed": [], "total": 1, "first": True}),
        ]
        store.add("b")
        changed = {"version": 2, "rows": [{"id": "b"}], "removed": ["gone"], "total": 2, "first": False}
        assert await page.read() == [("scans", changed)]
        status["dead"] = 1
        assert await page.read() == [("status", {"dead": 1})]

    asyncio.run(reads())


def test_many_streams_cost_no_more_than_one() -> None:
    async def read() -> None:
        store = FakeStore()
        common = source(store, {})
        pages = [Page(common) for _ in range(5)]
        await asyncio.gather(*(page.read() for page in pages))
        store.reads.clear()
        store.add("a")
        answers = await asyncio.gather(*(page.read() for page in pages))
        assert all(answer == answers[0] for answer in answers)
        assert store.reads == [0]

    asyncio.run(read())


def test_many_changes_become_one_event() -> None:
    async def read() -> None:
        store = FakeStore()
        page = Page(source(store, {}))
        await page.read()
        for number in range(100):
            store.add(str(number))
        ((name, data),) = await page.read()
        assert (name, len(data["rows"])) == ("scans", 100)

    asyncio.run(read())


def test_scans_of_other_clients_come_together_and_own_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "OTHERS", 10**9)

    async def read() -> None:
        store, status = FakeStore(), {"dead": 0}
        page = Page(source(store, status))
        await page.read()
        store.add("another client's", own=False)
        status["dead"] = 1
        assert await page.read() == [("status", {"dead": 1})]
        store.add("own")
        ((_, data),) = await page.read()
        assert [row["id"] for row in data["rows"]] == ["another client's", "own"]

    asyncio.run(read())


def test_a_quiet_stream_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "COMMENT_S", 0.1)

    async def read() -> None:
        stream = source(FakeStore(), {}).stream()
        await anext(stream)
        assert (await anext(stream)).startswith(b":")

    asyncio.run(read())


def test_streams_end_with_the_console() -> None:
    async def read() -> None:
        common = source(FakeStore(), {})
        stream = common.stream()
        await anext(stream)
        common.console.stopping.set()
        assert [part async for part in stream] == []

    asyncio.run(read())


def test_no_text_can_forge_an_event() -> None:
    """A name with line ends stays inside its JSON."""
    assert events.event("scans", {"name": "a\n\nevent: status\ndata: {}"}).count(b"\n\n") == 1
