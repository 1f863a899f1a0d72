"""Synthetic features for the page: the same as those of ``gliaflow generate``, with the critic's live acceptance."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gliaflow
import numpy as np
import pytest
from gliaflow_console.networks import Networks
from gliaflow_console.real_features import RealFeatures
from gliaflow_console.store import ScanStore
from gliaflow_console.synthetic import COMPARED, GenerateRequest, generate, generators, npz
from gliaflow_generator.synthesis import BATCH, Synthesizer
from gliaflow_runtime.acceptance import Acceptance
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from sample_console import answer, send
from sample_scans import good_scan
from starlette.exceptions import HTTPException


@pytest.fixture
def real(networks: Networks, store: ScanStore) -> RealFeatures:
    return RealFeatures(networks, store)


@pytest.mark.parametrize("generator", ["infogan", "reacgan"])
def test_the_file_has_the_features_that_gliaflow_generate_writes(generator: str, networks: Networks) -> None:
    request = GenerateRequest.of({"grade": "LGG", "count": 20, "generator": generator, "seed": 3}, networks)
    file = np.load(io.BytesIO(npz(networks, request)))
    with gliaflow.open("memory://", generator=generator) as flow:
        (part, *rest) = flow.generate_parts("LGG", 20, seed=3)
    assert (file["features"] == np.concatenate([each.features for each in (part, *rest)])).all()
    assert (file["label"] == 1).all()
    texts = {name: str(file[name]) for name in ("class", "classes", "bundle", "generator", "tap", "seed")}
    assert texts == {
        "class": "LGG",
        "classes": "HGG,LGG",
        "bundle": part.bundle,
        "generator": part.generator,
        "tap": part.tap,
        "seed": "3",
    }


def test_the_answer_has_the_acceptance_of_at_least_64_accepted_features(networks: Networks, real: RealFeatures) -> None:
    made = generate(networks, real, GenerateRequest.of({"grade": "hgg", "count": 3}, networks))
    assert (made["grade"], made["count"], made["generator"], made["seed"]) == ("HGG", 3, "infogan", 0)
    assert made["measured"] == COMPARED
    assert made["drawn"] >= made["accepted"] >= COMPARED
    assert made["acceptance"] == made["accepted"] / made["drawn"]
    assert made["drawn"] % BATCH == 0
    assert 0 < made["acceptance"] <= 1
    assert len(made["samples"]) == 3
    assert len(made["samples"][0]["channels"]) <= 9
    assert made["maps"]["channels"][: len(made["samples"][0]["channels"])] == made["samples"][0]["channels"]
    assert (made["real"], made["distances"]) == (None, [])
    assert "at least 6 patients with HGG" in made["distances_note"]


@pytest.mark.parametrize(
    ("drawn", "grade", "note"),
    [
        ("HGG", "LGG", "A phantom that was drawn as HGG; the bundle graded it as LGG, which is wrong."),
        ("HGG", "HGG", "A phantom that was drawn as HGG; the bundle graded it as HGG, which is right."),
        ("", "HGG", "The bundle graded this scan as HGG; its true grade is not known here."),
    ],
)
def test_the_note_says_what_is_known_of_the_real_examples_class(
    drawn: str, grade: str, note: str, networks: Networks, store: ScanStore, tmp_path: Path
) -> None:
    scan = send(store, good_scan(tmp_path / "a.nii.gz"), drawn)
    answer(store, scan, networks.bundle.id, grade=grade)
    made = generate(networks, RealFeatures(networks, store), GenerateRequest("HGG", 3, "infogan", 0, distances=False))
    assert made["real"]["note"].startswith(note)
    assert (made["real"]["grade"], made["real"]["p_hgg"]) == (grade, 0.8)
    assert (made["real"]["slice"], made["real"]["slice_p_hgg"]) == (5, pytest.approx(0.9))


def test_the_distances_can_be_left_out(networks: Networks, real: RealFeatures) -> None:
    made = generate(networks, real, GenerateRequest.of({"grade": "LGG", "distances": False}, networks))
    assert (made["distances"], made["distances_note"]) == ([], "")


def test_a_generator_of_which_the_critic_accepts_nothing_is_refused_with_the_count(
    networks: Networks, real: RealFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Acceptance(np.zeros((0, *networks.bundle.tap_shape), np.float16), 800, 0, 0)
    monkeypatch.setattr(Synthesizer, "try_draw", lambda *_: nothing)
    with pytest.raises(UsageError, match="generator reacgan: 0 of 800 features were accepted as HGG; train it"):
        generate(networks, real, GenerateRequest("HGG", 4, "reacgan", 0))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"grade": "IV"}, "grade: 'IV' is not one of HGG, LGG"),
        ({"grade": "HGG", "generator": "wgan"}, "has no 'wgan'; there is: infogan, reacgan"),
    ],
)
def test_a_grade_or_generator_that_the_bundle_lacks_is_refused(body: Any, why: str, networks: Networks) -> None:
    with pytest.raises(UsageError, match=why):
        GenerateRequest.of(body, networks)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([], "the body is not an object"),
        ({}, "grade: expected a text"),
        ({"grade": "HGG", "count": 0}, "count: expected a whole number from 1 to"),
        ({"grade": "HGG", "count": 10**9}, "gliaflow generate writes more"),
        ({"grade": "HGG", "count": 2.5}, "count: expected a whole number"),
        ({"grade": "HGG", "count": True}, "count: expected a whole number"),
        ({"grade": "HGG", "seed": -1}, "seed: expected a whole number from 0 to"),
        ({"grade": "HGG", "seed": 2**53}, "seed: expected a whole number from 0 to"),
        ({"grade": "HGG", "generator": 1}, "generator: expected a text"),
        ({"grade": "HGG", "distances": 1}, "distances: expected true or false"),
        ({"grade": "HGG", "number": 1}, "'number': no such field; there are grade, count"),
    ],
)
def test_a_malformed_request_is_refused_with_the_field(body: Any, why: str, networks: Networks) -> None:
    with pytest.raises(HTTPException, match=why) as refused:
        GenerateRequest.of(body, networks)
    assert refused.value.status_code == 400


def test_the_list_of_generators_has_what_training_measured(networks: Networks) -> None:
    known = generators(networks)
    measured = networks.bundle.manifest.metrics["synthetic"]
    assert [each["name"] for each in known["generators"]] == ["infogan", "reacgan"]
    assert [each["default"] for each in known["generators"]] == [True, False]
    for each in known["generators"]:
        assert each["critic_accuracy"] == measured[each["name"]]["critic_accuracy"]
    assert (known["served"], known["problem"]) == ("infogan", "")
    assert tuple(known["shape"]) == networks.bundle.tap_shape


def test_beside_a_broker_it_is_not_known_which_generator_is_served() -> None:
    assert generators(Networks(Settings(broker="amqp://console@rabbitmq:5672/gliaflow")))["served"] == ""


@pytest.mark.parametrize("metrics", [{}, {"synthetic": 3}, {"synthetic": {"infogan": {"critic_accuracy": "high"}}}])
def test_a_bundle_without_such_measures_lists_its_generators(metrics: dict[str, Any], networks: Networks) -> None:
    bundle = SimpleNamespace(
        manifest=networks.bundle.manifest.model_copy(update={"metrics": metrics}),
        require_generator=networks.bundle.require_generator,
        require_own_tap=networks.bundle.require_own_tap,
        tap_shape=networks.bundle.tap_shape,
    )
    rows = generators(SimpleNamespace(bundle=bundle, served="", with_stages=True))["generators"]
    assert [row["critic_accuracy"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("settings", "why"), [({"tap": "enc5"}, "was fitted on dec3"), ({"bundle": "none"}, "no bundle")]
)
def test_a_bundle_that_cannot_generate_is_a_problem_with_its_reason(settings: dict[str, str], why: str) -> None:
    known = generators(Networks(Settings(**settings)))
    assert known["generators"] == []
    assert why in known["problem"]
