"""Exchange, queues and routing keys: one topic exchange, one queue per stage, and one per submission."""

from __future__ import annotations

from dataclasses import dataclass

from gliaflow_proto.messages import (
    FailureMessage,
    FeaturesMessage,
    GenerateMessage,
    GradedMessage,
    Message,
    PredictionMessage,
    ScanMessage,
    SlicesMessage,
    SyntheticMessage,
)

EXCHANGE = "gliaflow"
BALANCE = "balance"  # instead of a submission in the routing key of the balancer's synthetic features


@dataclass(frozen=True)
class Queue:
    """A queue and the routing keys that it is bound to.

    ``single_active``: only one of several consumers gets messages, until it leaves (RabbitMQ "single active
    consumer"). ``expires_s``: the queue is deleted when it is unused for so long; such a queue has no dead letters.
    """

    name: str
    keys: tuple[str, ...] = ()
    single_active: bool = False
    expires_s: int | None = None

    @property
    def dead(self) -> str:
        """The queue of this queue's dead letters."""
        return f"{self.name}.dead"

    @property
    def dead_key(self) -> str:
        """The routing key of this queue's dead letters."""
        return f"dead.{self.name}"


PREPROCESSOR = Queue("gliaflow.preprocessor", ("scan",))
EXTRACTOR = Queue("gliaflow.extractor", ("slices",))
CLASSIFIER = Queue("gliaflow.classifier", ("features.*",))
ASSEMBLER = Queue("gliaflow.assembler", ("graded", "failure.*", "prediction.*"), single_active=True)
GENERATOR = Queue("gliaflow.generator", ("generate",))
BALANCER = Queue("gliaflow.balancer", ("features.labelled",))
STAGE_QUEUES = (PREPROCESSOR, EXTRACTOR, CLASSIFIER, ASSEMBLER, GENERATOR, BALANCER)  # of the services

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


def routing_key(message: Message) -> str:
    """The routing key of a message."""
    match message:
        case ScanMessage():
            return "scan"
        case SlicesMessage():
            return "slices"
        case FeaturesMessage():
            return "features.labelled" if message.scan.label else "features.unlabelled"
        case GradedMessage():
            return "graded"
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
