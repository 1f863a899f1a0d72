"""Graded parts that a test delivers to an assembler by hand, without a broker."""

import dataclasses

import numpy as np
from gliaflow_classifier.assembler import Assembler
from gliaflow_proto import Geometry, GradedMessage, PredictionMessage, Scan, encode
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.encoded_outcome import encode_outcome

SHAPE = [8, 8, 6]
LOGITS = [[1.0, -3.0], [2.0, 5.0], [0.5, -9.0]]
TUMOUR = [[1, 0], [1, 1], [0, 0]]  # whether a slice's mask has tumour


class FakeBundle:
    """All that an assembler uses of a bundle."""

    id = "b"
    trained_on = "phantoms"

    class manifest:
        classes = ("HGG", "LGG")
        min_tumour_ml = 0.0
        min_tumour_share = 0.0

        class input:
            size = (8, 8)

    @staticmethod
    def slices_per_part(max_bytes):
        return 2


def assembler(timeout_s=60.0):
    return Assembler(FakeBundle, timeout_s=timeout_s)


def part(index, count=3, scan="s", submission="sub", attempt=0):
    """A graded part of two slices, with a 2×2 square of tumour according to TUMOUR."""
    geometry = Geometry(
        affine=[2.0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 1],
        shape=SHAPE,
        orientation=[0, 1, 1, 1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=[8, 8],
        slices=[2 * index, 2 * index + 1],
    )
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[:, 3:5, 3:5] = np.array(TUMOUR[index])[:, None, None]
    scan = Scan(id=scan, submission=submission, attempt=attempt)
    return GradedMessage(
        id=f"{scan}{index}", scan=scan, part=[index, count], bundle="b", geometry=geometry,
        logit=np.array(LOGITS[index]), mask=mask,
    )  # fmt: skip


def deliver(stage, message, tag=0):
    delivery = Delivery("q", "graded", encode(message), message.id, tag=tag)
    outcome = stage.handle(message, delivery)
    encode_outcome(outcome, delivery)
    return delivery, outcome


def run(stage, indices):
    """Deliver these parts; returns the outcomes."""
    return [deliver(stage, part(index), tag)[1] for tag, index in enumerate(indices)]


def predictions(outcomes):
    return [m for o in outcomes for m in o.publish if isinstance(m, PredictionMessage)]


def changed(message, **values):
    return dataclasses.replace(message, **values)
