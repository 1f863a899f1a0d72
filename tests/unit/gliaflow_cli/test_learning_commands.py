"""How ``gliaflow train`` and ``gliaflow evaluate`` end: what they print, what they write, and their exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import small
from gliaflow_cli.main import app
from gliaflow_evaluation import run
from gliaflow_evaluation.report.schema import Metrics
from gliaflow_phantoms.cohort import write_cohort
from gliaflow_runtime.bundle.load import Bundle, demo_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_trainer import train
from sample_metrics import made_up
from typer.testing import CliRunner


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return small.write_cohort(tmp_path / "cohort", 1, 1)


@pytest.mark.parametrize(
    ("failed", "generators", "code"),
    [({}, ["acgan"], 0), ({"mine": "no idea"}, ["acgan"], 0), ({"mine": "no idea"}, [], 1)],
    ids=["all well", "one of two failed", "every generator failed"],
)
def test_evaluate_ends_with_1_if_every_generator_failed(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failed: dict[str, str],
    generators: list[str],
    code: int,
) -> None:
    metrics = made_up()
    metrics["made"] |= {"failed": failed, "generators": generators}
    monkeypatch.setattr(run, "evaluate", lambda request, bar: Metrics.model_validate(metrics))
    result = CliRunner().invoke(app, ["evaluate", str(cohort), "--out", str(tmp_path / "report"), "--memory", "2"])
    assert result.exit_code == code, result.output
    assert ("Every generator failed (mine): synthetic features were not evaluated." in result.output) == (code == 1)
    assert bool(failed) == ("The generator mine failed and is not compared: no idea" in result.output)


def test_the_limits_of_a_fit_reach_the_request(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Any] = []

    def evaluate(request: Any, bar: Any) -> Metrics:
        requests.append(request)
        return Metrics.model_validate(made_up())

    monkeypatch.setattr(run, "evaluate", evaluate)
    flags = ["--out", str(tmp_path / "report"), "--memory", "2.5", "--deadline", "60"]
    assert CliRunner().invoke(app, ["evaluate", str(cohort), *flags]).exit_code == 0
    assert (requests[0].memory_gib, requests[0].deadline_s) == (2.5, 60)


def test_train_ends_with_a_summary_a_report_and_the_next_command(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(demo_bundle(), out)
    monkeypatch.setattr(train, "train", lambda request, bar: Bundle(out))
    result = CliRunner().invoke(app, ["train", str(cohort), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "280 to learn from (140 HGG, 140 LGG)" in result.output
    assert "{" not in result.output, "no raw dicts"
    assert f"report: {out / 'report.html'}" in result.output
    assert f"gliaflow submit SCANS --bundle {out}" in result.output
    assert "</html>" in (out / "report.html").read_text()
    assert Bundle(out).id == Bundle(demo_bundle()).id, "the page changes nothing in the bundle"


@pytest.mark.parametrize(
    ("flags", "from_demo"),
    [
        ("--profile small", True),
        ("--profile small --init none", False),
        ("--profile small --unet demo", False),
        ("--profile demo", False),
        ("--profile demo --init demo", True),
    ],
)
def test_a_fit_starts_from_the_unet_of_the_profile_or_of_the_flag(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, from_demo: bool
) -> None:
    requests: list[Any] = []

    def evaluate(request: Any, bar: Any) -> Metrics:
        requests.append(request)
        return Metrics.model_validate(made_up())

    monkeypatch.setattr(run, "evaluate", evaluate)
    result = CliRunner().invoke(app, ["evaluate", str(cohort), "--out", str(tmp_path / "report"), *flags.split()])
    assert result.exit_code == 0, result.output
    assert requests[0].init == (demo_bundle() if from_demo else None)


@pytest.mark.parametrize("flags", ["--epochs 3", "--channels flair,t1ce", "--preprocess n4", "--init demo"])
def test_what_another_bundles_unet_has_already_is_refused_beside_it(cohort: Path, tmp_path: Path, flags: str) -> None:
    shape = ["evaluate", str(cohort), "--out", str(tmp_path / "report"), "--unet", "demo", *flags.split()]
    result = CliRunner().invoke(app, shape)
    assert isinstance(result.exception, UsageError)
    assert flags.split()[0] in str(result.exception)


@pytest.mark.parametrize("flag", ["--init", "--unet"])
def test_phantoms_that_the_bundle_learned_from_are_a_leak(tmp_path: Path, flag: str) -> None:
    learned = Bundle(demo_bundle()).manifest.training["cohort"]["made_by"]
    write_cohort(tmp_path / "phantoms", 1, learned["seed"], learned["hgg_share"])
    shape = ["evaluate", str(tmp_path / "phantoms"), "--out", str(tmp_path / "report"), flag, "demo"]
    result = CliRunner().invoke(app, shape)
    (leak,) = getattr(result.exception, "__notes__", ["no leak"])
    assert f"learned from phantoms of seed {learned['seed']}, as these are: make some with another" in leak
    assert not (tmp_path / "report").exists()
