"""Exchanges, queues and routing keys.

Stages publish to the topic exchange ``gliaflow``. Clients publish to ``gliaflow.client``, which reaches only the queues
of the first stages, so that no client can send a stage's message. Labelled scans have an exchange of their own, since
they change what is trained. Each stage has a queue, and so has each submission.
"""

from __future__ import annotations

from dataclasses import dataclass

from gliaflow_proto.errors import ProtocolError
from gliaflow_proto.messages import (
    MAX_SHARDS,
    FailureMessage,
    FeaturesMessage,
    GenerateMessage,
    GradedMessage,
    Message,
    PredictionMessage,
    Scan,
    ScanMessage,
    SlicesMessage,
    SyntheticMessage,
    message_id,
)

EXCHANGE = "gliaflow"
CLIENT_EXCHANGE = "gliaflow.client"
LABELLED_EXCHANGE = "gliaflow.labelled"
BALANCE = "balance"  # instead of a submission in the routing key of the balancer's synthetic features


@dataclass(frozen=True)
class Queue:
    """A queue and the routing keys that it is bound to, each at its exchange (``exchange_of``).

    ``single_active``: only one of several consumers gets messages, until it leaves (RabbitMQ "single active
    consumer"). ``expires_s``: the queue is deleted when it is unused for so long; such a queue has no dead letters.
    """

    name: str
    keys: tuple[str, ...] = ()
    single_active: bool = False
    expires_s: int | None = None

    @property
    def dead(self) -> str:
        """The queue of this queue's dead letters, and the fanout exchange in front of it."""
        return f"{self.name}.dead"


PREPROCESSOR = Queue("gliaflow.preprocessor", ("scan", "scan.labelled"))
EXTRACTOR = Queue("gliaflow.extractor", ("slices",))
CLASSIFIER = Queue("gliaflow.classifier", ("features.*",))
ASSEMBLERS = tuple(  # of each shard, and each hears of all ended scans (ADR 24)
    Queue(f"gliaflow.assembler{end}", (f"graded{end}", "failure.*", "prediction.*"), single_active=True)
    for end in ("", *(f".{shard}" for shard in range(1, MAX_SHARDS)))
)
GENERATOR = Queue("gliaflow.generator", ("generate",))
BALANCER = Queue("gliaflow.balancer", ("features.labelled",))
STAGE_QUEUES = (PREPROCESSOR, EXTRACTOR, CLASSIFIER, *ASSEMBLERS, GENERATOR, BALANCER)  # of the services

# Declared only by a recorder: without a consumer it would fill up and block the extractor.
RECORDER = Queue("gliaflow.recorder", ("features.labelled",))
ALL_QUEUES = (*STAGE_QUEUES, RECORDER)


def submission_queue(submission: str, expires_s: int = 3600) -> Queue:
    """The queue from which one submission reads its answers."""
    keys = tuple(f"{kind}.{submission}" for kind in ("prediction", "failure", "synthetic"))
    return Queue(f"gliaflow.submission.{submission}", keys, expires_s=expires_s)


def upload_queue(upload: str, expires_s: int = 24 * 3600) -> Queue:
    """The queue for the bytes of one scan that is too large for a message."""
    return Queue(f"gliaflow.upload.{upload}", (f"upload.{upload}",), expires_s=expires_s)


def shard_of(scan: Scan, shards: int) -> int:
    """The shard that assembles a scan, of so many: by its submission and id, so that they are spread evenly."""
    return int(message_id(scan.submission, scan.id), 16) % shards


def exchange_of(key: str) -> str:
    """The exchange at which a routing key is used."""
    if key == "scan.labelled":
        return LABELLED_EXCHANGE
    return CLIENT_EXCHANGE if key.partition(".")[0] in ("scan", "generate", "upload") else EXCHANGE


def check_route(message: Message, exchange: str, key: str) -> None:
    """Check that a message came by a route that is reserved for its kind.

    RabbitMQ checks a sender's rights at the exchange and the key that a message names, but not at exchanges and keys
    behind these (bindings of a client's own exchange, dead letters of a client's own queue, the header CC). So the
    receiver compares both with the message. Messages for a queue by its name have the exchange ``""``; only operators
    may send them. Those in ``gliaflow`` may be of version 0.1, in which clients published there.

    Raises
    ------
    ProtocolError: the route is not that of such messages.
    """
    own = routing_key(message)
    if exchange == "" or (key.partition(".")[0] == own.partition(".")[0] and exchange in (EXCHANGE, exchange_of(own))):
        return
    if exchange == CLIENT_EXCHANGE and isinstance(message, ScanMessage):
        raise ProtocolError(
            f"scan.label: a labelled scan must be published to the exchange {LABELLED_EXCHANGE!r} with the key "
            f"{own!r}, which needs the right to label (the user annotator)"
        )
    raise ProtocolError(
        f"kind: a {message.kind!r} message must be published to the exchange {exchange_of(own)!r} with the key {own!r}"
    )


def routing_key(message: Message) -> str:
    """The routing key of a message."""
    match message:
        case ScanMessage():
            return "scan.labelled" if message.scan.label else "scan"
        case SlicesMessage():
            return "slices"
        case FeaturesMessage():
            return "features.labelled" if message.scan.label else "features.unlabelled"
        case GradedMessage():
            return ASSEMBLERS[message.scan.shard].keys[0]
        case GenerateMessage():
            return "generate"
        case SyntheticMessage():
            return f"synthetic.{message.scan.submission or BALANCE}"
        case PredictionMessage():
            return f"prediction.{message.scan.submission or '-'}"
        case FailureMessage():
            return f"failure.{message.scan.submission or '-'}"
    raise TypeError(f"{type(message).__name__} has no routing key")


def is_announcement(message: Message) -> bool:
    """Whether the message may be published without any queue for it."""
    return isinstance(message, SyntheticMessage | PredictionMessage | FailureMessage)
