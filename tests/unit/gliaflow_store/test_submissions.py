"""What is stored is listed by submission, and a submission or a scan can be removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gliaflow_cli.main import app
from gliaflow_proto import Scan
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, StoredPart, StoreError, write_part
from gliaflow_store.submissions import remove_scans, stored_submissions
from typer.testing import CliRunner

ORIGIN = FeatureOrigin("b@1", "enc5", (2, 3, 3))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two scans of a cohort from the submission ``good``, two parts each, and one from ``poison``."""
    for number, (scan, submission) in enumerate([("a", "good"), ("b", "good"), ("c", "poison")]):
        features = np.random.default_rng(number).random((2, *ORIGIN.shape)).astype(np.float16)
        cohort = "mine" if submission == "good" else ""
        about = Scan(id=scan, patient=f"Jane {scan}", submission=submission, cohort=cohort, label="HGG")
        for index in range(2):
            part = StoredPart(about, (index, 2), ORIGIN, features + index, np.ones((2, 4, 4), np.uint8), (0, 1))
            write_part(tmp_path, part)
    (tmp_path / "z.safetensors").write_bytes(b"not a part")
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["store", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.output + str(done.exception or "")


def test_submissions_are_listed_with_their_scans_and_cohorts(store: Path) -> None:
    by_id = {each.id: each for each in stored_submissions(store)}
    assert by_id["good"].labels == {"a": "HGG", "b": "HGG"}
    assert (by_id["good"].cohorts, by_id["poison"].cohorts) == ({"mine"}, {""})
    assert by_id["poison"].recorded.endswith("+00:00")
    with pytest.raises(StoreError, match="no such folder"):
        stored_submissions(store / "gone")


@pytest.mark.parametrize(("ids", "removed"), [(["poison"], {"c"}), (["a", "poison"], {"a", "c"}), (["no"], set())])
def test_a_submission_or_a_scan_is_removed_whole(store: Path, ids: list[str], removed: set[str]) -> None:
    assert remove_scans(store, ids) == removed
    assert {*FeatureStore(store).scans.tolist()} == {"a", "b", "c"} - removed


def test_the_command_lists_and_removes(store: Path) -> None:
    code, output = run(store)
    assert code == 0
    assert "2 scans (2 HGG) of 2 patients, cohort mine" in output
    assert "2 submissions in" in output
    assert "Jane" not in output
    code, output = run(store, "--remove", "poison", "--yes")
    assert (code, "1 scans removed" in output) == (0, True)
    assert {*FeatureStore(store).scans.tolist()} == {"a", "b"}


def test_the_command_removes_nothing_that_is_not_confirmed_or_not_there(store: Path) -> None:
    assert run(store, "--remove", "poison")[0] == 1  # nobody answers the question
    assert "no scan or submission" in run(store, "--remove", "Jane", "--yes")[1]
    assert "no such folder" in run(store / "gone")[1]
    assert {*FeatureStore(store).scans.tolist()} == {"a", "b", "c"}
