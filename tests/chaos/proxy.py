"""A TCP proxy between the processes and RabbitMQ, which can cut, stall, delay and lose connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(eq=False)
class _Pipe:
    """One connection through the proxy: its two sides, and what happens to the bytes that pass."""

    sides: list[asyncio.StreamWriter]
    lost: bool = False  # bytes vanish, and neither side learns that the other has closed
    left: float = field(default=float("inf"))  # bytes that may still pass before the connection is cut


class Proxy:
    """Listens on ``port`` of this machine and forwards to ``target``. Its methods disturb the forwarding."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.port = 0
        self.delay_s = 0.0  # before each chunk of a stream
        self._target = target
        self._pipes: set[_Pipe] = set()
        self._flowing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        threading.Thread(target=self._run, name="proxy", daemon=True).start()
        self._started.wait()

    def cut(self, after: int = 0) -> int:
        """End every connection after ``after`` further bytes, which is likely to be inside a frame."""

        def cut() -> int:
            for pipe in (pipes := list(self._pipes)):
                pipe.left = after
                if not after:
                    self._abort(pipe)
            return len(pipes)

        return self._do(cut)

    def lose(self) -> int:
        """Make the present connections half open: no byte arrives any more, and neither side is notified."""

        def lose() -> int:
            for pipe in self._pipes:
                pipe.lost = True
            return len(self._pipes)

        return self._do(lose)

    def stall(self, stalled: bool) -> None:
        """Hold back every byte, also of new connections, until ``stall(False)``."""
        self._do(self._flowing.clear if stalled else self._flowing.set)

    def _do(self, action: Callable[[], object]) -> int:
        async def done() -> int:
            return int(action() or 0)  # type: ignore[call-overload,no-any-return]

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._flowing.set()
        self._started.set()
        self._loop.run_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pipe = _Pipe([writer, far_writer])
        self._pipes.add(pipe)
        await asyncio.gather(self._pump(pipe, reader, far_writer), self._pump(pipe, far_reader, writer))
        self._abort(pipe)

    async def _pump(self, pipe: _Pipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if pipe.lost:
                    continue
                writer.write(data[: int(min(pipe.left, len(data)))])
                await writer.drain()
                pipe.left -= len(data)
                if pipe.left <= 0:
                    break
        if not pipe.lost:
            self._abort(pipe)

    def _abort(self, pipe: _Pipe) -> None:
        self._pipes.discard(pipe)
        for side in pipe.sides:
            side.transport.abort()


def proxied(url: str) -> tuple[Proxy, str]:
    """A proxy before a broker, and the broker's URL through it."""
    parts = urlsplit(url)
    proxy = Proxy((parts.hostname or "", parts.port or 5672))
    user = parts.netloc.rpartition("@")[0]
    return proxy, parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}").geturl()
