"""The passwords and certificates of a deployment, and what RabbitMQ is told of them."""

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

sys.path.append(str(Path(__file__).parents[3] / "deploy" / "rabbitmq"))
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


def test_each_user_has_a_password_of_its_own_and_rabbitmq_sees_a_salted_hash_of_it(tmp_path: Path) -> None:
    make_secrets(tmp_path, [])
    found = definitions(tmp_path)
    passwords = {user["name"]: password(tmp_path, user["name"]) for user in found["users"]}
    assert len(set(passwords.values())) == len(passwords) == 8
    assert all(len(secret) == 32 for user, secret in passwords.items() if user != "gliaflow")
    for user in found["users"]:
        raw = base64.b64decode(user["password_hash"])
        assert raw[4:] == hashlib.sha256(raw[:4] + passwords[user["name"]].encode()).digest()
    told = (tmp_path / "rabbitmq" / "definitions.json").read_text()
    assert not any(secret in told for user, secret in passwords.items() if user != "gliaflow")
    assert "guest" not in passwords


def test_what_is_there_is_kept_and_only_what_is_asked_for_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "extractor").mkdir()
    (tmp_path / "extractor" / "password").write_text("from a vault\n")
    make_secrets(tmp_path, [])
    assert password(tmp_path, "extractor") == "from a vault"
    assert password(tmp_path, "gliaflow") == "gliaflow", "known to all, for a port that is on 127.0.0.1 only"
    before = password(tmp_path, "generator")
    make_secrets(tmp_path, ["extractor", "gliaflow"])
    assert password(tmp_path, "extractor") != "from a vault"
    assert password(tmp_path, "gliaflow") != "gliaflow"
    assert password(tmp_path, "generator") == before


def test_the_folder_is_closed_to_others(tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets", [], tls=True)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secrets" / "ca" / "ca.key").stat().st_mode) == 0o400


def test_a_user_that_nobody_knows_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_secrets.py", str(tmp_path), "--new", "guest"])
    with pytest.raises(SystemExit, match="2"):
        main()


class TestPermissions:
    """What ``users.json`` lets each user do, held against the queues and keys of ``gliaflow_proto.routing``."""

    @pytest.fixture
    def may(self, tmp_path: Path) -> Any:
        make_secrets(tmp_path, [])
        found = definitions(tmp_path)
        rules = {(rule["user"], ""): rule for rule in found["permissions"]}
        rules |= {(rule["user"], "topic"): rule for rule in found["topic_permissions"]}

        def may(user: str, what: str, name: str, topic: str = "") -> bool:
            rule = rules.get((user, topic))
            return rule is None or re.search(rule[what], name) is not None

        return may

    @pytest.mark.parametrize("user", OWN)
    def test_a_stage_owns_its_queues_and_no_other(self, may: Any, user: str) -> None:
        for queue in ALL_QUEUES:
            mine = queue in OWN[user]
            assert may(user, "read", queue.name) == may(user, "configure", queue.name) == mine
            assert may(user, "configure", queue.dead) == mine
            assert not may(user, "read", queue.dead), "dead letters are the operator's"
            for key in queue.keys:
                assert may(user, "read", key, "topic") or not mine
            assert may(user, "write", queue.dead_key, "topic") == mine
        taken = {key for queue in OWN[user] for key in queue.keys}
        others = {key for queue in ALL_QUEUES for key in queue.keys} - taken
        assert not any(may(user, "read", key, "topic") for key in {*others, "#", "*", f"prediction.{ID}"})
        assert not may(user, "configure", "gliaflow"), "the exchange"
        assert not may(user, "write", "amq.default"), "straight into a queue"

    @pytest.mark.parametrize("user", CLIENTS)
    def test_a_client_sends_scans_and_reads_answers_whose_name_it_knows(self, may: Any, user: str) -> None:
        for queue in ALL_QUEUES:
            for name in (queue.name, queue.dead):
                assert not any(may(user, what, name) for what in ("configure", "write", "read"))
        for queue in (submission_queue(ID), upload_queue(ID)):
            assert may(user, "configure", queue.name)
            assert all(may(user, "read", key, "topic") for key in queue.keys)
        assert not may(user, "read", upload_queue(ID).name), "it writes an upload, the preprocessor reads it"
        for key in ("prediction.*", "failure.*", "prediction.#", "#", "*.*", "synthetic.*", "scan", "slices", "graded"):
            assert not may(user, "read", key, "topic"), key
        for key in ("slices", "features.labelled", "graded", f"prediction.{ID}", Queue("gliaflow.x").dead_key):
            assert not may(user, "write", key, "topic"), key
        assert all(may(user, "write", key, "topic") for key in ("scan", "generate", *upload_queue(ID).keys))
        assert not may(user, "write", "amq.default")
        assert not may(user, "configure", "gliaflow")
