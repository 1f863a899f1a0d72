"""The passwords and certificates of a deployment, and the definitions that RabbitMQ loads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from gliaflow_proto import submission_queue, upload_queue
from gliaflow_proto.routing import (
    ALL_QUEUES,
    ASSEMBLER,
    BALANCER,
    CLASSIFIER,
    EXTRACTOR,
    GENERATOR,
    PREPROCESSOR,
    RECORDER,
    Queue,
)
from make_secrets import main, make_secrets

OWN = {
    "preprocessor": [PREPROCESSOR],
    "extractor": [EXTRACTOR],
    "classifier": [CLASSIFIER, ASSEMBLER],
    "generator": [GENERATOR, BALANCER],
    "trainer": [RECORDER],
}
CLIENTS = ("gliaflow", "inbox")
ID = "0" * 32


def definitions(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "rabbitmq" / "definitions.json").read_text()))


def password(folder: Path, user: str) -> str:
    return (folder / user / "password").read_text().strip()


def test_each_user_has_a_password_of_its_own_and_rabbitmq_gets_salted_hashes(tmp_path: Path) -> None:
    make_secrets(tmp_path, [])
    users = definitions(tmp_path)["users"]
    passwords = {user["name"]: password(tmp_path, user["name"]) for user in users}
    assert len(set(passwords.values())) == len(passwords) == 8
    assert all(len(secret) == 32 for user, secret in passwords.items() if user != "gliaflow")
    for user in users:
        raw = base64.b64decode(user["password_hash"])
        assert raw[4:] == hashlib.sha256(raw[:4] + passwords[user["name"]].encode()).digest()
    text = (tmp_path / "rabbitmq" / "definitions.json").read_text()
    assert not any(secret in text for user, secret in passwords.items() if user != "gliaflow")
    assert "guest" not in passwords


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
        rules |= {(rule["user"], "topic"): rule for rule in loaded["topic_permissions"]}

        def may(user: str, operation: str, name: str, topic: str = "") -> bool:
            rule = rules.get((user, topic))
            return rule is None or re.search(rule[operation], name) is not None

        return may

    @pytest.mark.parametrize("user", OWN)
    def test_stage_owns_its_queues_and_no_other(self, may: Any, user: str) -> None:
        for queue in ALL_QUEUES:
            own = queue in OWN[user]
            assert may(user, "read", queue.name) == may(user, "configure", queue.name) == own
            assert may(user, "configure", queue.dead) == own
            assert not may(user, "read", queue.dead), "only the operator may read dead letters"
            for key in queue.keys:
                assert may(user, "read", key, "topic") or not own
            assert may(user, "write", queue.dead_key, "topic") == own
        own_keys = {key for queue in OWN[user] for key in queue.keys}
        others = {key for queue in ALL_QUEUES for key in queue.keys} - own_keys
        assert not any(may(user, "read", key, "topic") for key in {*others, "#", "*", f"prediction.{ID}"})
        assert not may(user, "configure", "gliaflow"), "the exchange"
        assert not may(user, "write", "amq.default"), "directly into a queue"

    @pytest.mark.parametrize("user", CLIENTS)
    def test_client_sends_scans_and_reads_answers_whose_key_it_knows(self, may: Any, user: str) -> None:
        for queue in ALL_QUEUES:
            for name in (queue.name, queue.dead):
                assert not any(may(user, operation, name) for operation in ("configure", "write", "read"))
        for queue in (submission_queue(ID), upload_queue(ID)):
            assert may(user, "configure", queue.name)
            assert all(may(user, "read", key, "topic") for key in queue.keys)
        assert not may(user, "read", upload_queue(ID).name), "the preprocessor reads uploads"
        for key in ("prediction.*", "failure.*", "prediction.#", "#", "*.*", "synthetic.*", "scan", "slices", "graded"):
            assert not may(user, "read", key, "topic"), key
        for key in ("slices", "features.labelled", "graded", f"prediction.{ID}", Queue("gliaflow.x").dead_key):
            assert not may(user, "write", key, "topic"), key
        assert all(may(user, "write", key, "topic") for key in ("scan", "generate", *upload_queue(ID).keys))
        assert not may(user, "write", "amq.default")
        assert not may(user, "configure", "gliaflow")
