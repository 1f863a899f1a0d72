"""The first half of the classifier: grades each slice of a part."""

from __future__ import annotations

import numpy as np
from gliaflow_proto import FeaturesMessage, GradedMessage, Message, ProtocolError, expect, message_id
from gliaflow_proto.routing import CLASSIFIER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.inference import Network
from gliaflow_runtime.stage import OtherBundle, Outcome, Stage


class Grader(Stage):
    """``features`` → ``graded``: one logit of the bundle's first class for each slice."""

    name = "classifier"
    queue = CLASSIFIER

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int = 0) -> None:
        bundle.require_own_tap("the classifier")
        self._bundle = bundle
        self._network = Network(bundle, "classifier", ["logit"], device=device, threads=threads)
        self._network.warm(features=(1, *bundle.tap_shape))

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        part = expect(message, FeaturesMessage)
        slices = len(part.geometry.slices)
        if part.bundle != self._bundle.id:
            raise OtherBundle("features", part.bundle, self.name, self._bundle.id)
        if part.tap != self._bundle.manifest.tap:
            raise ProtocolError(
                f"tap: the features are of {part.tap}, but this classifier was fitted on {self._bundle.manifest.tap}; "
                "give the extractor that tap (GLIAFLOW_TAP)"
            )
        if part.features.shape != (expected := (slices, *self._bundle.tap_shape)):
            raise ProtocolError(f"tensors.features: shape {part.features.shape}, expected {expected}")
        if part.mask.shape != (slices, *part.geometry.size):
            raise ProtocolError(f"tensors.mask: shape {part.mask.shape} for {slices} slices of {part.geometry.size}")
        (logit,) = self._network(features=part.features.astype(np.float32))
        metrics.SLICES.labels(self.name).inc(slices)
        return Outcome(
            [
                GradedMessage(
                    id=message_id(part.scan.submission, part.scan.id, *part.part, self.name, self._bundle.id),
                    scan=part.scan,
                    part=part.part,
                    trace=part.trace,
                    warnings=part.warnings,
                    bundle=self._bundle.id,
                    geometry=part.geometry,
                    logit=logit.reshape(slices).astype(np.float64),
                    mask=part.mask,
                )
            ]
        )
