"""How far the answers of two bundles differ that have the same networks but for the U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Compared:
    """What two bundles answered to one scan.

    Parameters
    ----------
    dice: of their masks and the true one.
    dice_of_slices: the same for each slice with tumour.
    agreement: the Dice of their masks with each other.
    p_hgg: None if one of them gives no grade, and so no probability.
    features: the sum of the first bundle's values, and that of their changes.
    critics: for each generator, whether its critic is right, slice by slice of the first bundle and of the second.
    """

    dice: Both
    dice_of_slices: list[Both]
    agreement: float
    ml: Both
    p_hgg: Both | None
    grades: tuple[str, str]
    features: Both
    critics: dict[str, tuple[list[bool], list[bool]]]


def compare(pipelines: tuple[Pipeline, Pipeline], scan: CutScan) -> Compared:
    """Answer a scan with both. Its mask is the truth."""
    graded: tuple[list[GradedMessage], list[GradedMessage]] = [], []
    critics: dict[str, tuple[list[bool], list[bool]]] = {}
    size = error = 0.0
    for part in scan.messages(pipelines[0].bundle.slices_per_part(MAX_MESSAGE_BYTES)):
        found = []
        for number, pipeline in enumerate(pipelines):
            features, grades = pipeline.answer(part)
            found.append(features.features.astype(np.float32))
            graded[number].append(grades)
            for name, right in pipeline.judged_right(features).items():
                critics.setdefault(name, ([], []))[number].extend(right.tolist())
        size += float(np.abs(found[0]).sum())
        error += float(np.abs(found[1] - found[0]).sum())
    truth = np.asarray(scan.mask) > 0
    before, after = (np.concatenate([part.mask for part in parts]) > 0 for parts in graded)
    old, new = (predict(parts, pipeline.bundle) for parts, pipeline in zip(graded, pipelines, strict=True))
    return Compared(
        dice=(overlap(before, truth), overlap(after, truth)),
        dice_of_slices=[
            (overlap(before[n], truth[n]), overlap(after[n], truth[n])) for n in np.flatnonzero(truth.any(axis=(1, 2)))
        ],
        agreement=overlap(before, after),
        ml=(old.tumour_ml, new.tumour_ml),
        p_hgg=(old.p_hgg, new.p_hgg) if old.grade and new.grade else None,
        grades=(old.grade, new.grade),
        features=(size, error),
        critics=critics,
    )


def figures(scans: Sequence[Compared]) -> dict[str, Any]:
    """What the manifest records of one scan or more: counts and figures, no names."""
    size, error = np.array([scan.features for scan in scans]).sum(axis=0)
    critics: dict[str, tuple[list[bool], list[bool]]] = {}
    for scan in scans:
        for name, both in scan.critics.items():
            for all_slices, right in zip(critics.setdefault(name, ([], [])), both, strict=True):
                all_slices.extend(right)
    return {
        "scans": len(scans),
        "dice": _change([scan.dice for scan in scans]),
        "dice_of_slices": _change([both for scan in scans for both in scan.dice_of_slices]),
        "agreement": rounded(np.mean([scan.agreement for scan in scans])),
        "tumour_ml": _change([scan.ml for scan in scans]),
        "p_hgg": _change([scan.p_hgg for scan in scans if scan.p_hgg is not None]),
        "grades_changed": sum(old != new for old, new in (scan.grades for scan in scans)),
        "features_error": rounded(error / size) if size else None,
        "critics_accuracy": {
            name: {"slices": len(before), "before": _share(before), "after": _share(after)}
            for name, (before, after) in critics.items()
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
