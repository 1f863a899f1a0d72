"""Who we are to RabbitMQ, and how we know that it is RabbitMQ: passwords and certificates, which come from files.

Files are read for each connection, so that one who changes a password or a certificate restarts nothing.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pika

from gliaflow_runtime.broker.interface import BrokerError, without_password

HEARTBEAT_S = 30  # where the URL has no ?heartbeat=
BLOCKED_S = 300  # a broker out of memory or disk blocks its publishers: after so long, try a new connection


@dataclass(frozen=True)
class Access:
    """Files beside the URL, each of which may be missing. The names are those of the settings ``broker_…``.

    Parameters
    ----------
    password_file: holds the password, where the URL has none.
    ca: certificates (PEM) that may have signed the broker's; None: those that the system trusts.
    cert, key: ours (PEM), for a broker that asks its clients for one; without ``key`` it is in the same file.
    """

    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def parameters(self, url: str, name: str, about: Mapping[str, str] | None = None) -> list[Any]:
        """What pika needs to connect to each node that ``url`` names, with commas between.

        ``name`` and ``about`` are shown on the broker's management page.

        Raises
        ------
        ValueError: the URL is not well formed.
        BrokerError: a file cannot be read, or is not what it should be.
        """
        parts = urlsplit(url)
        try:
            nodes = parts.netloc.rpartition("@")[2].split(",")
            if len(nodes) > 1 and not all(nodes):
                raise ValueError("a node between the commas has no name")
            # pika cannot read a user without a password
            found = [pika.URLParameters(parts._replace(netloc=node).geturl()) for node in nodes]
            user, password = parts.username, parts.password
        except Exception as error:  # pika raises what its parsing happens to raise
            raise ValueError(f"broker URL {without_password(url)}: {error or type(error).__name__}") from None
        if password is None and self.password_file is not None:
            password = _read("broker_password_file", self.password_file).strip()
        elif password is not None:
            password = unquote(password)
        for parameters in found:
            if user is not None:
                parameters.credentials = pika.PlainCredentials(unquote(user), password or "")
            if parts.scheme == "amqps":
                parameters.ssl_options = pika.SSLOptions(self._tls(), parameters.host)
            if parameters.heartbeat is None:
                parameters.heartbeat = HEARTBEAT_S
            if parameters.blocked_connection_timeout is None:
                parameters.blocked_connection_timeout = BLOCKED_S
            parameters.client_properties = {**(about or {}), "connection_name": f"gliaflow {name}"}
        return found

    def _tls(self) -> ssl.SSLContext:
        for name, file in (("broker_ca", self.ca), ("broker_cert", self.cert), ("broker_key", self.key)):
            if file is not None:
                _read(name, file)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as error:
            raise BrokerError(f"broker_ca: {self.ca}: no certificates in PEM ({_reason(error)})") from None
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=lambda: "")  # never asks on a terminal
            except (ssl.SSLError, OSError, ValueError) as error:
                raise BrokerError(
                    f"broker_cert, broker_key: {self.cert} and {self.key or 'the same file'} are no certificate and "
                    f"its unencrypted key in PEM ({_reason(error)})"
                ) from None
        return context


def tls_trouble(text: str) -> str:
    """What to do where TLS refused a connection with this text; empty where it was something else.

    pika passes on the text and not always the exception: in TLS 1.3 a client's certificate is refused only later.
    """
    found = re.search(r"\[SSL: (\w+)\] (.*?) \(_ssl", text)
    if found is None:
        return ""
    code, words = found.groups()
    if code == "CERTIFICATE_VERIFY_FAILED":
        return (
            f"its certificate is refused: {words.removeprefix('certificate verify failed: ')} "
            "(broker_ca names who may have signed it, the URL the host that it must be for)"
        )
    if "ALERT" in code and ("CERTIFICATE" in code or "UNKNOWN_CA" in code):
        return f"it refuses our certificate: {words} (broker_cert and broker_key name it; none is shown without them)"
    return f"TLS failed: {words} (amqps:// needs the port on which RabbitMQ speaks TLS, 5671 as a rule)"


def _read(setting: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BrokerError(f"{setting}: {file}: {getattr(error, 'strerror', None) or 'not a text file'}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
