"""RabbitMQ's management API: policies, rates and connections, which AMQP does not report."""

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
from urllib.parse import quote, unquote

from gliaflow_runtime.broker.url import HTTP, parse_server_url

CLIENT_SERVICES = {"dicom": "dicom node", "console": "console"}  # by their broker user (deploy/rabbitmq/users.json)
WINDOW_S = 30  # rates are means over this window; RabbitMQ counts every 5 seconds


class ManagementError(Exception):
    """The management API is not available. The text says why and what to do."""


@dataclass(frozen=True)
class Client:
    """A gliaflow process that reads a queue, described by its connection."""

    queue: str
    version: str
    bundle: str
    address: str


class Management:
    """The API of one broker.

    Parameters
    ----------
    broker: the broker's AMQP URL, with user, password, virtual host and host.
    url: ``http://host:port``, if it is not port 15672 (TLS: 15671) of that host; with a user, if that is another one.
    password_file: has the password, if neither URL has one.

    Raises
    ------
    ValueError: a URL is malformed.
    OSError: the password file cannot be read.
    """

    def __init__(self, broker: str, url: str = "", password_file: Path | None = None) -> None:
        amqp = parse_server_url(broker)
        scheme, port = ("https", 15671) if amqp.scheme == "amqps" else ("http", 15672)
        http = parse_server_url(url or f"{scheme}://{amqp.host}:{port}", HTTP)
        named = http if http.user else amqp
        user, password = named.user or "guest", named.password or "guest"
        if named.password is None and password_file is not None:
            password = password_file.read_text().strip()
        self._key = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.url = f"{http.scheme}://{http.nodes[0]}{http.path.rstrip('/')}"
        self._vhost = quote(unquote(amqp.path[1:]) or "/", safe="")
        self.clock: float | None = None  # the Date of the last answer, in seconds since 1970

    def queues(self) -> dict[str, dict[str, Any]]:
        """Every queue of the virtual host, by name.

        Raises
        ------
        ManagementError: there is no usable answer. All methods raise it.
        """
        rates = f"msg_rates_age={WINDOW_S}&msg_rates_incr=5"
        return {queue["name"]: queue for queue in self._get(f"queues/{self._vhost}?{rates}")}

    def bindings(self) -> dict[str, set[tuple[str, str]]]:
        """The bindings of each queue: exchange and routing key."""
        bindings: dict[str, set[tuple[str, str]]] = {}
        for each in self._get(f"bindings/{self._vhost}"):
            if each["destination_type"] == "queue":
                bindings.setdefault(each["destination"], set()).add((each["source"], each["routing_key"]))
        return bindings

    def policy(self, queue: str) -> dict[str, Any] | None:
        """The policy that applies to a queue: of those that match, the one with the highest priority."""
        found = [
            policy
            for policy in self._get(f"policies/{self._vhost}")
            if policy["apply-to"] in ("queues", "quorum_queues", "all") and re.search(policy["pattern"], queue)
        ]
        return max(found, key=lambda policy: int(policy["priority"]), default=None)

    def clients(self) -> list[Client]:
        """The consumers whose connection names gliaflow as its product. Needs the user tag ``monitoring``."""
        about = {c["name"]: c.get("client_properties", {}) for c in self._get("connections") if "name" in c}
        found = []
        for consumer in self._get(f"consumers/{self._vhost}"):
            channel = consumer.get("channel_details") or {}
            properties = about.get(channel.get("connection_name"), {})
            if properties.get("product") == "gliaflow":
                address = f"{channel.get('peer_host')}:{channel.get('peer_port')}"
                found.append(
                    Client(
                        consumer["queue"]["name"],
                        properties.get("version", ""),
                        properties.get("bundle", ""),
                        address,
                    )
                )
        return found

    def client_services(self) -> dict[str, list[str]]:
        """The version of gliaflow on each host that is connected as a user of CLIENT_SERVICES, by that user.

        Needs the user tag ``monitoring``.
        """
        versions: dict[str, dict[str, str]] = {user: {} for user in CLIENT_SERVICES}
        for each in self._get("connections"):
            about = each.get("client_properties", {})
            if each.get("user") in versions and about.get("product") == "gliaflow":
                versions[each["user"]][each.get("peer_host", "")] = str(about.get("version", ""))
        return {user: sorted(hosts.values()) for user, hosts in versions.items()}

    def killed(self) -> set[tuple[str, str, str]]:
        """User and address of the stages that were killed, and how often and why. Needs the user tag ``monitoring``."""
        texts = set()
        for each in self._get("connections"):
            about = each.get("client_properties", {})
            if about.get("product") == "gliaflow" and about.get("killed"):
                texts.add((each.get("user", ""), each.get("peer_host", ""), about["killed"]))
        return texts

    def alarms(self) -> list[str]:
        """The alarms, which block all publishers: nodes that are short of memory or disk."""
        kinds = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
        return [
            f"{node['name']}: {kind}" for node in self._get("nodes") for key, kind in kinds.items() if node.get(key)
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
                "rabbitmq-plugins enable rabbitmq_management, or set GLIAFLOW_MANAGEMENT to its address"
            ) from None
