"""How the user names peers."""

from __future__ import annotations

from pathlib import Path

import pytest
from gliaflow_dicom.node.peers import (
    Peer,
    PeerAway,
    WebPeer,
    allowed_titles,
    calling_tls,
    check_peer,
    listening_tls,
    parse_destination,
    parse_peer,
)
from gliaflow_runtime.errors import UsageError
from sample_node import node_settings

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # pynetdicom's, of refused connections


def test_peers() -> None:
    assert parse_peer("ORTHANC@localhost:4242", "--to") == Peer("ORTHANC", "localhost", 4242)
    assert parse_peer("tls://A B@10.0.0.1:2762", "--to") == Peer("A B", "10.0.0.1", 2762, tls=True)
    assert parse_peer("A@[::1]:104", "--to") == Peer("A", "::1", 104)
    assert parse_destination("https://pacs/dicom-web/") == WebPeer("https://pacs/dicom-web")
    assert str(parse_peer("tls://A@h:1", "--to")) == "tls://A@h:1"


@pytest.mark.parametrize(
    "text", ["", "ORTHANC", "localhost:4242", "A@host", "A@host:0", "A@host:99999", "A@:1", "@h:1"]
)
def test_something_else_is_no_peer(text: str) -> None:
    with pytest.raises(UsageError, match=r"--pacs \(GLIAFLOW_DICOM_PACS\): "):
        parse_peer(text, "--pacs")


@pytest.mark.parametrize("title", ["ABCDEFGHIJKLMNOPQ", "Ä", "A\\B", "A\nB"])
def test_ae_titles_have_at_most_16_characters(title: str) -> None:
    with pytest.raises(UsageError, match="is not an AE title"):
        parse_peer(f"{title}@host:1", "--to")


@pytest.mark.parametrize(
    "url",
    [
        *("https://user:secret@host/dicom-web", "https://host/dicom-web?token=secret", "https:///x"),
        *("https://host:99999/x", "https://[::1/x", "https://host/a b", "https://host/ä"),
    ],
)
def test_a_url_has_a_host_and_no_password(url: str) -> None:
    with pytest.raises(UsageError, match=r"--to \(GLIAFLOW_DICOM_TO\): the URL") as error:
        parse_destination(url)
    assert "secret" not in str(error.value)


def test_allowed_titles() -> None:
    assert allowed_titles(["A", " B "]) == ["A", "B"]
    assert allowed_titles(["any"]) == []
    for wrong in ([], [""], ["any", "A"]):
        with pytest.raises(UsageError, match=r"--allow \(GLIAFLOW_DICOM_ALLOW\)"):
            allowed_titles(wrong)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "127.0.0.1"])
def test_a_host_that_is_not_there_is_away(tmp_path: Path, host: str) -> None:
    with pytest.raises(PeerAway, match="it does not accept a connection: check host, port and TLS"):
        check_peer(node_settings(tmp_path), Peer("A", host, 1))


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("x")
    with pytest.raises(UsageError, match=r"dicom_cert: .*no\.pem"):
        listening_tls(node_settings(tmp_path, cert=tmp_path / "no.pem"))
    with pytest.raises(UsageError, match=r"dicom_ca: .*no\.pem"):
        calling_tls(node_settings(tmp_path, ca=tmp_path / "no.pem"))
    with pytest.raises(UsageError, match="dicom_key: the certificate is missing"):
        listening_tls(node_settings(tmp_path, key=tmp_path / "no.pem"))
