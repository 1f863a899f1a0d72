"""The bundle of the console beside that of the stages: when there are feature maps, and why there are none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gliaflow_console import networks
from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import ScanGrid, StoredScan
from gliaflow_runtime.bundle.load import demo_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from sample_console import answer, send
from sample_scans import good_scan

RABBITMQ = "amqp://console@rabbitmq:5672/gliaflow"


@pytest.fixture
def store() -> Iterator[ScanStore]:
    with ScanStore(Settings()) as store:
        yield store


def scan(**changes: object) -> StoredScan:
    whole = StoredScan("a", "a", "a", own=True, created=0.0, status="ok", bundle=Networks(Settings()).bundle.id)
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_an_answered_scan_with_its_image_has_feature_maps() -> None:
    assert Networks(Settings()).maps_problem(scan(), has_image=True) == ""


def test_a_scan_that_another_bundle_answered_has_none() -> None:
    problem = Networks(Settings(broker=RABBITMQ)).maps_problem(scan(bundle="other@0123"), has_image=True)
    assert "answered by other@0123, and this console has gliaflow-demo@" in problem
    assert "--bundle" in problem


def test_a_scan_without_answer_or_without_image_has_none() -> None:
    own = Networks(Settings())
    assert "once it is answered" in own.maps_problem(scan(bundle=None), has_image=True)
    assert "no image of this scan" in own.maps_problem(scan(), has_image=False)


def test_a_console_beside_a_broker_computes_no_maps_of_a_very_large_scan() -> None:
    large = scan(grid=ScanGrid((512, 512, 176), (0.5, 0.5, 1.0), ()))
    assert "over this console's limit" in Networks(Settings(broker=RABBITMQ)).maps_problem(large, has_image=True)
    assert Networks(Settings()).maps_problem(large, has_image=True) == "", "stages in this process need more memory"


def test_without_a_bundle_the_problem_names_it(tmp_path: Path) -> None:
    own = Networks(Settings(bundle=tmp_path / "none"))
    assert (own.tap, own.taps) == ("", [])
    assert "no such file" in own.maps_problem(scan(), has_image=True)


def test_a_bundle_that_was_not_loaded_is_tried_again_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Networks(Settings(bundle=tmp_path / "mine"))
    assert own.tap == ""
    shutil.copytree(demo_bundle(), tmp_path / "mine")
    assert own.tap == "", "a store that is away would hold up each request"
    monkeypatch.setattr(networks, "RETRY_S", 0)
    assert own.tap == "dec3"


def test_features_come_from_the_pinned_bundle_alone() -> None:
    own = Networks(Settings(bundle=demo_bundle(), bundle_sha256="0" * 64))
    assert "bundle_sha256 pins" in own.maps_problem(scan(), has_image=True)


def test_the_slices_of_the_last_scan_are_kept(store: ScanStore, tmp_path: Path) -> None:
    own = Networks(Settings())
    first, second = (answer(store, send(store, good_scan(tmp_path / f"{name}.nii.gz")), own.bundle.id) for name in "ab")
    slices = own.slices(store, first)
    assert own.slices(store, first) is slices
    assert own.slices(store, second) is not slices
    assert own.slices(store, first) is not slices


def test_a_scan_whose_file_is_gone_is_refused(store: ScanStore, tmp_path: Path) -> None:
    own = Networks(Settings())
    answered = answer(store, send(store, good_scan(tmp_path / "a.nii.gz")), own.bundle.id)
    item = store.item(answered.id)
    assert item is not None
    item.path.unlink()
    with pytest.raises(UsageError, match="the image cannot be read"):
        own.slices(store, answered)
