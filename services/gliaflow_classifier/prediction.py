"""The answer for a scan, from all its graded parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from gliaflow_proto import NO_TUMOUR, GradedMessage, PredictionMessage, message_id, restore, voxel_ml
from gliaflow_proto.messages import MAX_WARNINGS
from gliaflow_proto.reading import MAX_LIST
from gliaflow_runtime.bundle.load import Bundle
from numpy.typing import NDArray

from gliaflow_classifier.spots import without_spots

NOTED_ML = 5.0  # a part of this volume that is left out beside a larger one may be a second tumour


def predict(parts: Iterable[GradedMessage], bundle: Bundle) -> PredictionMessage:
    """Mean logit, mask on the scan's own grid, tumour volume.

    Spots in the mask that are smaller than the bundle's ``min_tumour_ml``, or ``min_tumour_share`` of the largest part,
    are removed. The logit of a scan is the mean over the slices with tumour, since a slice without tumour says nothing
    about the grade. A scan without tumour has no grade.

    Parameters
    ----------
    parts: all parts of the scan, in order. They are taken one by one, and only masks and logits with tumour matter.
    bundle: has the classes, the size of the smallest tumour, and what it was trained on.
    """
    first, forms = None, None
    slices, logits, warnings = list[int](), list[NDArray[np.float64]](), list[str]()
    found: dict[int, NDArray[np.uint8]] = {}  # masks with tumour, by the number of the slice among those of the scan
    for part in parts:
        first, forms = first or part, forms or part.geometry.forms
        found |= {len(slices) + n: part.mask[n].copy() for n in np.flatnonzero(part.mask.any(axis=(1, 2))).tolist()}
        slices += part.geometry.slices
        logits.append(part.logit)
        warnings += part.warnings
    assert first is not None
    start, masks = _stacked(found, first.geometry.size)
    geometry = replace(first.geometry, slices=slices[start : start + len(masks)])
    pixel_ml = voxel_ml(geometry) * geometry.step[0] * geometry.step[1]
    masks = without_spots(masks, bundle.manifest.min_tumour_ml / pixel_ml)
    largest = without_spots(masks, 0, bundle.manifest.min_tumour_share)
    if left_out := np.count_nonzero(without_spots(masks - largest, NOTED_ML / pixel_ml)):
        warnings.append(
            f"the mask leaves out {left_out * pixel_ml:.1f} ml that is apart from the largest part and has under "
            f"{bundle.manifest.min_tumour_share:.0%} of its volume; is it a second tumour?"
        )
    masks = largest
    mask = restore(masks, geometry)
    logit, with_tumour = np.concatenate(logits), start + np.flatnonzero(masks.any(axis=(1, 2)))
    graded = len(with_tumour) > 0
    p_first = _probability(float(logit[with_tumour].mean()) if graded else 0.0)
    by_slice = sorted((slices[n], _probability(float(logit[n]))) for n in with_tumour)
    return PredictionMessage(
        id=message_id(first.scan.submission, first.scan.id, "prediction", first.bundle),
        scan=first.scan,
        trace=first.trace,
        warnings=list(dict.fromkeys(warnings))[:MAX_WARNINGS],
        bundle=first.bundle,
        status="ok" if graded else NO_TUMOUR,
        grade=bundle.manifest.classes[0 if p_first >= 0.5 else 1] if graded else "",
        p_hgg=p_first,
        tumour_ml=float(np.count_nonzero(mask)) * voxel_ml(geometry),
        slices=len(logit),
        tumour_slices=len(with_tumour),
        affine=geometry.affine,
        forms=forms,
        trained_on=bundle.trained_on,
        slice_numbers=[z for z, _ in by_slice[:MAX_LIST]],
        slice_p_hgg=[p for _, p in by_slice[:MAX_LIST]],
        mask=mask,
    )


def _stacked(found: dict[int, NDArray[np.uint8]], size: list[int]) -> tuple[int, NDArray[np.uint8]]:
    """The masks from the first slice with tumour to the last [n, rows, columns], and the number of the first.

    It empties ``found``, so that no mask is in memory twice.
    """
    start = min(found, default=0)
    masks = np.zeros((max(found, default=-1) + 1 - start, *size), np.uint8)
    while found:
        number, mask = found.popitem()
        masks[number - start] = mask
    return start, masks


def _probability(logit: float) -> float:
    """The sigmoid, without overflow."""
    return 0.5 * (1 + math.tanh(logit / 2))
