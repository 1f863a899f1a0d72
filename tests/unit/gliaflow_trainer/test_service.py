"""The trainer service learns from no scan that contradicts another one, and says so."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gliaflow_proto import FeaturesMessage, Scan
from gliaflow_runner.services import SERVICES
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import InvalidInput
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, StoredPart, part_path, write_part
from gliaflow_trainer.service import Trainer, _digest
from gliaflow_trainer.stream import DELIVERY
from sample_messages import ONE_OF_EACH
from structlog.testing import capture_logs

BUNDLE = load_bundle(None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a trainer whose store has five patients of each class, one scan each."""
    settings = Settings(state=tmp_path, train_after_s=0.01)
    settings.store.mkdir()
    for number in range(10):
        store(settings.store, f"s{number}", f"p{number}", "LGG" if number % 2 else "HGG", seed=number)
    return settings


def store(folder: Path, scan: str, patient: str, label: str, seed: int, submission: str = "") -> None:
    features = np.random.default_rng(seed).random((2, *BUNDLE.tap_shape)).astype(np.float16)
    about = Scan(id=scan, patient=patient, submission=submission or f"sub-{scan}", label=label)
    origin = FeatureOrigin(BUNDLE.id, BUNDLE.tap, BUNDLE.tap_shape)
    write_part(folder, StoredPart(about, (0, 1), origin, features, np.ones((2, 8, 8), np.uint8), (0, 1)))
    os.utime(folder, (1, 1))  # quiet for long


def polled(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What the trainer logs when it reads the store. It starts no fit."""
    monkeypatch.setattr("gliaflow_trainer.service.MIN_PATIENTS", 100)
    with capture_logs() as logs:
        Trainer(BUNDLE, settings).poll()
    return [dict(line) for line in logs]


def test_scans_that_contradict_others_are_left_out_and_logged_without_patients(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(settings.store, "x0", "p0", "LGG", seed=90)  # another label of the patient
    store(settings.store, "x1", "p_new", "HGG", seed=1)  # the same scan as another patient of the other class
    store(settings.store, "x2", "p2", "HGG", seed=2)  # a copy
    logs = polled(settings, monkeypatch)
    problems = sorted(str(line["problem"]) for line in logs if line["event"] == "not learnt from")
    labels = "scans of one patient have different labels: s0, x0"
    features = "scans with the same features have different labels or patients: s1, x1"
    assert problems == [
        f"scan s0: {labels}",
        f"scan s1: {features}",
        f"scan x0: {labels}",
        f"scan x1: {features}",
        "scan x2: a copy of scan s2",
    ]
    assert "p_new" not in repr(logs)
    (recorded,) = (line for line in logs if line["event"] == "recorded")
    assert recorded["patients"] == {"HGG": 4, "LGG": 4}


@pytest.mark.parametrize(("submission", "seed"), [("sub-s0", 70), ("corrected", 0)])
def test_a_scan_that_was_removed_and_submitted_again_makes_another_fit(
    settings: Settings, submission: str, seed: int
) -> None:
    """Its id, patient and label are the same; its features or its submission, which the manifest names, are not."""

    def digest() -> str:
        features = FeatureStore(settings.store)
        return _digest(features, features, BUNDLE, settings)

    before = digest()
    assert digest() == before
    part_path(settings.store, "s0", 0).unlink()
    store(settings.store, "s0", "p0", "HGG", seed, submission)
    assert digest() != before


def test_many_problems_do_not_fill_the_log(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        (settings.store / f"{number}.safetensors").write_bytes(b"")
    os.utime(settings.store, (1, 1))
    problems = [line["problem"] for line in polled(settings, monkeypatch) if line["event"] == "not learnt from"]
    assert (len(problems), problems[-1]) == (21, "and 30 more")


def test_the_store_that_the_trainer_creates_is_private_and_leaves_disk_free(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, store=tmp_path / "new" / "store", store_free_gib=1e9)
    (make,) = SERVICES["trainer"](BUNDLE, settings)
    assert settings.store.stat().st_mode & 0o777 == 0o700
    (sample,) = (message for message in ONE_OF_EACH if isinstance(message, FeaturesMessage))
    features = np.ones((2, *BUNDLE.tap_shape), np.float16)
    with pytest.raises(InvalidInput, match="the store is full"):
        make(MemoryBroker()).handle(replace(sample, bundle=BUNDLE.id, tap=BUNDLE.tap, features=features), DELIVERY)
