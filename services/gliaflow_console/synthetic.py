"""Synthetic features of any generator in the bundle, beside real ones: what the page of the generators shows."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, fields
from typing import Any

from gliaflow.scans import check_grade
from gliaflow.synthetic_file import about, write_npz
from gliaflow_generator.synthesis import request_rng, too_few
from gliaflow_runtime.acceptance import Acceptance
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.errors import UsageError
from starlette.exceptions import HTTPException

from gliaflow_console.maps import COUNT, Scale
from gliaflow_console.networks import Networks
from gliaflow_console.real_features import RealFeatures
from gliaflow_console.stored_scan import StoredScan

MAX_BYTES = 2**25  # of one request's features
COMPARED = 64  # features that are drawn at least, so that the acceptance and the distances are not those of a few
SAMPLES, SAMPLE_CHANNELS = 6, 9
MAX_SEED = 2**53 - 1  # numbers of JSON are exact up to here


@dataclass(frozen=True)
class GenerateRequest:
    """A request for synthetic features. ``distances``: also compare them with the real ones, which takes longer."""

    grade: str
    count: int
    generator: str
    seed: int
    distances: bool = True

    @classmethod
    def of(cls, body: Any, networks: Networks) -> GenerateRequest:
        """The request in a body of JSON.

        Raises
        ------
        HTTPException: 400: it is not an object of these fields with values of their types and ranges.
        UsageError: the bundle has no such grade or generator.
        """
        if not isinstance(body, dict):
            raise HTTPException(400, 'the body is not an object: send {"grade": "HGG", "count": 16}')
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in body if name not in known]:
            raise HTTPException(400, f"{unknown[0][:40]!r}: no such field; there are {', '.join(known)}")
        bundle = networks.bundle
        for name, default, kind in (("grade", None, str), ("generator", "", str), ("distances", True, bool)):
            if not isinstance(body.get(name, default), kind):
                raise HTTPException(400, f"{name}: expected {'true or false' if kind is bool else 'a text'}")
        return cls(
            grade=check_grade(body["grade"]),
            count=_number(body, "count", 16, 1, most(bundle)),
            generator=bundle.require_generator(body.get("generator", "")),
            seed=_number(body, "seed", 0, 0, MAX_SEED),
            distances=body.get("distances", True),
        )


def generators(networks: Networks) -> dict[str, Any]:
    """The generators of the bundle, for ``GET /api/generators``."""
    try:
        bundle = networks.bundle
        manifest = bundle.manifest
        default = bundle.require_generator(networks.served)
        bundle.require_own_tap("the generator")
    except UsageError as error:
        return {"generators": [], "served": "", "classes": [], "tap": "", "shape": [], "most": 0, "problem": str(error)}
    measured = manifest.metrics.get("synthetic")
    rows = []
    for name in manifest.generators:
        values = measured.get(name) if isinstance(measured, dict) else None
        rows.append(
            {
                "name": name,
                "default": name == default,
                "critic_accuracy": _share(values, "critic_accuracy"),
                "classifier_accuracy": _share(values, "classifier_accuracy"),
            }
        )
    return {
        "generators": rows,
        "served": default if networks.with_stages else "",
        "classes": list(manifest.classes),
        "tap": manifest.tap,
        "shape": list(bundle.tap_shape),
        "most": most(bundle),
        "problem": "",
    }


def most(bundle: Bundle) -> int:
    """The largest count of a request."""
    return max(1, MAX_BYTES // (2 * math.prod(bundle.tap_shape)))


def draw(networks: Networks, request: GenerateRequest, least: int = 0) -> Acceptance:
    """At least ``count`` features of the request's random stream: the first are those of ``gliaflow generate``.

    Raises
    ------
    UsageError: the critic accepts too few.
    """
    synthesizer = networks.synthesizer(request.generator)
    count = max(request.count, least)
    result = synthesizer.try_draw(request.grade, count, request_rng(request.grade, request.seed))
    if len(result.features) < request.count:
        raise UsageError(f"generator {request.generator}: {too_few(request.grade, result)}")
    return result


def npz(networks: Networks, request: GenerateRequest) -> bytes:
    """The file that ``gliaflow generate`` writes. Raises UsageError as ``draw`` does."""
    bundle, file = networks.bundle, io.BytesIO()
    texts = about(request.grade, bundle.id, request.generator, bundle.manifest.tap, request.seed)
    write_npz(file, draw(networks, request).features, request.grade, texts)
    return file.getvalue()


def generate(networks: Networks, real_features: RealFeatures, request: GenerateRequest) -> dict[str, Any]:
    """Synthetic maps beside real ones, the critic's acceptance, and the distances, for ``POST /api/generate``.

    Raises UsageError as ``draw`` does.
    """
    bundle = networks.bundle
    tap = bundle.manifest.tap
    result = draw(networks, request, min(COMPARED, most(bundle)))
    example = real_features.example(request.grade)
    scale = Scale.of(result.features[:COMPARED], COUNT)
    if example is not None:  # a channel in which only the synthetic features respond is a fault that must be seen
        scale = Scale.of(example[2][None], COUNT).followed_by(scale, COUNT)
    few = scale.first(SAMPLE_CHANNELS)
    real = None
    if example is not None:
        scan, number, features = example
        real = {
            "maps": scale.draw(features, tap, number),
            "scan": scan.id,
            "name": scan.name,
            "grade": scan.grade,
            "p_hgg": scan.p_hgg,
            "slice": number,
            "slice_p_hgg": dict(scan.slice_p_hgg)[number],
            "note": _note(request.grade, scan, bundle.manifest.cropped),
        }
    rows, note = real_features.distances(request.grade, result.features) if request.distances else ([], "")
    return {
        "bundle": bundle.id,
        "generator": request.generator,
        "grade": request.grade,
        "seed": request.seed,
        "count": request.count,
        "acceptance": result.share,
        "accepted": result.taken,
        "drawn": result.drawn,
        "measured": len(result.features),
        "maps": scale.draw(result.features[0], tap),
        "samples": [few.draw(sample, tap) for sample in result.features[: min(SAMPLES, request.count)]],
        "real": real,
        "distances": rows,
        "distances_note": note,
    }


def _note(grade: str, scan: StoredScan, cropped: bool) -> str:
    if scan.drawn:
        verdict = "which is right" if scan.grade == scan.drawn else "which is wrong"
        known = f"A phantom that was drawn as {scan.drawn}; the bundle graded it as {scan.grade}, {verdict}."
    else:
        known = f"The bundle graded this scan as {grade}; its true grade is not known here."
    crop = " The maps are cropped to the tumour, as the generators learned them." if cropped else ""
    scale = "Each channel has the same grey scale here and in the synthetic features."
    return f"{known} The slice is the one that says most for {grade}.{crop} {scale}"


def _number(body: dict[str, Any], name: str, default: int, least: int, largest: int) -> int:
    value = body.get(name, default)
    if type(value) is not int or not least <= value <= largest:
        remedy = "; gliaflow generate writes more" if name == "count" else ""
        raise HTTPException(400, f"{name}: expected a whole number from {least} to {largest}{remedy}")
    return value


def _share(values: Any, name: str) -> float | None:
    value = values.get(name) if isinstance(values, dict) else None
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
