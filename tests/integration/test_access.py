"""Who may do what on a RabbitMQ that is set up by ``deploy/rabbitmq``, and how one gets in: passwords and TLS."""

from __future__ import annotations

import csv
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from broken import good_scan
from gliaflow_proto import Queue, submission_queue
from gliaflow_proto.routing import EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.credentials import Access
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from make_secrets import make_certificates
from pika.exceptions import ChannelClosedByBroker
from processes import Command

pytestmark = pytest.mark.rabbitmq
ALL = ("preprocessor", "extractor", "generator", "classifier")
Connect = Callable[[str], AmqpBroker]


@pytest.fixture
def tls(secrets: Path) -> str:
    return f"amqps://extractor@localhost:{os.environ['GLIAFLOW_TEST_TLS_PORT']}/"


def host(rabbitmq_url: str) -> str:
    return urlsplit(rabbitmq_url).netloc.rpartition("@")[2]


@pytest.fixture
def connect(secrets: Path, rabbitmq_url: str) -> Connect:
    return lambda user: AmqpBroker(
        f"amqp://{user}@{host(rabbitmq_url)}/", access=Access(secrets / user / "password"), connect_timeout=5
    )


@pytest.fixture
def channel(secrets: Path, rabbitmq_url: str) -> Iterator[pika.channel.Channel]:
    """A bare channel: what a stranger who has the client's password would use."""
    access = Access(secrets / "gliaflow" / "password")
    with pika.BlockingConnection(access.parameters(f"amqp://gliaflow@{host(rabbitmq_url)}/", "test")) as connection:
        yield connection.channel()


def statuses(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open() as file:
        return [row["status"] for row in csv.DictReader(file)]


def test_the_whole_pipeline_works_over_tls_with_the_permissions_that_each_user_has(
    gliaflow: Command, stages, secrets: Path, tls: str, tmp_path: Path
) -> None:
    """A scan that is graded, one in chunks, dead letters, a replay: none needs more, and none without certificates."""

    def settings(user: str) -> dict[str, str]:
        files = {"PASSWORD_FILE": "password", "CA": "ca.pem", "CERT": "cert.pem", "KEY": "key.pem"}
        found = {f"GLIAFLOW_BROKER_{name}": str(secrets / user / file) for name, file in files.items()}
        return found | {"GLIAFLOW_BROKER": tls.replace("extractor", user)}

    for name in ALL:
        stages(name, **{key.removeprefix("GLIAFLOW_").lower(): value for key, value in settings(name).items()})
    (tmp_path / "scans").mkdir()
    good_scan(tmp_path / "scans" / "good.nii.gz")
    (tmp_path / "scans" / "large.nii").write_bytes(b"no scan" * 2**20)
    done = gliaflow("submit", "scans", "--out", "out", "--grade", "HGG", settings=settings("gliaflow"), check=False)
    assert done.returncode == 1, done.stderr
    assert sorted(statuses(tmp_path / "out")) == ["failed", "ok"]
    assert "1 of 1 sent back" in gliaflow("dead", "replay", "--all", settings=settings("operator")).stdout
    refused = gliaflow("dead", "list", settings=settings("gliaflow"), check=False)
    assert "ACCESS_REFUSED" in refused.stderr, "the dead letters are the operator's"


class TestAStranger:
    """Somebody with the password of a client, which is well known where nobody changed it."""

    @pytest.mark.parametrize(
        "attempt",
        [
            lambda channel: channel.basic_consume(PREPROCESSOR.name, print),
            lambda channel: channel.basic_get(EXTRACTOR.dead),
            lambda channel: channel.queue_purge(EXTRACTOR.name),
            lambda channel: channel.queue_delete(EXTRACTOR.name),
            lambda channel: channel.exchange_delete("gliaflow"),
            lambda channel: bind(channel, "prediction.*"),
            lambda channel: bind(channel, "#"),
            lambda channel: bind(channel, "features.labelled"),
            lambda channel: bind(channel, "prediction.guess"),
            lambda channel: publish(channel, "gliaflow", "graded"),
            lambda channel: publish(channel, "gliaflow", f"prediction.{uuid.uuid4().hex}"),
            lambda channel: publish(channel, "", EXTRACTOR.name),
        ],
    )
    def test_cannot_read_other_scans_or_pass_for_a_stage(
        self, attempt: Callable, connect: Connect, channel: pika.channel.Channel
    ) -> None:
        for queue, owner in ((PREPROCESSOR, "preprocessor"), (EXTRACTOR, "extractor")):
            with connect(owner) as broker:
                broker.declare(queue)
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            attempt(channel)


def bind(channel: pika.channel.Channel, key: str) -> None:
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "gliaflow", key)


def publish(channel: pika.channel.Channel, exchange: str, key: str) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, b"forged")


def test_a_stage_cannot_take_the_work_of_another(connect: Connect) -> None:
    with connect("preprocessor") as owner:
        owner.declare(PREPROCESSOR)
        with connect("extractor") as other:
            with pytest.raises(BrokerError, match=r"ACCESS_REFUSED.*refused for user 'extractor'"):
                other.consume(PREPROCESSOR, 1)
            with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
                other.publish("scan", b"")
            with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
                other.declare(Queue("gliaflow.extractor", ("features.labelled",)))


def test_a_changed_password_is_read_again_and_nothing_is_lost(
    connect: Connect, secrets: Path, tmp_path: Path, rabbitmq_url: str, rabbitmqctl: Callable[..., str]
) -> None:
    """No stage is started again: it finds the new password in its file when it next connects."""
    file = tmp_path / "password"
    file.write_text((secrets / "generator" / "password").read_text())
    queue = Queue("gliaflow.generator", ("generate",))
    url = f"amqp://generator@{host(rabbitmq_url)}/"
    with AmqpBroker(rabbitmq_url) as client, AmqpBroker(url, access=Access(file), connect_timeout=5) as broker:
        broker.declare(queue)
        with broker.consume(queue, 1) as consumer:
            file.write_text("another\n")
            rabbitmqctl("change_password", "generator", "another")
            client.publish("generate", b"before")
            delivery = consumer.next(5)
            assert delivery is not None, "connections that stand are not cut"
            consumer.ack(delivery)
            rabbitmqctl("close_all_connections", "rotated")
            client.publish("generate", b"after")
            delivery = consumer.next(20)
            assert delivery is not None
            assert delivery.body == b"after"
            consumer.ack(delivery)
        old = Access(secrets / "generator" / "password")
        with pytest.raises(BrokerError, match=r"refuses the access.*broker_password_file"):
            AmqpBroker(url, access=old, connect_timeout=5)
    rabbitmqctl("change_password", "generator", (secrets / "generator" / "password").read_text().strip())


class TestTls:
    """``tls.conf``: RabbitMQ wants a certificate of each client, besides user and password."""

    @pytest.fixture
    def mine(self, secrets: Path) -> dict[str, Path]:
        folder = secrets / "extractor"
        files = {"password_file": "password", "ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
        return {name: folder / file for name, file in files.items()}

    def refused(self, url: str, **files: Path | None) -> str:
        with pytest.raises(BrokerError) as caught:
            AmqpBroker(url, access=Access(**files), connect_timeout=20)
        return str(caught.value)

    def test_without_a_certificate_or_with_one_of_others_nobody_gets_in(
        self, tls: str, mine: dict[str, Path], tmp_path: Path
    ) -> None:
        assert "it refuses our certificate" in self.refused(tls, **(mine | {"cert": None, "key": None}))
        make_certificates(tmp_path, ["extractor"], [], [])
        others = tmp_path / "extractor"
        theirs = {"cert": others / "cert.pem", "key": others / "key.pem"}
        assert "it refuses our certificate" in self.refused(tls, **(mine | theirs))

    def test_an_expired_certificate_is_told(
        self, tls: str, mine: dict[str, Path], secrets: Path, tmp_path: Path
    ) -> None:
        made = {name: tmp_path / name for name in ("key", "csr", "cert")}
        authority = ["-CA", secrets / "ca" / "ca.pem", "-CAkey", secrets / "ca" / "ca.key", "-CAcreateserial"]
        for command in (
            ["req", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=old", "-keyout", made["key"], "-out", made["csr"]],
            ["x509", "-req", "-in", made["csr"], *authority, "-days", "-1", "-out", made["cert"]],
        ):
            subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
        told = self.refused(tls, **(mine | {"cert": made["cert"], "key": made["key"]}))
        assert "it refuses our certificate" in told
        assert "expired" in told

    def test_a_broker_that_is_not_the_one_is_not_talked_to(
        self, tls: str, mine: dict[str, Path], tmp_path: Path
    ) -> None:
        make_certificates(tmp_path, ["extractor"], [], [])
        told = self.refused(tls, **(mine | {"ca": tmp_path / "extractor" / "ca.pem"}))
        assert "its certificate is refused" in told
        assert "broker_ca" in told
        told = self.refused(tls.replace("localhost", "127.1"), **mine)
        assert "127.1" in told
        assert "mismatch" in told

    def test_what_is_wrong_with_a_file_is_told_with_its_setting(
        self, tls: str, mine: dict[str, Path], secrets: Path, rabbitmq_url: str
    ) -> None:
        nowhere = Path("/nowhere.pem")
        for name, setting in (
            ("ca", "broker_ca"),
            ("cert", "broker_cert"),
            ("key", "broker_key"),
            ("password_file", "broker_password_file"),
        ):
            assert (
                self.refused(tls, **(mine | {name: nowhere})) == f"{setting}: /nowhere.pem: No such file or directory"
            )
        assert "broker_ca" in self.refused(tls, **(mine | {"ca": mine["password_file"]}))
        assert "KEY_VALUES_MISMATCH" in self.refused(tls, **(mine | {"key": secrets / "inbox" / "key.pem"}))
        assert "5671" in self.refused(f"amqps://extractor@{host(rabbitmq_url)}/", **mine)


def test_without_their_knowing_the_submission_nobody_reads_its_answers(connect: Connect) -> None:
    mine = submission_queue(uuid.uuid4().hex)
    with connect("gliaflow") as me, connect("classifier") as classifier:
        me.declare(mine)
        classifier.publish(mine.keys[0], b"answer")
        with me.consume(mine, 1) as consumer:
            delivery = consumer.next(5)
            assert delivery is not None
            assert delivery.body == b"answer"
            consumer.ack(delivery)
        me.delete(mine.name)
