"""``gliaflow demo``: the phantoms of this command go through all stages, and no others that are in the folder."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from gliaflow_cli.main import app
from gliaflow_phantoms.cohort import image_file, write_cohort
from gliaflow_runtime.errors import UsageError
from typer.testing import CliRunner

SEED = 5


def test_the_demo_answers_the_patients_that_it_was_asked_for(tmp_path: Path) -> None:
    two = write_cohort(tmp_path / "phantoms", 2, SEED, 0.5)
    third = shutil.copytree(two[0], two[0].with_name(f"phantom_{SEED}_0002"))  # as an earlier run with more leaves it
    for kind in ("flair", "seg"):
        (third / image_file(two[0], kind).name).rename(image_file(third, kind))
    command = ["demo", "--out", str(tmp_path), "--broker", "memory://", "--patients", "2", "--seed"]

    done = CliRunner().invoke(app, [*command, str(SEED)])
    assert done.exit_code == 0, done.output
    with (tmp_path / "predictions.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {row["patient"]: row["true_grade"] for row in rows} == {patient.name: patient.parent.name for patient in two}
    assert "phantom_5_0002" not in (tmp_path / "report.html").read_text(encoding="utf-8")

    other = CliRunner().invoke(app, [*command, str(SEED + 1)])
    assert isinstance(other.exception, UsageError)
    assert "seed 5, not 6" in str(other.exception)


def test_a_seed_that_the_bundle_has_seen_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--broker", "memory://", "--seed", "1"])
    assert isinstance(done.exception, UsageError)
    assert "trained on the phantoms of seed 1" in str(done.exception)
