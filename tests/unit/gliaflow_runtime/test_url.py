"""The URL of a broker: special characters of a password are percent-encoded, and no message shows a part of one."""

from __future__ import annotations

import pytest
from gliaflow_cli.main import main
from gliaflow_client.management import Management
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.broker.url import HTTP, parse_server_url, without_password
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import SettingsError, load_settings

SECRETS = ("Zq#Xw", "Zq/Xw", "Zq?Xw", "Zq/X@Xw", "Zq#X@Xw", "Zq%Xw", "Zq%", "Zq Xw", "Zq\tXw", "12#Xw", "12/Xw")
COMMANDS = (
    ("submit", "x.nii.gz", "--out", "out"),
    ("watch", "in", "--out", "out"),
    ("generate", "--grade", "HGG", "--count", "1", "--out", "x.npz"),
    ("demo", "--out", "out"),
    ("console", "--port", "0"),
    ("serve", "extractor"),
    ("status",),
    ("doctor",),
    ("dead", "list"),
    ("dead", "show", "1"),
    ("dead", "replay", "--all"),
    ("dead", "delete", "--all", "--yes"),
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("setting", ["broker", "management"])
def test_a_password_with_special_characters_is_refused_without_a_part_of_it(secret: str, setting: str) -> None:
    scheme = {"broker": "amqp", "management": "http"}[setting]
    with pytest.raises(SettingsError) as caught:
        load_settings({setting: f"{scheme}://me:{secret}@somewhere:5672/"})
    assert "must be percent-encoded: # is %23" in str(caught.value)
    assert "\n" not in str(caught.value)
    shown = without_password(f"amqp://me:{secret}@somewhere/")
    for text in (str(caught.value), shown):
        assert "Zq" not in text
        assert "Xw" not in text


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_each_command_refuses_it_in_one_line(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLIAFLOW_BROKER", "amqp://me:Zq#Xw@somewhere/")
    monkeypatch.setattr("sys.argv", ["gliaflow", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("gliaflow: GLIAFLOW_BROKER: ")
    assert message.count("\n") == 1
    assert "Zq" not in message
    assert "Xw" not in message


def test_the_encoded_password_is_decoded_for_both_connections() -> None:
    url = "amqp://m%40e:p%23%2F%3F%40%25%3A%20%C3%A9@host:5673/v%2Fhost?heartbeat=7"
    (parameters,) = Credentials().parameters(url, "test")
    assert (parameters.credentials.username, parameters.credentials.password) == ("m@e", "p#/?@%: é")
    assert (parameters.host, parameters.port, parameters.virtual_host) == ("host", 5673, "v/host")
    assert parameters.heartbeat == 7
    assert without_password(url) == "amqp://m@e@host:5673/v%2Fhost"
    assert Management(url).url == "http://host:15672"


@pytest.mark.parametrize("password", ["a:b", "a@b", "ä!$&'()*+,;=~"])
def test_characters_that_leave_no_doubt_need_no_encoding(password: str) -> None:
    assert parse_server_url(f"amqp://me:{password}@host/").password == password


def test_an_ipv6_address_is_in_brackets() -> None:
    (parameters,) = Credentials().parameters("amqp://me:secret@[::1]:5673/", "test")
    assert (parameters.host, parameters.port) == ("::1", 5673)
    assert Management("amqp://[::1]/").url == "http://[::1]:15672"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost", "expected amqp:// or amqps:// at the start"),
        ("http://host", "expected amqp:// or amqps:// at the start"),
        ("amqp://", "names no host"),
        ("amqp://me:secret@/", "names no host"),
        ("amqp://host:port/", "a port from 1 to 65535"),
        ("amqp://host:0/", "a port from 1 to 65535"),
        ("amqp://host:65536/", "a port from 1 to 65535"),
        ("amqp://host:/", "a port from 1 to 65535"),
        ("amqp://::1/", "brackets around an IPv6 address"),
        ("amqp://[::1/", "brackets around an IPv6 address"),
        ("amqp://ho[st/", "host or port is not valid"),
        ("amqp://me:sec[ret@ho\uff0fst/", "host or port is not valid"),
        ("amqp://one,,two/", "a node between the commas is empty"),
    ],
)
def test_a_malformed_url_is_refused_with_what_is_expected(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_server_url(url)
    with pytest.raises(UsageError, match=reason) as caught:
        Credentials().parameters(url, "test")
    assert "sec" not in str(caught.value)


def test_the_management_page_s_address_is_accepted_as_a_browser_shows_it() -> None:
    assert Management("amqp://host/", "http://me:secret@other:15672/#/queues").url == "http://other:15672"
    assert parse_server_url("https://host/api/", HTTP).path == "/api/"
