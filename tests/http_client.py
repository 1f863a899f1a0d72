"""An HTTP client that sends exactly the bytes it is given, as a hostile one does."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """An answer. Names of headers are in small letters; of several with one name, the last."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class RawClient:
    """Talks to a server on this machine."""

    port: int

    def connect(self, head: str = "", body: bytes = b"") -> socket.socket:
        """A connection over which a request's head, whose lines end with ``\\n``, and a body were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + body)
        return connection

    def send(self, head: str, body: bytes = b"") -> Reply:
        """Send a request, and read the answer until its end."""
        with self.connect(head, body) as connection:
            return read_reply(connection)

    def ask(self, line: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
        """Send ``GET /path`` with the host's own name, unless ``headers`` have another one."""
        chosen = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        chosen |= {"Content-Length": str(len(body))} if body else {}
        lines = [f"{name}: {value}" for name, value in (chosen | (headers or {})).items()]
        return self.send("\n".join([f"{line} HTTP/1.1", *lines, "", ""]), body)


def read_reply(connection: socket.socket) -> Reply:
    """The next answer: as long as its Content-Length says, or until the server closes the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65536)):
            raise ConnectionError("closed without an answer")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers["content-length"]) if "content-length" in headers else None
    while length is None or len(body) < length:
        if not (part := connection.recv(65536)):
            break
        body += part
    return Reply(int(first.split()[1]), headers, body)
