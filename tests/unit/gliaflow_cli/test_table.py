"""``predictions.csv`` and the masks beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_cli.client.table import TABLE, ScanRow, read_table, save_answers, write_table
from gliaflow_proto import PredictionMessage, ScanMessage, encode, routing_key
from gliaflow_runtime.broker.interface import Broker
from stand_in import StandIn, fail


def predict(broker: Broker, message: ScanMessage) -> None:
    if message.scan.name == "s1":
        fail(broker, message, "no head")
        return
    answer = PredictionMessage(
        id=message.id,
        scan=message.scan,
        bundle="b@1",
        grade="HGG",
        p_hgg=0.75,
        tumour_ml=1.23456,
        slices=3,
        tumour_slices=1,
        affine=[float(x) for x in np.eye(4).ravel()],
        mask=np.ones((2, 3, 4), np.uint8),
    )
    broker.publish(routing_key(answer), encode(answer), message_id=answer.id)


@pytest.fixture
def scans(tmp_path: Path) -> list[Input]:
    for number in range(3):
        (tmp_path / f"s{number}.nii").write_bytes(b"a scan")
    return [Input(tmp_path / f"s{number}.nii", f"s{number}", f"p{number}") for number in range(3)]


def test_rows_are_in_the_order_of_the_scans_and_known_rows_come_first(scans: list[Input], tmp_path: Path) -> None:
    known = {"old": ScanRow("old", "p", status="ok", p_hgg=0.5)}
    out = tmp_path / "out"
    with StandIn(predict) as stages:
        rows = save_answers(Flow(stages.broker.attach(), timeout=30), scans, out, known=known)
    assert [(row.scan, row.status, row.error) for row in rows] == [
        ("s0", "ok", ""),
        ("s1", "failed", "test: no head"),
        ("s2", "ok", ""),
    ]
    assert (rows[0].grade, rows[0].p_hgg, rows[0].tumour_ml, rows[0].slices, rows[0].bundle) == (
        "HGG",
        0.75,
        1.235,
        3,
        "b@1",
    )
    assert list(read_table(out / TABLE)) == ["old", "s0", "s1", "s2"]
    assert sorted(path.name for path in out.iterdir()) == [TABLE, "s0_seg.nii.gz", "s2_seg.nii.gz"]


def test_a_mask_that_cannot_be_written_fails_its_scan(
    scans: list[Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gliaflow_cli.client.table.write_image", full)
    with StandIn(predict) as stages:
        first, *_ = save_answers(Flow(stages.broker.attach(), timeout=30), scans, tmp_path / "out")
    assert (first.status, first.error) == ("failed", "mask not written: No space left on device")


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [ScanRow("a", "p", "HGG", 0.25, 3.5, 12, "ok", "", "b@1", 0.5), ScanRow("b", "q", error="an, odd\nreason")]
    write_table(tmp_path / TABLE, rows)
    assert list(read_table(tmp_path / TABLE).values()) == rows
    assert read_table(tmp_path / "none.csv") == {}
