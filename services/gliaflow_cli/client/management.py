"""RabbitMQ's management API: what AMQP does not tell, such as policies, rates and who is connected."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

WINDOW_S = 30  # that rates are a mean of; RabbitMQ counts every 5 seconds


class ManagementError(Exception):
    """The management API cannot be had. The text says why and what to do."""


@dataclass(frozen=True)
class Client:
    """A process of ours that reads a queue, as its connection tells."""

    queue: str
    version: str
    bundle: str
    address: str


class Management:
    """The API of one broker.

    Parameters
    ----------
    broker: its AMQP URL, which gives user, password, virtual host and, by default, the host.
    url: ``http://host:port``, where it is not port 15672 (TLS: 15671) of that host; with a user, where that is another.
    password_file: holds the password, where neither URL has one.

    Raises
    ------
    OSError: that file cannot be read.
    """

    def __init__(self, broker: str, url: str = "", password_file: Path | None = None) -> None:
        amqp = urlsplit(broker)
        scheme, port = ("https", 15671) if amqp.scheme == "amqps" else ("http", 15672)
        http = urlsplit(url or f"{scheme}://{amqp.hostname or 'localhost'}:{port}")
        named = http if http.username else amqp
        user, password = unquote(named.username or "guest"), unquote(named.password or "guest")
        if named.password is None and password_file is not None:
            password = password_file.read_text().strip()
        self._key = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.url = f"{http.scheme}://{http.netloc.rpartition('@')[2]}{http.path.rstrip('/')}"
        self._vhost = quote(unquote(amqp.path[1:]) or "/", safe="")
        self.clock: float | None = None  # what the last answer's Date says, seconds since 1970

    def queues(self) -> dict[str, dict[str, Any]]:
        """Every queue of the virtual host, by name.

        Raises
        ------
        ManagementError: there is no answer that can be used; as for all methods.
        """
        rates = f"msg_rates_age={WINDOW_S}&msg_rates_incr=5"
        return {queue["name"]: queue for queue in self._get(f"queues/{self._vhost}?{rates}")}

    def policy(self, queue: str) -> dict[str, Any] | None:
        """The one policy that a queue has: of those that match, the one of highest priority."""
        found = [
            policy
            for policy in self._get(f"policies/{self._vhost}")
            if policy["apply-to"] in ("queues", "quorum_queues", "all") and re.search(policy["pattern"], queue)
        ]
        return max(found, key=lambda policy: int(policy["priority"]), default=None)

    def clients(self) -> list[Client]:
        """Who reads the queues, of those that say they are gliaflow; needs the user tag ``monitoring``."""
        about = {c["name"]: c.get("client_properties", {}) for c in self._get("connections") if "name" in c}
        found = []
        for consumer in self._get(f"consumers/{self._vhost}"):
            channel = consumer.get("channel_details") or {}
            said = about.get(channel.get("connection_name"), {})
            if said.get("product") == "gliaflow":
                address = f"{channel.get('peer_host')}:{channel.get('peer_port')}"
                found.append(
                    Client(consumer["queue"]["name"], said.get("version", ""), said.get("bundle", ""), address)
                )
        return found

    def alarms(self) -> list[str]:
        """What blocks every publisher: the nodes that are short of memory or disk."""
        words = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
        return [
            f"{node['name']}: {what}" for node in self._get("nodes") for key, what in words.items() if node.get(key)
        ]

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/api/{path}", headers={"Authorization": f"Basic {self._key}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                self.clock = parsedate_to_datetime(answer.headers["Date"]).timestamp()
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            hint = ": the user needs the tag monitoring (rabbitmqctl set_user_tags USER monitoring)"
            raise ManagementError(
                f"{self.url} answers {error.code}{hint if error.code in (401, 403) else ''}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ManagementError(
                f"no management API at {self.url} ({getattr(error, 'reason', error)}): "
                "rabbitmq-plugins enable rabbitmq_management, or name it by GLIAFLOW_MANAGEMENT"
            ) from None
