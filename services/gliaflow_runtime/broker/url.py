"""Read the URL of a broker. Error messages never contain a part of the password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

AMQP = ("amqp", "amqps")
HTTP = ("http", "https")  # of RabbitMQ's management API
HOST = r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])"  # an IPv6 address needs brackets
ENCODE = (
    "special characters of user and password must be percent-encoded: # is %23, / is %2F, ? is %3F, @ is %40, "
    "% is %25, a space is %20; or put the password into a file: GLIAFLOW_BROKER_PASSWORD_FILE"
)


@dataclass(frozen=True)
class ServerUrl:
    """``scheme://user:password@host:port/path?query``. User and password are decoded; None: the URL has none.

    Parameters
    ----------
    nodes: ``host:port`` or ``host``; several for a cluster.
    path: with its leading slash, as written. That of a broker is its virtual host.
    """

    scheme: str
    user: str | None
    password: str | None
    nodes: tuple[str, ...]
    path: str
    query: str

    @property
    def host(self) -> str:
        """The name or address of the first node."""
        return re.sub(r":\d+$", "", self.nodes[0])

    @property
    def public(self) -> str:
        """The URL for logs and messages: without the password and the query."""
        user = "" if self.user is None else f"{self.user}@"
        return f"{self.scheme}://{user}{','.join(self.nodes)}{self.path}"

    def of_node(self, node: str) -> str:
        """The URL of one node, without user and password."""
        return f"{self.scheme}://{node}{self.path}{self.query}"


def parse_server_url(text: str, schemes: tuple[str, ...] = AMQP) -> ServerUrl:
    """Read a URL with one of these schemes.

    Raises
    ------
    ValueError: the URL is malformed. The text says how, and has no part of the URL that may belong to a password.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"expected {' or '.join(f'{known}://' for known in schemes)} at the start")
    if schemes == HTTP:
        rest = re.sub(r"/#[^@]*$", "/", rest)  # as copied from a browser
    authority, path, query = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    login, at, hosts = authority.rpartition("@")
    if re.search(r"[\s\x00-\x1f]", rest) or "#" in rest or "@" in path + query:
        raise ValueError(ENCODE)
    if re.search(r"%(?![0-9A-Fa-f]{2})", authority + path):
        raise ValueError(f"% is not followed by two hexadecimal digits; {ENCODE}")
    nodes = tuple(hosts.split(","))
    if not hosts:
        raise ValueError(f"it names no host; expected {scheme}://user:password@host")
    if not all(nodes):
        raise ValueError("a node between the commas is empty")
    for node in nodes:
        match = re.fullmatch(HOST + r"(?::(\d{1,5}))?", node)
        if match is None or int(match[1] or 1) not in range(1, 65536):
            raise ValueError(
                "host or port is not valid; expected host:port with a port from 1 to 65535, and brackets around an "
                f"IPv6 address ([::1]:5672). If that is part of a password: {ENCODE}"
            )
    user, colon, password = login.partition(":")
    return ServerUrl(scheme, unquote(user) if at else None, unquote(password) if colon else None, nodes, path, query)


def without_password(url: str) -> str:
    """The URL of a broker or of its management API, for logs and messages. Of any other secret, nothing is left."""
    if not url or url.startswith("memory://"):
        return url
    try:
        return parse_server_url(url, (*AMQP, *HTTP)).public
    except ValueError:
        scheme, separator, _ = url.partition("://")
        return f"{scheme}{separator}…" if separator else "…"
