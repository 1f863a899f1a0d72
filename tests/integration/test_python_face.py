"""``import gliaflow`` gives the answers of the command, in one process and on RabbitMQ."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gliaflow
import nibabel as nib
import numpy as np
import pytest
from gliaflow_proto.routing import STAGE_QUEUES
from gliaflow_runtime.broker.connect import connect
from processes import Command, free_port
from safetensors.numpy import load_file
from sample_scans import good_scan

ALL = ("preprocessor", "extractor", "generator", "classifier")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans that can be graded, and a file that is not a scan."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        good_scan(folder / f"p{number}_flair.nii.gz", seed=number)
    (folder / "bad_flair.nii").write_bytes(b"no scan")
    return folder


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-of-the-face"))


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> str:
    """Each broker in turn, with stages that answer on it."""
    if request.param == "memory":
        return "memory://"
    stages: Callable[..., Any] = request.getfixturevalue("stages")
    stages(*ALL)
    return str(request.getfixturevalue("rabbitmq_url"))


@pytest.fixture
def flow(broker: str) -> Iterator[gliaflow.Flow]:
    with gliaflow.open(broker, threads=1) as flow:
        yield flow


def canonical(mask: Any) -> Any:
    return np.asarray(nib.as_closest_canonical(mask).dataobj)


def test_answers_are_those_of_the_command(flow: gliaflow.Flow, gliaflow: Command, scans: Path, tmp_path: Path) -> None:
    done = gliaflow("submit", scans, "--out", "out", check=False)
    assert done.returncode == 1
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = {row["scan"]: row for row in csv.DictReader(file)}
    answers = {answer.scan: answer for answer in flow.submit_all(scans)}
    assert set(answers) == set(rows) == {"p0_flair", "p1_flair", "bad_flair"}
    for name in ("p0_flair", "p1_flair"):
        answer, row = answers[name], rows[name]
        assert (answer.status, answer.grade) == ("ok", row["grade"])
        assert answer.p_hgg is not None
        assert answer.tumour_ml is not None
        logits = [np.log(p / (1 - p)) for _, p in answer.slice_p_hgg]
        assert len(logits) == answer.tumour_slices
        assert answer.p_hgg == pytest.approx(1 / (1 + np.exp(-np.mean(logits))))
        assert {z for z, _ in answer.slice_p_hgg} == set(np.flatnonzero(canonical(answer.mask).any(axis=(0, 1))))
        assert (round(answer.p_hgg, 6), round(answer.tumour_ml, 3)) == (float(row["p_hgg"]), float(row["tumour_ml"]))
        assert (answer.patient, str(answer.slices), answer.bundle) == (row["patient"], row["slices"], row["bundle"])
        written = nib.load(tmp_path / "out" / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(answer.mask.dataobj), np.asarray(written.dataobj))
        np.testing.assert_array_equal(answer.mask.affine, written.affine)
    assert (answers["bad_flair"].status, answers["bad_flair"].reason) == ("failed", rows["bad_flair"]["error"])


def test_one_scan_is_submitted_and_waited_for(flow: gliaflow.Flow, scans: Path) -> None:
    for _ in range(2):
        answer = flow.submit(scans / "p0_flair.nii.gz", grade="HGG")
        assert (answer.scan, answer.status) == ("p0_flair", "ok")


def test_generated_features_are_those_of_the_command(flow: gliaflow.Flow, gliaflow: Command, tmp_path: Path) -> None:
    gliaflow("generate", "--grade", "LGG", "--count", 40, "--seed", 7, "--out", "lgg.safetensors")
    written = load_file(tmp_path / "lgg.safetensors")["features"]
    np.testing.assert_array_equal(flow.generate("LGG", 40, seed=7), written.astype(np.float32))


def test_a_loop_that_is_left_early_leaves_no_queue_behind(broker: str, scans: Path) -> None:
    with gliaflow.open(broker, threads=1) as flow:
        for answer in flow.submit_all(scans):
            assert answer.scan
            break
        assert flow.submit(scans / "p0_flair.nii.gz").status == "ok"


@pytest.mark.rabbitmq
def test_a_broker_without_stages_and_no_broker_are_broker_errors(
    rabbitmq_url: str, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliaflow.submission.ROUTE_WAIT_S", 0.2)
    with connect(rabbitmq_url) as broker:
        for queue in STAGE_QUEUES:
            broker.delete(queue.name)
        with (
            gliaflow.open(rabbitmq_url, waiting=lambda reason: None) as flow,
            pytest.raises(gliaflow.BrokerError, match="no stage takes 'scan'"),
        ):
            flow.submit(scans / "p0_flair.nii.gz")
        assert not any(broker.queue_state(queue.name) for queue in STAGE_QUEUES)
    monkeypatch.setattr("gliaflow.opening.open_broker", lambda each, **_: connect(each.broker, connect_timeout=1))
    with pytest.raises(gliaflow.BrokerError, match="no RabbitMQ"):
        gliaflow.open(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
