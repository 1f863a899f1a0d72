"""Labelled scans pass through the pipeline into the feature store, and the trainer makes a new bundle of them."""

import csv
import dataclasses
import json
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow.flow import Flow
from gliaflow.scans import Input, cohort_inputs
from gliaflow_cli.main import app
from gliaflow_phantoms.cohort import write_cohort
from gliaflow_plugins.cohorts.read import CohortRequest
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort, PluginError
from gliaflow_plugins.registry import load_registry
from gliaflow_proto.routing import RECORDER
from gliaflow_runner.broker import open_broker
from gliaflow_runner.running import RunningStages
from gliaflow_runner.services import PIPELINE, SERVICES, TRAINER
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from gliaflow_store.feature_store import FeatureStore
from gliaflow_trainer.service import Trainer
from sample_scans import good_scan
from typer.testing import CliRunner

TINY = {"steps": 20, "ngf": 8, "ndf": 8}
SCANS = 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms of each class, cut to the six slices around the one with most tumour."""
    folder = tmp_path_factory.mktemp("trainer") / "cohort"
    write_cohort(folder, SCANS, seed=6, hgg_share=0.5)  # the shipped bundle finds a tumour in each
    for path in folder.glob("*/*/*_flair.nii.gz"):
        scan, mask = (
            nib.as_closest_canonical(nib.load(file))
            for file in (path, path.with_name(path.name.replace("flair", "seg")))
        )
        middle = int((np.asarray(mask.dataobj) > 0).sum(axis=(0, 1)).argmax())
        nib.save(scan.slicer[:, :, max(0, middle - 3) : middle + 3], path)
    return folder


class Made:
    """A scan that is not a NIfTI file, like .tif slices or a DICOM series."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return "a series"

    def read(self) -> bytes:
        return NiftiFile(self.path).read()


def wait_for(condition, step=lambda: None, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        step()
        time.sleep(0.05)


def grades(gliaflow, bundle, tmp_path):
    good_scan(tmp_path / "new.nii.gz")
    gliaflow("submit", "new.nii.gz", "--out", "graded", "--bundle", bundle)
    with (tmp_path / "graded" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    return row["status"] == "ok" and row["bundle"] == load_bundle(bundle).id


def test_labelled_scans_become_a_bundle(cohort, tmp_path, gliaflow):
    settings = Settings(
        broker="memory://trainer",
        state=tmp_path / "state",
        roots=[str(cohort), str(tmp_path)],
        threads=1,
        train_after_s=0.5,
        train_options=TINY,
    )
    inputs = cohort_inputs(CohortRequest(cohort).read(load_registry()), "phantoms")
    inputs[0] = dataclasses.replace(inputs[0], volume=Made(inputs[0].path))
    unlabelled = Input(good_scan(tmp_path / "unlabelled.nii.gz"), "unlabelled", "somebody")
    bad = dataclasses.replace(inputs[1], name="bad", path=Path("a series"), volume=Made(tmp_path / "missing.nii"))
    written = settings.bundles / "gliaflow-demo-1"
    with RunningStages(list(SERVICES), settings) as running, open_broker(settings) as broker:

        def send(*items):
            answers = {answer.scan: answer for answer in Flow(broker, stages=running, timeout=60).submit_all(items)}
            return [answers[item.name] for item in items]

        *answers, failed = send(unlabelled, *inputs, bad)
        assert [answer.status for answer in answers] == ["ok"] * (1 + SCANS)
        assert (failed.status, "No such file" in failed.reason) == ("failed", True)

        trainer = Trainer(running.bundle, settings)
        work = settings.bundles / ".gliaflow-demo-1.work" / "run.json"
        wait_for(work.exists, trainer.poll)
        begun = work.stat().st_mtime_ns
        trainer.abandon()
        assert not written.exists()
        assert work.stat().st_mtime_ns == begun, "the next fit resumes this work"

        trainer = Trainer(running.bundle, settings)
        wait_for(written.exists, trainer.poll)
        send(*inputs)  # again: the store keeps one copy of each scan, so there is nothing new to learn from
        until = time.monotonic() + 1.5
        wait_for(lambda: time.monotonic() > until, trainer.poll)
        stored = {path: path.read_bytes() for path in settings.store.iterdir()}
        other = {"HGG": "LGG", "LGG": "HGG"}
        answers = send(*(dataclasses.replace(item, grade=other[item.grade], patient="Eve") for item in inputs))
        assert [answer.status for answer in answers] == ["ok"] * SCANS, "the recorder refuses them; they are graded"
        wait_for(lambda: broker.depth(RECORDER.dead) == len(stored))
        assert {path: path.read_bytes() for path in settings.store.iterdir()} == stored
        trainer.abandon()
    assert [path.name for path in settings.bundles.iterdir()] == [written.name]

    store = FeatureStore(settings.store)
    assert {*store.patients} == {item.patient for item in inputs}, "a scan without a label is not recorded"
    assert len({*store.scans}) == SCANS
    assert {*store.cohorts} == {"phantoms"}
    assert store.bundle == running.bundle.id

    manifest = load_bundle(written).manifest
    assert (manifest.tap, manifest.cropped) == (running.bundle.manifest.tap, running.bundle.manifest.cropped)
    assert manifest.generators["infogan"].options["ngf"] == 8
    assert manifest.training["base"] == running.bundle.id
    assert manifest.training["store"]["scans"] == SCANS
    (submission,) = {*store.submissions.values()}
    assert manifest.training["store"]["submissions"] == {submission: {"HGG": SCANS // 2, "LGG": SCANS // 2}}
    assert manifest.training["store"]["patients"]["test"] == {"HGG": 1, "LGG": 1}
    assert "phantom_5" not in json.dumps(manifest.model_dump(mode="json")), "no patient's name"
    assert grades(gliaflow, written, tmp_path)

    with pytest.raises(BundleError, match="name another store"):
        RunningStages([TRAINER], settings.model_copy(update={"bundle": written}))


@pytest.mark.rabbitmq
def test_on_rabbitmq_sigterm_ends_a_fit_and_the_next_trainer_resumes_it(gliaflow, stages, cohort, tmp_path):
    learn = {"train_after_s": 1, "train_options": json.dumps(TINY), "bundles": tmp_path / "bundles"}
    stages(*PIPELINE)
    (trainer,) = stages(TRAINER, **learn)
    gliaflow("submit", cohort, "--labelled", "--out", "out", broker=trainer.broker)
    wait_for((tmp_path / "bundles" / ".gliaflow-demo-1.work" / "run.json").exists)
    started = time.monotonic()
    assert trainer.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 10
    events = [json.loads(line)["event"] for line in trainer.log.read_text().splitlines()]
    assert events[-2:] == ["fit abandoned", "drained"]
    assert not (tmp_path / "bundles" / "gliaflow-demo-1").exists()

    (trainer,) = stages(TRAINER, **learn)
    wait_for((tmp_path / "bundles" / "gliaflow-demo-1").exists)
    assert len({*FeatureStore(tmp_path / "state" / "gliaflow" / "store").scans}) == SCANS
    assert grades(gliaflow, tmp_path / "bundles" / "gliaflow-demo-1", tmp_path)
    wait_for(lambda: "bundle written" in trainer.log.read_text())
    assert trainer.stop() == 0


def test_the_trainer_waits_for_enough_patients(cohort, tmp_path, capsys):
    settings = Settings(broker="memory://few", state=tmp_path, roots=[str(cohort)], threads=1, train_after_s=0.2)
    inputs = cohort_inputs(CohortRequest(cohort).read(load_registry()), "phantoms")[:2]
    with RunningStages(list(SERVICES), settings) as running, open_broker(settings) as broker:
        list(Flow(broker, stages=running, timeout=60).submit_all(inputs))
        trainer = Trainer(running.bundle, settings)
        logged = ""

        def poll():
            nonlocal logged
            trainer.poll()
            logged += "".join(capsys.readouterr())

        wait_for(
            lambda: "3 more patients of HGG, 3 more patients of LGG" in logged or "4 more patients" in logged, poll
        )
    assert not list(settings.bundles.iterdir())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train_profile": "huge"}, "train_profile: 'huge' is not one of demo"),
        ({"train_generator": "nobody"}, "nobody"),
        ({"train_options": {"epoch": 1}}, "epoch"),
    ],
)
def test_an_unknown_profile_generator_or_option_is_an_error_at_the_start(tmp_path, setting, message):
    with pytest.raises(PluginError, match=message):
        Trainer(load_bundle(None), Settings(state=tmp_path, **setting))


def test_a_cohort_is_sent_with_its_patients_and_labels(tmp_path):
    files = [NiftiFile(tmp_path / "a.nii"), Made(tmp_path / "b.nii")]
    cases = [Case("x/1", files[0], None, "p", "IV", label="HGG"), Case("x_1", files[1], None, "q", None, "2")]
    first, second = cohort_inputs(Cohort("some", cases), "mine", channel="0")
    assert first == Input(tmp_path / "a.nii", "x_1", "p", "HGG", "0", "mine", None)
    assert second == Input(Path("a series"), "x_1-2", "q", None, "2", "mine", files[1])
    with pytest.raises(UsageError, match="no scan has a label"):
        cohort_inputs(Cohort("some", cases[1:]), "mine")


def test_the_flags_that_read_a_cohort_need_labelled():
    for arguments in (("a", "--high", "IV"), ("a", "b", "--labelled"), ("a", "--labelled", "--grade", "HGG")):
        done = CliRunner().invoke(app, ["submit", *arguments, "--out", "x"])
        assert done.exit_code == 2
        assert "labelled" in done.stderr
