"""metrics.json: what is written can be read, and anything that does not follow the schema is refused by field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_evaluation.report import schema
from gliaflow_evaluation.report.schema import Metrics, MetricsError, Score, read_metrics, write_metrics
from sample_metrics import changed_at, made_up

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    metrics = Metrics.model_validate(made_up())
    write_metrics(metrics, tmp_path / "metrics.json")
    assert read_metrics(tmp_path / "metrics.json") == metrics
    assert json.loads((tmp_path / "metrics.json").read_text())["schema"] == "gliaflow-evaluation/2"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_nan_becomes_null_and_numbers_of_numpy_are_accepted() -> None:
    score = Score(mean=np.float32("nan"), ci95=np.array([0.1, np.nan]), n=np.int64(3))
    assert score == Score(mean=None, ci95=None, n=3)
    assert Score(mean=np.float32(0.5), ci95=np.array([0.25, 0.75]), n=3).ci95 == (0.25, 0.75)
    epochs = [[{"loss": float("nan"), "val_dice": 0.5}]]
    learning = Metrics.model_validate(changed_at("learning.unet", epochs)).learning
    assert learning is not None
    assert learning.unet == [[{"loss": None, "val_dice": 0.5}]]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("control.scores.auc.ci95", [0.6, 0.4], "control.scores.auc.ci95"),
        ("control.scores.auc.mean", float("inf"), "control.scores.auc.mean"),
        ("control.scores.luck", {"mean": 1, "ci95": None, "n": 1}, "luck: expected balanced_accuracy, auc, recall_pos"),
        ("gan.acgan.distances.HGG", {}, "gan.acgan.distances.HGG: .* frechet"),
        ("gan.acgan.judgements", {}, "gan.acgan.judgements: .* critic"),
        ("table2.test_patients.per_patient.0.dice", 1.2, "table2.test_patients.per_patient.0.dice"),
        ("made.colour", "blue", "made.colour"),
        ("best_comparator", "magic", "magic"),
    ],
)
def test_a_file_that_does_not_follow_the_schema_is_refused_by_field(
    path: str, value: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(changed_at(path, value)))
    with pytest.raises(MetricsError, match=message) as refused:
        read_metrics(file)
    assert str(file) in str(refused.value)


def test_a_file_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps({"schema": "gliaflow-evaluation/1", "beyond_line": None}))
    with pytest.raises(
        MetricsError, match=r"'gliaflow-evaluation/1'.* reads 'gliaflow-evaluation/2' only; run the same"
    ):
        read_metrics(file)


def test_metrics_that_a_reader_would_refuse_are_not_written(tmp_path: Path) -> None:
    wrong = Metrics.model_validate(made_up()).model_copy(update={"best_comparator": "magic"})
    with pytest.raises(MetricsError, match="magic"):
        write_metrics(wrong, tmp_path / "metrics.json")
    assert not list(tmp_path.iterdir())


def test_every_key_is_documented() -> None:
    """``python -m gliaflow_evaluation.report.schema`` prints the tables."""
    parts = schema.tables().split("\n### ")
    assert len(parts) == 1 + len(schema.json_schema()["$defs"]) + len(("UnitScores", "SliceScores", "Differences")) + 2
    for part in parts:
        assert part.strip() in DOCS.read_text(encoding="utf-8"), f"docs/evaluation.md lacks or alters: {part[:40]}"


@pytest.mark.parametrize("module", ["page", "verdict", "schema"])
def test_readers_need_no_torch_and_only_drawing_needs_matplotlib(module: str) -> None:
    code = f"import sys, gliaflow_evaluation.report.{module}; assert not {{'torch', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
