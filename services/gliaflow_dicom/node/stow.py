"""Sends the objects of an answer to one DICOMweb server by STOW-RS (PS3.18, 10.5)."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4
from xml.etree import ElementTree

from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings

from gliaflow_dicom.node.peers import NO_CONNECTION, NotAccepted, PeerAway, WebPeer, calling_tls

MAX_CREDENTIALS = 4096
MAX_ANSWER = 2**20
# of the server's answer: two sequences, and of their items the UID and the reasons
STORED, FAILED = "00081199", "00081198"
UID, WARNING, FAILURE = "00081155", "00081196", "00081197"


class WebStore:
    """Each object is a request of its own. Redirects are not followed, since they lead to login pages.

    Raises
    ------
    UsageError: a TLS file or the file with the password cannot be used.
    """

    def __init__(self, settings: Settings, peer: WebPeer) -> None:
        parts = urlsplit(peer.url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, f"{parts.path}/studies"
        self._idle_s = settings.dicom_idle_s
        self._tls = calling_tls(settings) if parts.scheme == "https" else None
        self._headers = {"Accept": "application/dicom+json"}
        if settings.dicom_credentials is not None:
            self._headers["Authorization"] = _credentials(settings.dicom_credentials)

    def check(self) -> None:
        """Raises PeerAway."""
        self._connect().close()

    def send(self, paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, str]]]:
        """As of ``cstore.StoreUser``."""
        refused = ""
        for path in paths:
            try:
                warning = self._store(path)
            except NotAccepted as error:
                refused = refused or f"{error}, for {path.name}"
            else:
                yield path, warning
        if refused:
            raise NotAccepted(refused)

    def _connect(self) -> HTTPConnection:
        connection = (
            HTTPSConnection(self._host, self._port, timeout=self._idle_s, context=self._tls)
            if self._tls
            else HTTPConnection(self._host, self._port, timeout=self._idle_s)
        )
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            connection.close()
            why = f" ({error.verify_message})" if isinstance(error, ssl.SSLCertVerificationError) else ""
            raise PeerAway(f"{NO_CONNECTION}{why}") from None
        return connection

    def _store(self, path: Path) -> dict[str, str]:
        from pydicom import dcmread

        uid = str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        boundary = uuid4().hex
        start = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = start + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        with closing(self._connect()) as connection:
            try:
                connection.request("POST", self._path, body, {**self._headers, "Content-Type": kind})
                response = connection.getresponse()
                status, answer = response.status, response.read(MAX_ANSWER)
            except TimeoutError:
                raise NotAccepted(f"no answer came within {self._idle_s:g} s") from None
            except (OSError, HTTPException):
                raise NotAccepted("the connection was lost") from None
        try:
            stored, failed = _outcomes(answer)
        except (ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError):
            stored, failed = {}, {}  # a page for people, for example
        if status in range(200, 300) and uid in stored and uid not in failed:
            return {"status": f"{stored[uid]:#06x}"} if stored[uid] else {}
        reason = (
            f"failure reason {failed[uid]:#06x}" if uid in failed else "its answer does not name the object as stored"
        )
        raise NotAccepted(f"HTTP status {status}, {reason}")


def _outcomes(answer: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """The warning reasons of stored objects, or 0, and the failure reasons of the others, by their UIDs.

    Raises
    ------
    Exception: of any type; the answer is not DICOM's JSON or XML.
    """
    content = _from_xml(ElementTree.fromstring(answer)) if answer.lstrip().startswith(b"<") else json.loads(answer)
    (dataset,) = content if isinstance(content, list) else [content]
    stored, failed = (
        {
            str(item[UID]["Value"][0]).strip(" \0"): int(item.get(reason, {}).get("Value", [0])[0])
            for item in dataset.get(sequence, {}).get("Value", [])
        }
        for sequence, reason in ((STORED, WARNING), (FAILED, FAILURE))
    )
    return stored, failed


def _from_xml(item: ElementTree.Element) -> dict[str, Any]:
    """DICOM's XML (PS3.19, A.1) as DICOM's JSON would have it; numbers are texts."""
    return {
        attribute.get("tag", ""): {
            "Value": [_from_xml(each) if each.tag.endswith("Item") else each.text for each in attribute]
        }
        for attribute in item
    }


def _credentials(path: Path) -> str:
    """The header ``Authorization``. Raises UsageError: the file cannot be read, or holds something else."""
    try:
        with path.open() as file:
            line = file.read(MAX_CREDENTIALS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"dicom_credentials: {path}: {getattr(error, 'strerror', 'not a text')}") from None
    if not line.isprintable() or not (line.startswith("Bearer ") or ":" in line):
        raise UsageError(f"dicom_credentials: {path}: write one line into it: user:password, or Bearer TOKEN")
    return line if line.startswith("Bearer ") else f"Basic {base64.b64encode(line.encode()).decode()}"
