"""Where messages go: one topic exchange, one queue a stage, and a queue of its own for each submission."""

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
BALANCE = "balance"  # stands in a routing key where a submission would: synthetic features nobody asked for


@dataclass(frozen=True)
class Queue:
    """A queue and the routing keys that it is bound to.

    ``single_active``: of several consumers only one gets messages, until it leaves (RabbitMQ "single active
    consumer"). ``expires_s``: the queue goes once nobody has used it for so long; such a queue has no dead letters.
    """

    name: str
    keys: tuple[str, ...] = ()
    single_active: bool = False
    expires_s: int | None = None

    @property
    def dead(self) -> str:
        """The queue that keeps this one's dead letters."""
        return f"{self.name}.dead"

    @property
    def dead_key(self) -> str:
        """The routing key of its dead letters."""
        return f"dead.{self.name}"


PREPROCESSOR = Queue("gliaflow.preprocessor", ("scan",))
EXTRACTOR = Queue("gliaflow.extractor", ("slices",))
CLASSIFIER = Queue("gliaflow.classifier", ("features.*",))
ASSEMBLER = Queue("gliaflow.assembler", ("graded", "failure.*", "prediction.*"), single_active=True)
GENERATOR = Queue("gliaflow.generator", ("generate",))
BALANCER = Queue("gliaflow.balancer", ("features.labelled",))
STAGE_QUEUES = (PREPROCESSOR, EXTRACTOR, CLASSIFIER, ASSEMBLER, GENERATOR, BALANCER)  # of the services

# Stands only while somebody records: with nobody to read it, it would fill up and hold the extractor back.
RECORDER = Queue("gliaflow.recorder", ("features.labelled",))
ALL_QUEUES = (*STAGE_QUEUES, RECORDER)


def submission_queue(submission: str, expires_s: int = 3600) -> Queue:
    """The queue on which one submission reads its answers."""
    keys = tuple(f"{kind}.{submission}" for kind in ("prediction", "failure", "synthetic"))
    return Queue(f"gliaflow.submission.{submission}", keys, expires_s=expires_s)


def upload_queue(upload: str, expires_s: int = 24 * 3600) -> Queue:
    """The queue that holds the bytes of one scan that is too large for a message."""
    return Queue(f"gliaflow.upload.{upload}", (f"upload.{upload}",), expires_s=expires_s)


def routing_key(message: Message) -> str:
    """The routing key under which a message is published."""
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
    """Whether it is no error that nobody listens."""
    return isinstance(message, SyntheticMessage | PredictionMessage | FailureMessage)
