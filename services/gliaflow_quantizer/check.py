"""How far the answers of two bundles differ that have the same networks but for the U-Net."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gliaflow_classifier.grader import Grader
from gliaflow_classifier.prediction import predict
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_proto import MAX_MESSAGE_BYTES, FeaturesMessage, GradedMessage, SlicesMessage, expect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.inference import Network
from gliaflow_trainer.slices import CutScan
from numpy.typing import NDArray

DELIVERY = Delivery("", "", b"")
Both = tuple[float, float]  # of the first bundle and of the second


class Pipeline:
    """The stages of a bundle after the preprocessor, and its generators' critics.

    Raises
    ------
    BundleError: a network is missing, damaged, or does not run on the U-Net's features.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._extractor = Extractor(bundle, UNetSession(bundle))
        self._grader = Grader(bundle)
        self._critics = {
            name: Network(bundle, f"critic-{name}", ["class_logits"]) for name in bundle.manifest.generators
        }
        for critic in self._critics.values():
            critic.warm(features=(2, *bundle.tap_shape))

    def answer(self, part: SlicesMessage) -> tuple[FeaturesMessage, GradedMessage]:
        """The features and masks of a part of a scan, and its grades."""
        (found,) = self._extractor.handle(part, DELIVERY).publish
        (graded,) = self._grader.handle(found, DELIVERY).publish
        return expect(found, FeaturesMessage), expect(graded, GradedMessage)

    def judged_right(self, part: FeaturesMessage) -> dict[str, NDArray[np.bool_]]:
        """For each generator, whether its critic puts each slice with tumour into the scan's class."""
        features = part.features[part.mask.any(axis=(1, 2))].astype(np.float32)
        if part.scan.label is None or not len(features):
            return {}
        label = self.bundle.manifest.classes.index(part.scan.label)
        return {name: critic(features=features)[0].argmax(axis=1) == label for name, critic in self._critics.items()}


@dataclass
class Comparison:
    """Compares the answers of two pipelines, scan by scan.

    Parameters
    ----------
    pipelines: the one to compare with, and the new one.
    """

    pipelines: tuple[Pipeline, Pipeline]
    dice: list[Both] = field(default_factory=list)
    dice_of_slices: list[Both] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    ml: list[Both] = field(default_factory=list)
    p_hgg: list[Both] = field(default_factory=list)
    grades: list[tuple[str, str]] = field(default_factory=list)
    features: list[Both] = field(default_factory=list)  # the sum of the values, and of their changes
    critics: dict[str, tuple[list[bool], list[bool]]] = field(default_factory=dict)

    def add(self, scan: CutScan) -> None:
        """Answer a scan with both. Its mask is the truth."""
        graded: tuple[list[GradedMessage], list[GradedMessage]] = [], []
        for part in scan.messages(self.pipelines[0].bundle.slices_per_part(MAX_MESSAGE_BYTES)):
            found = []
            for number, pipeline in enumerate(self.pipelines):
                features, grades = pipeline.answer(part)
                found.append(features.features.astype(np.float32))
                graded[number].append(grades)
                for name, right in pipeline.judged_right(features).items():
                    self.critics.setdefault(name, ([], []))[number].extend(right.tolist())
            self.features.append((float(np.abs(found[0]).sum()), float(np.abs(found[1] - found[0]).sum())))
        truth = np.asarray(scan.mask) > 0
        before, after = (np.concatenate([part.mask for part in parts]) > 0 for parts in graded)
        self.dice.append((overlap(before, truth), overlap(after, truth)))
        self.agreement.append(overlap(before, after))
        for n in np.flatnonzero(truth.any(axis=(1, 2))):
            self.dice_of_slices.append((overlap(before[n], truth[n]), overlap(after[n], truth[n])))
        old, new = (predict(parts, pipeline.bundle) for parts, pipeline in zip(graded, self.pipelines, strict=True))
        self.ml.append((old.tumour_ml, new.tumour_ml))
        self.grades.append((old.grade, new.grade))
        if old.grade and new.grade:  # otherwise there is no probability
            self.p_hgg.append((old.p_hgg, new.p_hgg))

    def figures(self) -> dict[str, Any]:
        """What the manifest records: counts and figures, no names."""
        sizes, errors = np.array(self.features).sum(axis=0)
        return {
            "scans": len(self.dice),
            "dice": _change(self.dice),
            "dice_of_slices": _change(self.dice_of_slices),
            "agreement": rounded(np.mean(self.agreement)),
            "tumour_ml": _change(self.ml),
            "p_hgg": _change(self.p_hgg),
            "grades_changed": sum(old != new for old, new in self.grades),
            "features_error": rounded(errors / sizes) if sizes else None,
            "critics_accuracy": {
                name: {"slices": len(right[0]), "before": _share(right[0]), "after": _share(right[1])}
                for name, right in self.critics.items()
            },
        }


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The Sørensen–Dice coefficient of two masks of one shape; 1 if both are empty."""
    both = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / both if both else 1.0


def rounded(value: Any) -> float | None:
    """Four digits; None for NaN, which JSON does not have."""
    return round(float(value), 4) if np.isfinite(value) else None


def _change(values: list[Both]) -> dict[str, float | None]:
    """The means, and how far the values of one scan, or slice, changed."""
    if not values:
        return {}
    before, after = np.array(values).T
    change = after - before
    return {
        "before": rounded(before.mean()),
        "after": rounded(after.mean()),
        "mean_change": rounded(np.abs(change).mean()),
        "largest_change": rounded(change[np.abs(change).argmax()]),
    }


def _share(right: list[bool]) -> float | None:
    return rounded(np.mean(right)) if right else None
