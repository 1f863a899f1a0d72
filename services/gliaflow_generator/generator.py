"""The generator: synthetic features on request, and unrequested ones for the smaller class (balancing)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import structlog
from gliaflow_proto import (
    MAX_MESSAGE_BYTES,
    FeaturesMessage,
    GenerateMessage,
    Message,
    ProtocolError,
    Scan,
    SyntheticMessage,
    expect,
    message_id,
)
from gliaflow_proto.routing import BALANCER, GENERATOR
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import InvalidInput, OtherBundle, Outcome, Stage
from numpy.typing import NDArray

from gliaflow_generator.synthesis import GeneratorError, Synthesizer, request_rng

MAX_REQUEST_BYTES = 2**28  # of one request's features, which are held in memory until all are accepted
BALANCE_STEP = 16  # the balancer publishes synthetic features in groups of this size
REMEMBERED = 100_000

log = structlog.get_logger()


class Generator(Stage):
    """``generate`` → ``synthetic``, in as many messages as the count needs."""

    name = "generator"
    queue = GENERATOR

    def __init__(self, bundle: Bundle, synthesizer: Synthesizer) -> None:
        self._bundle, self._synthesizer = bundle, synthesizer

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        request = expect(message, GenerateMessage)
        most = MAX_REQUEST_BYTES // (2 * math.prod(self._bundle.tap_shape))
        if not 0 < request.count <= most:
            raise ProtocolError(f"count: {request.count} is not from 1 to {most}; send more requests with other seeds")
        if request.seed < 0:
            raise ProtocolError(f"seed: {request.seed} is below 0")
        if request.generator not in ("", served := self._synthesizer.generator):
            raise InvalidInput(f"generator: {served!r} is served, not the requested one (set by GLIAFLOW_GENERATOR)")
        try:
            features = self._synthesizer.draw(request.label, request.count, request_rng(request.label, request.seed))
        except GeneratorError as error:
            raise InvalidInput(str(error)) from None
        about = request.scan, request.label, request.seed
        return Outcome(synthetic_messages(self._bundle, served, *about, features, request.id))


class Balancer(Stage):
    """``features.labelled`` → ``synthetic`` for the smaller class.

    It counts the labelled slices of each class. When a class has fewer than the largest one, it publishes synthetic
    features for the difference, up to ``share`` of that class.
    """

    name = "balancer"
    queue = BALANCER
    announces_failures = False  # scans are graded without it

    def __init__(self, bundle: Bundle, synthesizer: Synthesizer, *, share: float, seed: int) -> None:
        self._bundle, self._synthesizer, self._share, self._seed = bundle, synthesizer, share, seed
        self._real = dict.fromkeys(bundle.manifest.classes, 0)
        self._made = dict.fromkeys(bundle.manifest.classes, 0)
        self._seen: dict[str, None] = {}  # ids, oldest first: a redelivery counts once

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        part = expect(message, FeaturesMessage)
        label = part.scan.label
        if label not in self._real:
            return Outcome()  # another label than the bundle's classes: nothing to balance
        if part.bundle != self._bundle.id:
            raise OtherBundle("features", part.bundle, self.name, self._bundle.id)
        if part.features.shape != (expected := (slices := len(part.geometry.slices), *self._bundle.tap_shape)):
            raise ProtocolError(f"tensors.features: shape {part.features.shape}, expected {expected}")
        if part.id not in self._seen:
            self._seen[part.id] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            self._real[label] += slices
        outgoing: list[SyntheticMessage] = []
        for behind in self._real:
            count = self.deficit(behind) // BALANCE_STEP * BALANCE_STEP
            if not count:
                continue
            rng = np.random.default_rng([self._seed, self._made[behind], *behind.encode()])
            try:
                features = self._synthesizer.draw(behind, count, rng)
            except GeneratorError as error:
                log.warning("not balanced", label=behind, reason=str(error))
                continue
            cause = message_id(part.id, behind, self._made[behind])
            self._made[behind] += count
            outgoing += synthetic_messages(
                self._bundle, self._synthesizer.generator, Scan(id=cause), behind, self._seed, features, cause
            )
        return Outcome(outgoing)

    def deficit(self, label: str) -> int:
        """How many synthetic features of a class are missing now."""
        real = self._real[label]
        allowed = int(self._share / (1 - self._share) * real) - self._made[label]
        return max(0, min(max(self._real.values()) - real - self._made[label], allowed))


def synthetic_messages(
    bundle: Bundle, generator: str, scan: Scan, label: str, seed: int, features: NDArray[np.float16], cause: str
) -> Iterator[SyntheticMessage]:
    """The features, split into messages under the size limit."""
    each = bundle.slices_per_part(MAX_MESSAGE_BYTES)
    count = -(-len(features) // each)
    for index in range(count):
        yield SyntheticMessage(
            id=message_id(cause, index, "synthetic", bundle.id, generator),
            scan=scan,
            part=[index, count],
            bundle=bundle.id,
            generator=generator,
            tap=bundle.manifest.tap,
            label=label,
            seed=seed,
            features=features[index * each : (index + 1) * each],
        )
