"""Permissions, passwords and TLS of a RabbitMQ that ``deploy/rabbitmq`` configured."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from gliaflow_proto import Queue, submission_queue, upload_queue
from gliaflow_proto.routing import EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.broker.interface import AccessDenied, BrokerError
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from make_secrets import HERE as DEPLOY
from make_secrets import make_certificates
from pika.exceptions import ChannelClosedByBroker
from processes import Command
from sample_scans import good_scan

pytestmark = pytest.mark.rabbitmq
STAGES = ("preprocessor", "extractor", "generator", "classifier")
Connect = Callable[[str], AmqpBroker]


@pytest.fixture
def tls(secrets: Path) -> str:
    return f"amqps://extractor@localhost:{os.environ['GLIAFLOW_TEST_TLS_PORT']}/"


def host(rabbitmq_url: str) -> str:
    return urlsplit(rabbitmq_url).netloc.rpartition("@")[2]


@pytest.fixture
def connect(secrets: Path, rabbitmq_url: str) -> Connect:
    return lambda user: AmqpBroker(
        f"amqp://{user}@{host(rabbitmq_url)}/", credentials=Credentials(secrets / user / "password"), connect_timeout=5
    )


@pytest.fixture
def channel(request: pytest.FixtureRequest, secrets: Path, rabbitmq_url: str) -> Iterator[pika.channel.Channel]:
    """A bare pika channel, opened with the password of the user ``gliaflow``, or of the parameter."""
    user = getattr(request, "param", "gliaflow")
    access = Credentials(secrets / user / "password")
    with pika.BlockingConnection(access.parameters(f"amqp://{user}@{host(rabbitmq_url)}/", "test")) as connection:
        yield connection.channel()


def statuses(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open() as file:
        return [row["status"] for row in csv.DictReader(file)]


def test_pipeline_works_over_tls_with_the_permissions_of_each_user(
    gliaflow: Command, stages, secrets: Path, tls: str, tmp_path: Path
) -> None:
    """A graded scan, a scan in chunks, dead letters and a replay need no further permission."""

    def settings(user: str) -> dict[str, str]:
        files = {"PASSWORD_FILE": "password", "CA": "ca.pem", "CERT": "cert.pem", "KEY": "key.pem"}
        paths = {f"GLIAFLOW_BROKER_{name}": str(secrets / user / file) for name, file in files.items()}
        return paths | {"GLIAFLOW_BROKER": tls.replace("extractor", user)}

    for name in STAGES:
        stages(name, **{key.removeprefix("GLIAFLOW_").lower(): value for key, value in settings(name).items()})
    (tmp_path / "scans").mkdir()
    good_scan(tmp_path / "scans" / "good.nii.gz")
    (tmp_path / "scans" / "large.nii").write_bytes(b"no scan" * 2**20)
    done = gliaflow("submit", "scans", "--out", "out", "--grade", "HGG", settings=settings("annotator"), check=False)
    assert done.returncode == 1, done.stderr
    assert sorted(statuses(tmp_path / "out")) == ["failed", "ok"]
    done = gliaflow("submit", "scans", "--out", "out", "--grade", "HGG", settings=settings("gliaflow"), check=False)
    assert done.returncode == 1
    assert "labelled scans need a right of their own" in " ".join(done.stderr.replace("│", "").split())
    assert "1 of 1 sent back" in gliaflow("dead", "replay", "--all", settings=settings("operator")).stdout
    refused = gliaflow("dead", "list", settings=settings("gliaflow"), check=False)
    assert "ACCESS_REFUSED" in refused.stderr, "only the operator may read dead letters"


class TestClientPassword:
    """The first password of the user ``gliaflow`` is public, so it must not open more than a client needs."""

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
            lambda channel: bind(channel, "scan", "gliaflow.client"),
            lambda channel: bind(channel, "upload.*", "gliaflow.client"),
            lambda channel: bind(channel, "", EXTRACTOR.dead),
            lambda channel: publish(channel, "gliaflow", "graded"),
            lambda channel: publish(channel, "gliaflow", "scan"),
            lambda channel: publish(channel, "gliaflow", f"prediction.{uuid.uuid4().hex}"),
            lambda channel: publish(channel, "gliaflow.client", "graded"),
            lambda channel: publish(channel, "gliaflow.labelled", "scan.labelled"),
            lambda channel: publish(channel, EXTRACTOR.dead, "slices"),
            lambda channel: publish(channel, "", EXTRACTOR.name),
        ],
    )
    def test_it_gives_no_access_to_other_scans_or_to_the_role_of_a_stage(
        self, attempt: Callable, channel: pika.channel.Channel
    ) -> None:
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            attempt(channel)


@pytest.mark.parametrize("channel", ["console"], indirect=True)
class TestConsole:
    """The console sees the answers to all clients, and dead letters. It does the work of no stage."""

    def test_it_observes_all_answers_and_reads_dead_letters(self, channel: pika.channel.Channel) -> None:
        for key in ("prediction.*", "failure.*", "graded"):
            bind(channel, key)
        channel.queue_declare(f"gliaflow.console.{uuid.uuid4().hex}", exclusive=True)
        assert channel.basic_get(EXTRACTOR.dead) == (None, None, None)
        publish(channel, "", EXTRACTOR.dead)
        method, _, body = channel.basic_get(EXTRACTOR.dead)
        assert body == b"forged"
        channel.basic_ack(method.delivery_tag)

    @pytest.mark.parametrize(
        "attempt",
        [
            lambda channel: channel.basic_consume(PREPROCESSOR.name, print),
            lambda channel: channel.queue_delete(EXTRACTOR.dead),
            lambda channel: channel.exchange_delete("gliaflow"),
            lambda channel: channel.queue_declare("gliaflow.other"),
            lambda channel: bind(channel, "#"),
            lambda channel: bind(channel, "slices"),
            lambda channel: bind(channel, "features.*"),
            lambda channel: publish(channel, "gliaflow", "graded"),
            lambda channel: publish(channel, "gliaflow", f"prediction.{uuid.uuid4().hex}"),
            lambda channel: publish(channel, "gliaflow.labelled", "scan.labelled"),
            lambda channel: publish(channel, EXTRACTOR.dead, "slices"),
        ],
    )
    def test_it_has_no_right_of_a_stage(self, attempt: Callable, channel: pika.channel.Channel) -> None:
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            attempt(channel)


def bind(channel: pika.channel.Channel, key: str, exchange: str = "gliaflow") -> None:
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, exchange, key)


def publish(channel: pika.channel.Channel, exchange: str, key: str) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, b"forged")


def test_stage_cannot_consume_the_queue_of_another_stage(connect: Connect) -> None:
    with connect("preprocessor") as owner:
        owner.declare(PREPROCESSOR)
        with connect("extractor") as other:
            with pytest.raises(BrokerError, match=r"ACCESS_REFUSED.*refused for user 'extractor'"):
                other.consume(PREPROCESSOR, 1)
            with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
                other.publish("scan", b"")
            with pytest.raises(AccessDenied, match="may not declare"):
                other.declare(Queue("gliaflow.other", ("features.labelled",)))


def test_stage_whose_queue_is_missing_names_the_remedy(connect: Connect, rabbitmq_url: str) -> None:
    with AmqpBroker(rabbitmq_url) as operator:
        operator.delete(EXTRACTOR.name)
    with connect("extractor") as broker, pytest.raises(AccessDenied, match="import_definitions secrets/rabbitmq"):
        broker.declare(EXTRACTOR)


class TestLimits:
    """A client cannot fill the broker's disk, or take all its connections and queues."""

    def test_queue_that_a_client_does_not_read_is_bounded_and_expires(
        self, connect: Connect, rabbitmqctl: Callable[..., str]
    ) -> None:
        names = [submission_queue("a" * 32).name, upload_queue("b" * 32).name]
        with connect("gliaflow") as client:
            client.declare(submission_queue("a" * 32))
            client.declare(upload_queue("b" * 32))
            rows = json.loads(rabbitmqctl("list_queues", "name", "policy", "--formatter", "json"))
            for name in names:
                client.delete(name)
        policies = json.loads((DEPLOY / "definitions.json").read_text())["policies"]
        definitions = {policy["name"]: policy["definition"] for policy in policies}
        for row in (row for row in rows if row["name"] in names):
            assert definitions[row["policy"]]["max-length-bytes"] <= 2**30 + 2**26
            assert definitions[row["policy"]]["expires"] <= 24 * 3600 * 1000

    @pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
    @pytest.mark.parametrize("name", ["gliaflow.submission.x", "gliaflow.submission.x.dead", "gliaflow.upload.x"])
    def test_queue_of_any_kind_is_bounded(
        self, channel: pika.channel.Channel, rabbitmqctl: Callable[..., str], name: str, kind: str
    ) -> None:
        """A policy with a key that a kind of queue does not support does not apply to such queues at all."""
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
        rows = json.loads(rabbitmqctl("list_queues", "name", "policy", "--formatter", "json"))
        channel.queue_delete(name)
        policies = json.loads((DEPLOY / "definitions.json").read_text())["policies"]
        definitions = {policy["name"]: policy["definition"] for policy in policies}
        [policy] = [row["policy"] for row in rows if row["name"] == name]
        assert definitions[policy]["max-length-bytes"] <= 2**30 + 2**26
        assert definitions[policy].keys() & {"expires", "max-age"}

    def test_connections_and_queues_are_limited(self, rabbitmqctl: Callable[..., str]) -> None:
        assert json.loads(rabbitmqctl("list_user_limits", "--user", "gliaflow"))["max-connections"] == 64
        assert "max-queues" in rabbitmqctl("list_vhost_limits", "--vhost", "/")


def test_changed_password_is_read_again_and_no_message_is_lost(
    connect: Connect, secrets: Path, tmp_path: Path, rabbitmq_url: str, rabbitmqctl: Callable[..., str]
) -> None:
    """No restart is needed: the broker's client reads the password file again when it next connects."""
    file = tmp_path / "password"
    file.write_text((secrets / "generator" / "password").read_text())
    queue = Queue("gliaflow.generator", ("generate",))
    url = f"amqp://generator@{host(rabbitmq_url)}/"
    with (
        AmqpBroker(rabbitmq_url) as client,
        AmqpBroker(url, credentials=Credentials(file), connect_timeout=5) as broker,
    ):
        broker.declare(queue)
        with broker.consume(queue, 1) as consumer:
            file.write_text("another\n")
            rabbitmqctl("change_password", "generator", "another")
            client.publish("generate", b"before")
            delivery = consumer.next(5)
            assert delivery is not None, "open connections stay open"
            consumer.ack(delivery)
            rabbitmqctl("close_all_connections", "rotated")
            client.publish("generate", b"after")
            delivery = consumer.next(20)
            assert delivery is not None
            assert delivery.body == b"after"
            consumer.ack(delivery)
        old = Credentials(secrets / "generator" / "password")
        with pytest.raises(BrokerError, match=r"refuses the access.*broker_password_file"):
            AmqpBroker(url, credentials=old, connect_timeout=5)
    rabbitmqctl("change_password", "generator", (secrets / "generator" / "password").read_text().strip())


class TestTls:
    """``tls.conf``: each client needs a certificate besides its user and password."""

    @pytest.fixture
    def own(self, secrets: Path) -> dict[str, Path]:
        folder = secrets / "extractor"
        files = {"password_file": "password", "ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
        return {name: folder / file for name, file in files.items()}

    def refused(self, url: str, **files: Path | None) -> str:
        with pytest.raises(BrokerError) as caught:
            AmqpBroker(url, credentials=Credentials(**files), connect_timeout=20)
        return str(caught.value)

    def test_missing_certificate_or_one_of_another_authority_is_refused(
        self, tls: str, own: dict[str, Path], tmp_path: Path
    ) -> None:
        assert "the broker refuses our certificate" in self.refused(tls, **(own | {"cert": None, "key": None}))
        make_certificates(tmp_path, ["extractor"], [], [])
        other = {"cert": tmp_path / "extractor" / "cert.pem", "key": tmp_path / "extractor" / "key.pem"}
        assert "the broker refuses our certificate" in self.refused(tls, **(own | other))

    def test_expired_certificate_is_reported(
        self, tls: str, own: dict[str, Path], secrets: Path, tmp_path: Path
    ) -> None:
        files = {name: tmp_path / name for name in ("key", "csr", "cert")}
        authority = ["-CA", secrets / "ca" / "ca.pem", "-CAkey", secrets / "ca" / "ca.key", "-CAcreateserial"]
        for command in (
            ["req", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=old", "-keyout", files["key"], "-out", files["csr"]],
            ["x509", "-req", "-in", files["csr"], *authority, "-days", "-1", "-out", files["cert"]],
        ):
            subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
        message = self.refused(tls, **(own | {"cert": files["cert"], "key": files["key"]}))
        assert "the broker refuses our certificate" in message
        assert "expired" in message

    def test_broker_with_an_unknown_certificate_or_another_name_is_refused(
        self, tls: str, own: dict[str, Path], tmp_path: Path
    ) -> None:
        make_certificates(tmp_path, ["extractor"], [], [])
        message = self.refused(tls, **(own | {"ca": tmp_path / "extractor" / "ca.pem"}))
        assert "the broker's certificate is not valid" in message
        assert "broker_ca" in message
        message = self.refused(tls.replace("localhost", "127.1"), **own)
        assert "127.1" in message
        assert "mismatch" in message

    def test_problem_with_a_file_is_reported_with_its_setting(
        self, tls: str, own: dict[str, Path], secrets: Path, rabbitmq_url: str
    ) -> None:
        nowhere = Path("/nowhere.pem")
        for name, setting in (
            ("ca", "broker_ca"),
            ("cert", "broker_cert"),
            ("key", "broker_key"),
            ("password_file", "broker_password_file"),
        ):
            assert self.refused(tls, **(own | {name: nowhere})) == f"{setting}: /nowhere.pem: No such file or directory"
        assert "broker_ca" in self.refused(tls, **(own | {"ca": own["password_file"]}))
        assert "KEY_VALUES_MISMATCH" in self.refused(tls, **(own | {"key": secrets / "inbox" / "key.pem"}))
        assert "5671" in self.refused(f"amqps://extractor@{host(rabbitmq_url)}/", **own)


def test_client_reads_the_answers_of_its_own_submission(connect: Connect) -> None:
    queue = submission_queue(uuid.uuid4().hex)
    with connect("gliaflow") as client, connect("classifier") as classifier:
        client.declare(queue)
        classifier.publish(queue.keys[0], b"answer")
        with client.consume(queue, 1) as consumer:
            delivery = consumer.next(5)
            assert delivery is not None
            assert delivery.body == b"answer"
            consumer.ack(delivery)
        client.delete(queue.name)
