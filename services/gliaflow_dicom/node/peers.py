"""Peers: how the user names them, TLS for them, and pynetdicom's settings for this process."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gliaflow_runtime.errors import UsageError

if TYPE_CHECKING:
    from gliaflow_runtime.settings import Settings
    from pynetdicom.association import Association

MAX_AE_TITLE = 16
ANYBODY = "any"
VERIFICATION = "1.2.840.10008.1.1"
NO_CONNECTION = "it does not accept a connection: check host, port and TLS"
UNCOMPRESSED = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


class PeerAway(Exception):
    """The peer accepts no connection, or does not answer a query. The text says why, without a UID."""


class NotAccepted(Exception):
    """The destination accepted the connection, and then not all objects of an answer. The text says why."""


@dataclass(frozen=True)
class Peer:
    """A DICOM node: ``AE@HOST:PORT``, or with TLS ``tls://AE@HOST:PORT``."""

    title: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{'tls://' if self.tls else ''}{self.title}@{self.host}:{self.port}"


@dataclass(frozen=True)
class WebPeer:
    """A DICOMweb server: the URL below which ``/studies`` is."""

    url: str

    def __str__(self) -> str:
        return self.url


def parse_peer(text: str, flag: str) -> Peer:
    """The node that the user names. Raises UsageError with the names of the flag and its environment variable."""
    tls = text.startswith("tls://")
    title, at, address = text.removeprefix("tls://").rpartition("@")
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (at and colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"{named(flag)}: {text!r} is not AE@HOST:PORT, for example ORTHANC@localhost:4242")
    return Peer(check_title(title, flag), host, int(port), tls)


def parse_destination(text: str) -> Peer | WebPeer:
    """What ``--to`` names. Raises UsageError."""
    if not text.startswith(("http://", "https://")):
        return parse_peer(text, "--to")
    try:
        parts = urlsplit(text)
        complete = bool(parts.hostname) and parts.port != 0 and text.isascii() and not {*text} & {*" \t\r\n"}
    except ValueError:
        complete = False
    if not complete:
        raise UsageError(f"{named('--to')}: the URL has no host, or a wrong port: write https://HOST:PORT/dicom-web")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"{named('--to')}: the URL has a password or a query: write https://HOST/dicom-web, and put user:password "
            "into the file of the setting dicom_credentials"
        )
    return WebPeer(text.rstrip("/"))


def check_title(title: str, flag: str) -> str:
    """An AE title without the spaces around it. Raises UsageError."""
    title = title.strip()
    if not 0 < len(title) <= MAX_AE_TITLE or not title.isascii() or not title.isprintable() or "\\" in title:
        raise UsageError(
            f"{named(flag)}: {title!r} is not an AE title: write 1 to {MAX_AE_TITLE} ASCII characters without a "
            "backslash"
        )
    return title


def allowed_titles(given: list[str]) -> list[str]:
    """The AE titles of ``--allow``; none for ``any``. Raises UsageError."""
    titles = [title.strip() for title in given if title.strip()]
    if not titles:
        raise UsageError(
            f"{named('--allow')}: name the AE titles that may send images, for example ORTHANC,CT1; "
            f"{ANYBODY} accepts every sender"
        )
    if ANYBODY in titles:
        if titles != [ANYBODY]:
            raise UsageError(f"{named('--allow')}: write either {ANYBODY} or AE titles")
        return []
    return [check_title(title, "--allow") for title in titles]


def named(flag: str) -> str:
    """The flag with its environment variable, which is what users of compose see."""
    return f"{flag} (GLIAFLOW_DICOM_{flag.removeprefix('--').upper()})"


def listening_tls(settings: Settings) -> ssl.SSLContext | None:
    """TLS for the listener, if the settings have a certificate. With ``dicom_ca``, peers need a certificate too.

    Raises
    ------
    UsageError: a file cannot be used.
    """
    if settings.dicom_cert is None:
        if settings.dicom_key is not None:
            raise UsageError("dicom_key: the certificate is missing: set dicom_cert too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, settings)
    if settings.dicom_ca is not None:
        _load_authorities(context, settings.dicom_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def calling_tls(settings: Settings) -> ssl.SSLContext:
    """TLS for ``tls://`` peers: their certificates must be signed by ``dicom_ca``, else by the system's authorities.

    Raises
    ------
    UsageError: a file cannot be used.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.dicom_ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, settings.dicom_ca)
    if settings.dicom_cert is not None:
        _load_certificate(context, settings)
    return context


@contextmanager
def associated(settings: Settings, peer: Peer, contexts: Iterable[tuple[str, list[str]]]) -> Iterator[Association]:
    """An association with a peer, which may have been refused (``is_established``). It is released at the end.

    Parameters
    ----------
    contexts: SOP classes with transfer syntaxes.

    Raises
    ------
    PeerAway: the host's name is not known.
    """
    from pynetdicom import AE

    ae = AE(ae_title=settings.dicom_ae)
    ae.acse_timeout = ae.connection_timeout = min(30.0, settings.dicom_idle_s)
    ae.dimse_timeout = ae.network_timeout = settings.dicom_idle_s
    for sop_class, syntaxes in contexts:
        ae.add_requested_context(sop_class, syntaxes)
    options: dict[str, Any] = {"tls_args": (calling_tls(settings), peer.host)} if peer.tls else {}
    try:
        association = ae.associate(peer.host, peer.port, ae_title=peer.title, **options)
    except (OSError, UnicodeError):  # pynetdicom looks up the name
        raise PeerAway(NO_CONNECTION) from None
    with ExitStack() as end:
        if (connection := association.dul.socket) is not None and connection.socket is not None:
            end.callback(connection.socket.close)  # pynetdicom does not, if the peer was the first
        end.callback(association.release)
        yield association


def why_away(association: Association) -> str:
    """Why the peer refused the association. Empty: it accepted it, though perhaps none of the SOP classes."""
    if association.is_rejected:
        return "it rejects our AE title, or does not know its own: check both AE titles in its list of peers"
    if association.is_established or association.acceptor.primitive is not None:
        return ""
    return NO_CONNECTION


def check_peer(settings: Settings, peer: Peer) -> None:
    """Send a C-ECHO. Raises PeerAway: the peer does not accept the association."""
    with associated(settings, peer, [(VERIFICATION, UNCOMPRESSED)]) as association:
        if reason := why_away(association):
            raise PeerAway(reason)
        with suppress(RuntimeError, ValueError):  # it has ended, or the peer does not know C-ECHO
            association.send_c_echo()


def keep_libraries_quiet() -> None:
    """No header reaches a log: pydicom and pynetdicom quote values in their messages and warnings."""
    import warnings

    import pynetdicom._config

    for name in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    for module in ("pydicom", "pynetdicom", "highdicom"):
        warnings.filterwarnings("ignore", module=rf"{module}\b")


def _load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    assert settings.dicom_cert is not None
    try:
        context.load_cert_chain(settings.dicom_cert, settings.dicom_key)
    except OSError as error:  # SSLError is one
        raise UsageError(
            f"dicom_cert: {settings.dicom_cert}: {error.strerror or error}: name a PEM file with the certificate, and "
            "in dicom_key one with its key"
        ) from None


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise UsageError(f"dicom_ca: {path}: {error.strerror or error}: name a PEM file of authorities") from None
