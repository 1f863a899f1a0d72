"""Passwords and TLS certificates for RabbitMQ, read from files.

The files are read again for each connection, so a changed password or certificate needs no restart.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika

from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.url import parse_server_url, without_password
from gliaflow_runtime.errors import UsageError

HEARTBEAT_S = 30  # unless the URL has ?heartbeat=
BLOCKED_S = 300  # a broker short of memory or disk blocks publishers: reconnect after this time


@dataclass(frozen=True)
class Credentials:
    """Files that complete the URL; all are optional. They are the settings ``broker_password_file``, ``broker_ca``, ….

    Parameters
    ----------
    password_file: the password, if the URL has none.
    ca: certificates (PEM) of the authorities that may sign the broker's; None: those that the system trusts.
    cert, key: this client's certificate and key (PEM), if the broker demands one; ``key`` may be in ``cert``.
    """

    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def parameters(self, url: str, name: str, about: Mapping[str, str] | None = None) -> list[Any]:
        """pika's connection parameters for each node in ``url`` (nodes are separated by commas).

        RabbitMQ's management page shows ``name`` and ``about``.

        Raises
        ------
        UsageError: the URL is malformed.
        BrokerError: a file cannot be read, or has no certificate or key in it.
        """
        try:
            server = parse_server_url(url)
            # pika cannot read a user without a password
            nodes_parameters = [pika.URLParameters(server.of_node(node)) for node in server.nodes]
        except Exception as error:  # pika raises many types here
            raise UsageError(f"broker URL {without_password(url)}: {error or type(error).__name__}") from None
        password = server.password
        if password is None and self.password_file is not None:
            password = _read("broker_password_file", self.password_file).strip()
        for parameters in nodes_parameters:
            if server.user is not None:
                parameters.credentials = pika.PlainCredentials(server.user, password or "")
            if server.scheme == "amqps":
                parameters.ssl_options = pika.SSLOptions(self._tls(), parameters.host)
            if parameters.heartbeat is None:
                parameters.heartbeat = HEARTBEAT_S
            if parameters.blocked_connection_timeout is None:
                parameters.blocked_connection_timeout = BLOCKED_S
            parameters.client_properties = {**(about or {}), "connection_name": f"gliaflow {name}"}
        return nodes_parameters

    def _tls(self) -> ssl.SSLContext:
        for name, file in (("broker_ca", self.ca), ("broker_cert", self.cert), ("broker_key", self.key)):
            if file is not None:
                _read(name, file)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as error:
            raise BrokerError(f"broker_ca: {self.ca}: not certificates in PEM ({_reason(error)})") from None
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=lambda: "")  # no prompt on the terminal
            except (ssl.SSLError, OSError, ValueError) as error:
                raise BrokerError(
                    f"broker_cert, broker_key: {self.cert} and {self.key or 'the same file'} are not a certificate "
                    f"and its unencrypted key in PEM ({_reason(error)})"
                ) from None
        return context


def explain_tls_error(text: str) -> str:
    """Cause and remedy of a TLS error with this text; empty if it is not a TLS error.

    pika may pass on only the text: in TLS 1.3 the broker refuses a client's certificate after the handshake.
    """
    match = re.search(r"\[SSL: (\w+)\] (.*?) \(_ssl", text)
    if match is None:
        return ""
    code, words = match.groups()
    if code == "CERTIFICATE_VERIFY_FAILED":
        return (
            f"the broker's certificate is not valid: {words.removeprefix('certificate verify failed: ')} "
            "(broker_ca must name its signer, and the URL its host)"
        )
    if "ALERT" in code and ("CERTIFICATE" in code or "UNKNOWN_CA" in code):
        return f"the broker refuses our certificate: {words} (set broker_cert and broker_key)"
    return f"TLS failed: {words} (amqps:// needs RabbitMQ's TLS port, usually 5671)"


def _read(setting: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BrokerError(f"{setting}: {file}: {getattr(error, 'strerror', None) or 'not a text file'}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
