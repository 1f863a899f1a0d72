"""The passwords and certificates of a deployment, and the definitions that RabbitMQ loads."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gliaflow_proto import Message, routing_key, submission_queue, upload_queue
from gliaflow_proto.routing import (
    ALL_QUEUES,
    ASSEMBLERS,
    BALANCER,
    CLASSIFIER,
    CLIENT_EXCHANGE,
    EXCHANGE,
    EXTRACTOR,
    GENERATOR,
    LABELLED_EXCHANGE,
    PREPROCESSOR,
    RECORDER,
    STAGE_QUEUES,
    exchange_of,
)
from make_secrets import HERE as DEPLOY
from make_secrets import main, make_secrets
from sample_messages import ONE_OF_EACH

OWN = {
    "preprocessor": [PREPROCESSOR],
    "extractor": [EXTRACTOR],
    "classifier": [CLASSIFIER, *ASSEMBLERS],
    "generator": [GENERATOR, BALANCER],
    "trainer": [RECORDER],
}
CLIENTS = ("gliaflow", "inbox", "dicom", "annotator")
CONSOLE = "console"  # a client that also sees the answers to others, and the dead letters
ID = "0" * 32


def definitions(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "rabbitmq" / "definitions.json").read_text()))


def password(folder: Path, user: str) -> str:
    return (folder / user / "password").read_text().strip()


def test_each_user_has_a_password_of_its_own_and_rabbitmq_gets_salted_hashes(tmp_path: Path) -> None:
    make_secrets(tmp_path, [])
    users = definitions(tmp_path)["users"]
    passwords = {user["name"]: password(tmp_path, user["name"]) for user in users}
    assert len(set(passwords.values())) == len(passwords) == 12
    assert all(len(secret) == 32 for user, secret in passwords.items() if user != "gliaflow")
    for user in users:
        raw = base64.b64decode(user["password_hash"])
        assert raw[4:] == hashlib.sha256(raw[:4] + passwords[user["name"]].encode()).digest()
    text = (tmp_path / "rabbitmq" / "definitions.json").read_text()
    assert not any(secret in text for user, secret in passwords.items() if user != "gliaflow")
    assert "guest" not in passwords


def test_the_console_has_a_token_which_is_kept_until_it_is_renewed(tmp_path: Path) -> None:
    make_secrets(tmp_path, [])
    token = (tmp_path / "console" / "token").read_text()
    assert len(token.strip()) == 43, "256 random bits"
    assert token.strip() not in (tmp_path / "rabbitmq" / "definitions.json").read_text()
    make_secrets(tmp_path, ["extractor"])
    assert (tmp_path / "console" / "token").read_text() == token
    make_secrets(tmp_path, ["console"])
    assert (tmp_path / "console" / "token").read_text() != token
    (tmp_path / "console" / "token").write_text("\n")
    with pytest.raises(SystemExit, match="console/token: empty: write a token into it, or delete it"):
        make_secrets(tmp_path, [])


@pytest.mark.parametrize(("content", "problem"), [(b"", "empty"), (b" \n", "empty"), (b"\xff", "not UTF-8 text")])
def test_password_file_that_holds_no_password_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "extractor").mkdir()
    (tmp_path / "extractor" / "password").write_bytes(content)
    with pytest.raises(SystemExit, match=f"extractor/password: {problem}"):
        make_secrets(tmp_path, [])


def test_existing_secrets_are_kept_and_only_those_of_named_users_are_renewed(tmp_path: Path) -> None:
    (tmp_path / "extractor").mkdir()
    (tmp_path / "extractor" / "password").write_text("from a vault\n")
    make_secrets(tmp_path, [])
    assert password(tmp_path, "extractor") == "from a vault"
    assert password(tmp_path, "gliaflow") == "gliaflow", "a public password, for a port on 127.0.0.1 only"
    before = password(tmp_path, "generator")
    make_secrets(tmp_path, ["extractor", "gliaflow"])
    assert password(tmp_path, "extractor") != "from a vault"
    assert password(tmp_path, "gliaflow") != "gliaflow"
    assert password(tmp_path, "generator") == before


def test_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets", [], tls=True)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secrets" / "ca" / "ca.key").stat().st_mode) == 0o400


class TestLinks:
    """The program runs as root, and another user may write FOLDER: no link leads it out of FOLDER."""

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        """Files that belong to someone else."""
        folder = tmp_path / "outside"
        folder.mkdir(mode=0o700)
        for name in ("password", "key.pem", "shadow"):
            (folder / name).write_text("not yours\n")
            (folder / name).chmod(0o600)
        return folder

    @pytest.fixture(autouse=True)
    def _untouched(self, outside: Path) -> Iterator[None]:
        def state() -> dict[str, tuple[int, int, int, str]]:
            paths = [outside, *outside.iterdir()]
            statuses = {path: path.stat() for path in paths}
            texts = {path: path.read_text() if path.is_file() else "" for path in paths}
            return {path.name: (s.st_mode, s.st_uid, s.st_gid, texts[path]) for path, s in statuses.items()}

        before = state()
        yield
        assert state() == before

    @pytest.fixture
    def owned(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """A folder of another user, and what the program, as root, gives to that user."""

        def opened(at: int) -> str:
            return str(Path(f"/proc/self/fd/{at}").readlink())

        given: list[tuple[str, int]] = []
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "fchown", lambda at, user, _: given.append((opened(at), user)))
        monkeypatch.setattr(os, "chown", lambda *_, **__: pytest.fail("it may follow a link"))
        return given

    def test_only_what_is_made_is_given_to_the_owner_of_the_folder(
        self, tmp_path: Path, outside: Path, owned: list[tuple[str, int]]
    ) -> None:
        folder = tmp_path / "secrets"
        (folder / "mine").mkdir(parents=True)
        (folder / "mine" / "link").symlink_to(outside / "shadow")
        (folder / "mine" / "folder").symlink_to(outside)
        make_secrets(folder, [], tls=True)
        assert all(Path(path).is_relative_to(folder) and "mine" not in path for path, _ in owned)
        assert {user for _, user in owned} == {folder.stat().st_uid}
        assert str(folder / "extractor") in dict(owned)

    @pytest.mark.parametrize("tls", [False, True])
    @pytest.mark.parametrize("link", ["extractor", "ca", "rabbitmq"])
    def test_a_folder_that_is_a_link_is_refused(self, tmp_path: Path, outside: Path, link: str, tls: bool) -> None:
        folder = tmp_path / "secrets"
        folder.mkdir()
        (folder / link).symlink_to(outside)
        if link != "ca" or tls:
            with pytest.raises(SystemExit, match=rf"{folder}/{link}: a link.*: replace it by a copy, or remove it"):
                make_secrets(folder, [], tls=tls)

    @pytest.mark.parametrize("name", ["extractor/password", "ca/ca.pem", "ca/ca.key", "rabbitmq/erlang.cookie"])
    @pytest.mark.parametrize("make", [Path.symlink_to, lambda path, _: os.mkfifo(path), lambda path, _: path.mkdir()])
    @pytest.mark.timeout(20)
    def test_a_secret_that_is_no_plain_file_is_refused(
        self, tmp_path: Path, outside: Path, name: str, make: Callable[[Path, Path], None]
    ) -> None:
        path = tmp_path / "secrets" / name
        path.parent.mkdir(parents=True)
        make(path, outside / "shadow")
        with pytest.raises(SystemExit, match=f"{name}: a link, or not of the expected type"):
            make_secrets(tmp_path / "secrets", [], tls=True)

    def test_links_with_the_names_of_files_to_write_are_replaced(self, tmp_path: Path, outside: Path) -> None:
        folder = tmp_path / "secrets"
        (folder / "extractor").mkdir(parents=True)
        (folder / "rabbitmq").mkdir()
        for name in ("key.pem", "key.pem.part", "password.part", "ca.pem"):
            (folder / "extractor" / name).symlink_to(outside / "shadow")
        (folder / "rabbitmq" / "definitions.json").symlink_to(outside / "shadow")
        make_secrets(folder, ["extractor"], tls=True)
        assert not (folder / "extractor" / "key.pem").is_symlink()
        assert (folder / "extractor" / "ca.pem").read_text() == (folder / "ca" / "ca.pem").read_text()
        assert definitions(folder)["users"]

    def test_the_folder_itself_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "secrets").symlink_to(tmp_path / "disk")
        make_secrets(tmp_path / "secrets", [])
        assert password(tmp_path / "disk", "extractor")


def test_an_authority_without_its_key_signs_nothing_new(tmp_path: Path) -> None:
    """You may keep the key elsewhere, until a certificate is renewed."""
    make_secrets(tmp_path, [], tls=True)
    (tmp_path / "ca" / "ca.key").unlink()
    make_secrets(tmp_path, [], tls=True)
    with pytest.raises(SystemExit, match=r"ca\.key is missing; it signs new certificates"):
        make_secrets(tmp_path, ["extractor"], tls=True)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["make_secrets.py", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"file: File exists"):
        main()


def test_unknown_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_secrets.py", str(tmp_path), "--new", "guest"])
    with pytest.raises(SystemExit, match="2"):
        main()


class TestPermissions:
    """The permissions in ``users.json`` suit the queues and keys of ``gliaflow_proto.routing``."""

    @pytest.fixture
    def may(self, tmp_path: Path) -> Any:
        make_secrets(tmp_path, [])
        loaded = definitions(tmp_path)
        rules = {(rule["user"], ""): rule for rule in loaded["permissions"]}
        rules |= {(rule["user"], rule["exchange"]): rule for rule in loaded["topic_permissions"]}

        def may(user: str, operation: str, name: str, exchange: str = "") -> bool:
            """Whether the user has the right; with ``exchange``, to use the key ``name`` there."""
            if exchange and not may(user, operation, exchange):
                return False
            rule = rules.get((user, exchange))
            return rule is None or re.search(rule[operation], name) is not None

        return may

    @pytest.mark.parametrize("user", OWN)
    def test_stage_reads_its_queues_writes_its_dead_letters_and_declares_nothing(self, may: Any, user: str) -> None:
        for queue in ALL_QUEUES:
            own = queue in OWN[user]
            assert may(user, "read", queue.name) == own
            assert may(user, "write", queue.dead) == own
            assert may(user, "configure", queue.name) == (own and queue == RECORDER), "it is deleted when unused"
            for operation in ("read", "configure"):
                assert not may(user, operation, queue.dead), "only the operator may read dead letters"
            assert not may(user, "write", queue.name) or queue == RECORDER
        keys = {(exchange_of(key), key) for queue in ALL_QUEUES for key in queue.keys}
        readable = {(EXCHANGE, key) for key in RECORDER.keys} if user == "trainer" else set()
        assert {each for each in keys if may(user, "read", each[1], each[0])} == readable
        assert not may(user, "configure", EXCHANGE)
        assert not any(may(user, "write", name) for name in ("amq.default", CLIENT_EXCHANGE, LABELLED_EXCHANGE))

    @pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.kind)
    def test_each_kind_has_one_kind_of_sender(self, may: Any, message: Message) -> None:
        senders = {
            "scan": {"annotator"},  # it has a label
            "slices": {"preprocessor"},
            "features": {"extractor"},
            "graded": {"classifier"},
            "prediction": {"classifier"},
            "synthetic": {"generator"},
            "failure": set(OWN) - {"trainer"},
            "generate": {*CLIENTS, CONSOLE},
        }
        key = routing_key(message)
        users = {user for user in (*OWN, *CLIENTS, CONSOLE) if may(user, "write", key, exchange_of(key))}
        assert users == senders[message.kind]

    def test_scaler_can_only_see_how_long_a_queue_is(self, may: Any) -> None:
        """A passive declaration needs no right."""
        for name in (
            EXCHANGE,
            CLIENT_EXCHANGE,
            "amq.default",
            *(q.name for q in ALL_QUEUES),
            *(q.dead for q in ALL_QUEUES),
        ):
            assert not any(may("scaler", operation, name) for operation in ("configure", "write", "read"))

    def test_console_sees_all_answers_and_the_dead_letters_and_takes_no_work_from_a_stage(self, may: Any) -> None:
        for queue in ALL_QUEUES:
            assert may(CONSOLE, "read", queue.dead)
            assert not any(may(CONSOLE, operation, queue.dead) for operation in ("configure", "write"))
            assert not any(may(CONSOLE, operation, queue.name) for operation in ("configure", "write", "read"))
        for key in ("prediction.*", "failure.*", "graded", *submission_queue(ID).keys):
            assert may(CONSOLE, "read", key, EXCHANGE), key
        for key in ("#", "*.*", "slices", "features.*", "features.labelled", "scan", "synthetic.*"):
            assert not may(CONSOLE, "read", key, EXCHANGE), key
        for name in ("amq.gen-x", "gliaflow.console.x", submission_queue(ID).name, upload_queue(ID).name):
            assert may(CONSOLE, "configure", name)
            assert may(CONSOLE, "write", name)
        for key in ("scan", "generate", *upload_queue(ID).keys):
            assert may(CONSOLE, "write", key, CLIENT_EXCHANGE)
        assert may(CONSOLE, "write", "amq.default"), "it sends dead letters back"
        assert not any(may(CONSOLE, "write", name) for name in (EXCHANGE, LABELLED_EXCHANGE))
        assert not any(may(user, "configure", "gliaflow.console.x") for user in (*CLIENTS, *OWN))

    @pytest.mark.parametrize("user", CLIENTS)
    def test_client_sends_scans_and_reads_answers_whose_key_it_knows(self, may: Any, user: str) -> None:
        for queue in ALL_QUEUES:
            for name in (queue.name, queue.dead):
                assert not any(may(user, operation, name) for operation in ("configure", "write", "read"))
        for queue in (submission_queue(ID), upload_queue(ID)):
            assert may(user, "configure", queue.name)
            assert all(may(user, "read", key, exchange_of(key)) for key in queue.keys)
        assert not may(user, "read", upload_queue(ID).name), "the preprocessor reads uploads"
        for exchange in (EXCHANGE, CLIENT_EXCHANGE):
            for key in ("prediction.*", "#", "*.*", "upload.*", "scan", "scan.labelled", "slices", "graded"):
                assert not may(user, "read", key, exchange), key
        for key in ("scan", "generate", *upload_queue(ID).keys):
            assert may(user, "write", key, CLIENT_EXCHANGE)
        assert not any(may(user, "write", name) for name in (EXCHANGE, "amq.default"))
        assert not any(may(user, "configure", name) for name in (EXCHANGE, CLIENT_EXCHANGE, LABELLED_EXCHANGE))


def test_definitions_declare_what_the_stages_declare() -> None:
    """A stage has no right to declare its queue, so the definitions must have it, as the code would declare it."""
    loaded = json.loads((DEPLOY / "definitions.json").read_text())
    queues = {queue["name"]: queue["arguments"] for queue in loaded["queues"]}
    exchanges = {exchange["name"]: exchange["type"] for exchange in loaded["exchanges"]}
    bindings = {(each["source"], each["destination"], each["routing_key"]) for each in loaded["bindings"]}
    dead = {queue.dead: "fanout" for queue in ALL_QUEUES}
    assert exchanges == {EXCHANGE: "topic", CLIENT_EXCHANGE: "topic", LABELLED_EXCHANGE: "topic"} | dead
    for queue in STAGE_QUEUES:
        single = {"x-single-active-consumer": True} if queue.single_active else {}
        assert queues.pop(queue.name) == {"x-queue-type": "quorum"} | single
    assert queues == {name: {"x-queue-type": "quorum"} for name in dead}, "the recorder declares its queue"
    assert bindings == {(exchange_of(key), queue.name, key) for queue in STAGE_QUEUES for key in queue.keys} | {
        (name, name, "") for name in dead
    }
