"""Whether a training is complete, so that the same command a second time has nothing to do."""

from __future__ import annotations

import json
from pathlib import Path

from gliaflow_proto import message_id
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import MANIFEST
from gliaflow_runtime.files import write_whole

from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_folder import versions
from gliaflow_trainer.source import source_name
from gliaflow_trainer.unlabelled import folder_name

FILE = "finished.json"


def finished_bundle(request: TrainRequest, work: Path) -> Bundle | None:
    """The bundle ``request.out``, if it is that which the same request left there; otherwise None.

    ``work``: belongs to the same cohort and settings (``same_run``), and its files have not changed.
    """
    file = work / FILE
    if not (file.exists() and (request.out / MANIFEST).exists()):
        return None
    bundle = Bundle(request.out)
    known = json.loads(file.read_text(encoding="utf-8"))
    return bundle if known == {"bundle": bundle.id, "made_of": _made_of(request)} else None


def note_finished(bundle: Bundle, request: TrainRequest, work: Path) -> Bundle:
    """Note that the request is complete. Returns the bundle."""
    write_whole(work / FILE, json.dumps({"bundle": bundle.id, "made_of": _made_of(request)}))
    return bundle


def same_classifier(request: TrainRequest) -> str:
    """A digest of what a classifier depends on beside the U-Net: with another one, the same U-Nets grade again."""
    variants, code = request.variants, request.variants.registry.code_of
    unlabelled = folder_name(request.unlabelled, request.profile)
    synthetic = [variants.synthetic, _generators(request)[0]] if variants.synthetic else []
    return message_id(
        variants.classifier,
        variants.classifier_options.model_dump_json(),
        code("classifier", variants.classifier),
        json.dumps([unlabelled, synthetic]),
    )


def _generators(request: TrainRequest) -> list[list[str]]:
    """What each generator depends on beside the U-Net."""
    variants, source = request.variants, source_name(request.source, request.profile)
    return [
        [name, options.model_dump_json(), variants.registry.code_of("generator", name), source]
        for name, options in variants.generators.items()
    ]


def _made_of(request: TrainRequest) -> str:
    """A digest of what a bundle depends on beside that of which its work folder is (``same_run``)."""
    made_of = [_generators(request), same_classifier(request), sorted(request.cohort.leaks), versions()]
    return message_id(request.name, json.dumps(made_of, sort_keys=True))
