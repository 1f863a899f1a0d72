"""From scans to grades and masks, in one process and in four on RabbitMQ, with the same answers."""

import csv
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow.scans import stem
from gliaflow.submission import Submission
from gliaflow_cli.main import main
from gliaflow_proto import MAX_MESSAGE_BYTES, Queue, SyntheticMessage, decode
from gliaflow_proto.routing import BALANCER
from gliaflow_runtime.broker.connect import connect
from processes import environment
from safetensors.numpy import load_file
from sample_scans import BROKEN, good_scan, write_broken

STAGES = ("preprocessor", "extractor", "generator", "classifier")
COLUMNS = ["scan", "patient", "source", "grade", "p_hgg", "tumour_ml", "slices", "status", "error", "warnings"]
COLUMNS += ["bundle", "trained_on", "seconds", "mask"]


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        reader = csv.DictReader(file)
        assert [name for name in reader.fieldnames if name != "true_grade"] == COLUMNS
        return {row["scan"]: row for row in reader}


def mask(folder: Path, scan: str) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{scan}_seg.nii.gz").dataobj)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans. ``turned_flair`` is the first one, rotated, mirrored and stored as float64."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        good_scan(folder / f"p{number}_flair.nii.gz", seed=number)
    image = nib.load(folder / "p0_flair.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj, np.float64), turned.affine), folder / "turned_flair.nii")
    return folder


def test_one_process_answers_and_orientation_changes_nothing(gliaflow, scans, tmp_path):
    gliaflow("submit", scans, "--out", "out")
    rows = table(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["ok"] * 3
    assert rows["p0_flair"]["p_hgg"] == rows["turned_flair"]["p_hgg"]
    for name, path in (("p0_flair", "p0_flair.nii.gz"), ("turned_flair", "turned_flair.nii")):
        scan, segmentation = nib.load(scans / path), nib.load(tmp_path / "out" / f"{name}_seg.nii.gz")
        assert segmentation.shape == scan.shape
        np.testing.assert_allclose(segmentation.affine, scan.affine, atol=1e-5)
    straight, turned = (
        nib.as_closest_canonical(nib.load(tmp_path / "out" / f"{n}_seg.nii.gz")) for n in ("p0_flair", "turned_flair")
    )
    np.testing.assert_array_equal(np.asarray(straight.dataobj), np.asarray(turned.dataobj))


@pytest.mark.rabbitmq
def test_four_processes_on_rabbitmq_give_the_same_answers(gliaflow, stages, scans, tmp_path, rabbitmq_url):
    running = stages(*STAGES, "extractor", "classifier")  # two replicas share the parts of each scan
    gliaflow("submit", scans, "--out", "memory")
    gliaflow("submit", scans, "--out", "amqp", broker=rabbitmq_url)
    expected, answered = table(tmp_path / "memory"), table(tmp_path / "amqp")
    assert expected.keys() == answered.keys()
    for name, row in expected.items():
        assert row["p_hgg"] == answered[name]["p_hgg"]
        np.testing.assert_array_equal(mask(tmp_path / "memory", name), mask(tmp_path / "amqp", name))
    for stage in running:
        status, metrics = stage.get("/metrics")
        assert status == 200
        assert 'doing="wait"' in metrics
        assert 'doing="compute"' in metrics
        assert stage.get("/livez")[0] == 200
        assert stage.stop() == 0, "SIGTERM drains, and the exit code is 0"


@pytest.mark.rabbitmq
def test_killed_stage_loses_no_scan(gliaflow, stages, scans, tmp_path, rabbitmq_url):
    stages("preprocessor", "generator")
    victims = stages("extractor", "classifier")
    for number in range(2, 12):
        good_scan(scans / f"p{number}_flair.nii.gz", seed=number)
    client = threading.Thread(target=gliaflow, args=("submit", scans, "--out", "out"), kwargs={"broker": rabbitmq_url})
    client.start()
    time.sleep(3)
    for stage in victims:
        stage.stop(signal.SIGKILL)
    stages("extractor", "classifier")
    client.join()
    rows = table(tmp_path / "out")
    assert len(rows) == 13
    assert {row["status"] for row in rows.values()} == {"ok"}


def check_broken_scans(gliaflow, folder, tmp_path, broker):
    """Submit broken scans between two good ones: each is reported by name, and the good ones are answered."""
    good_scan(folder / "good1.nii.gz")
    write_broken(folder)
    good_scan(folder / "zgood2.nii", seed=2)
    done = gliaflow("submit", folder, "--out", "out", broker=broker, check=False)
    assert done.returncode == 1
    rows = table(tmp_path / "out")
    assert len(rows) == len(BROKEN) + 2
    assert rows["good1"]["status"] == rows["zgood2"]["status"] == "ok"
    listed = gliaflow("dead", "list", broker=broker).stdout
    for name, (_, reason) in BROKEN.items():
        row = rows[stem(Path(name))]
        assert row["status"] == "failed"
        assert re.search(reason, row["error"]), (name, row["error"])
        assert stem(Path(name)) in listed
        assert name in done.stderr.replace("\n", "")
    assert f"{len(BROKEN)} dead letters" in listed


def test_broken_scans_are_reported_by_name_in_one_process(gliaflow, tmp_path):
    (tmp_path / "scans").mkdir()
    check_broken_scans(gliaflow, tmp_path / "scans", tmp_path, "memory://")


@pytest.mark.rabbitmq
class TestRunningPipeline:
    """Tests that share four running stages."""

    def test_the_generator_balances_labelled_scans(self, gliaflow, pipeline, scans, rabbitmq_server):
        with connect(rabbitmq_server) as broker:
            tap = Queue("gliaflow.test", ("synthetic.#",), expires_s=600)
            broker.declare(tap)
            for grade in ("HGG", "HGG", "LGG"):
                gliaflow("submit", scans, "--out", "out", "--grade", grade, broker=rabbitmq_server)
            deadline = time.monotonic() + 30
            while broker.depth(BALANCER.name) and time.monotonic() < deadline:
                time.sleep(0.1)
            with broker.consume(tap, 100) as consumer:
                message = decode(consumer.next(30).body)
            broker.delete(tap.name)
        assert message.label == "LGG", "there are half as many LGG slices as HGG slices"
        metrics = pipeline["generator"].get("/metrics")[1]
        assert 'gliaflow_synthetic_total{label="LGG",verdict="accepted"}' in metrics
        assert 'gliaflow_synthetic_total{label="LGG",verdict="refused"}' in metrics

    def test_scan_too_large_for_a_message_is_sent_in_chunks(self, gliaflow, pipeline, tmp_path, rabbitmq_server):
        scan = np.zeros((120, 120, 100), np.float64)
        scan[20:100, 20:100] = np.random.default_rng(0).normal(100, 10, (80, 80, 100))
        nib.save(nib.Nifti1Image(scan, np.diag([2.0, 2, 2, 1])), tmp_path / "large.nii")
        assert (tmp_path / "large.nii").stat().st_size > MAX_MESSAGE_BYTES
        gliaflow("submit", "large.nii", "--out", "amqp", broker=rabbitmq_server)
        gliaflow("submit", "large.nii", "--out", "memory")
        assert table(tmp_path / "amqp")["large"]["p_hgg"] == table(tmp_path / "memory")["large"]["p_hgg"]

    def test_broken_scans_are_reported_by_name_on_rabbitmq(self, gliaflow, pipeline, tmp_path, rabbitmq_server):
        (tmp_path / "scans").mkdir()
        check_broken_scans(gliaflow, tmp_path / "scans", tmp_path, rabbitmq_server)
        gliaflow("dead", "replay", "--all", broker=rabbitmq_server)
        deadline = time.monotonic() + 30
        while f"{len(BROKEN)} dead letters" not in gliaflow("dead", "list", broker=rabbitmq_server).stdout:
            assert time.monotonic() < deadline, "replayed messages fail again and become dead letters again"
        first = gliaflow("dead", "list", broker=rabbitmq_server).stdout.split()[0]
        assert "1 dead letters deleted" in gliaflow("dead", "delete", first, "--yes", broker=rabbitmq_server).stdout
        assert f"{len(BROKEN) - 1} dead letters" in gliaflow("dead", "list", broker=rabbitmq_server).stdout
        gliaflow("dead", "delete", "--all", "--yes", broker=rabbitmq_server)
        assert "\n0 dead letters" in "\n" + gliaflow("dead", "list", broker=rabbitmq_server).stdout

    def test_stages_hold_under_600_mb_on_a_scan_of_brats_size(self, gliaflow, pipeline, tmp_path, rabbitmq_server):
        scan = np.zeros((240, 240, 155), np.int16)
        x, y, z = np.ogrid[-1:1:240j, -1:1:240j, -1:1:155j]
        scan[(x / 0.6) ** 2 + (y / 0.75) ** 2 + (z / 0.9) ** 2 < 1] = 300
        scan += (scan > 0) * np.random.default_rng(0).integers(0, 60, scan.shape, dtype=np.int16)
        nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "whole.nii.gz")
        for _ in range(2):
            gliaflow("submit", "whole.nii.gz", "--out", "out", "--grade", "HGG", broker=rabbitmq_server)
        peaks = {name: stage.peak_rss_mb() for name, stage in pipeline.items()}
        assert max(peaks.values()) < 600, peaks


def test_generate_writes_features_that_depend_on_the_seed(gliaflow, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        gliaflow("generate", "--grade", "LGG", "--count", 100, "--seed", seed, "--out", f"{name}.safetensors")
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a["features"].shape[0] == 100
    assert a["features"].ndim == 4
    assert a["label"].tolist() == [1] * 100
    np.testing.assert_array_equal(a["features"], b["features"])
    assert (a["features"] != c["features"]).any()


def test_resume_skips_answered_scans(gliaflow, scans, tmp_path):
    gliaflow("submit", scans / "p0_flair.nii.gz", "--out", "out")
    before = table(tmp_path / "out")["p0_flair"]
    done = gliaflow("submit", scans, "--out", "out", "--resume")
    assert "1 of 3 scans have an answer" in done.stdout
    rows = table(tmp_path / "out")
    assert len(rows) == 3
    assert rows["p0_flair"] == before


def test_4d_scan_needs_a_channel(gliaflow, scans, tmp_path):
    flair = nib.load(scans / "p0_flair.nii.gz")
    volume = np.asarray(flair.dataobj)
    nib.save(nib.Nifti1Image(np.stack([volume * 0 + 1, volume], axis=3), flair.affine), tmp_path / "four.nii.gz")
    assert "--channel" in gliaflow("submit", "four.nii.gz", "--out", "x", check=False).stderr
    gliaflow("submit", "four.nii.gz", "--out", "four", "--channel", "1")
    gliaflow("submit", scans / "p0_flair.nii.gz", "--out", "three")
    assert table(tmp_path / "four")["four"]["p_hgg"] == table(tmp_path / "three")["p0_flair"]["p_hgg"]
    assert mask(tmp_path / "four", "four").shape == flair.shape


def test_bad_usage_prints_a_short_message_and_exits_with_2(monkeypatch, tmp_path, printed, capfd):
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("GLIAFLOW_"):
            monkeypatch.delenv(name)
    for name, value in environment(tmp_path, "memory://").items():
        monkeypatch.setenv(name, value)
    for arguments, message in (
        (("submit", "nowhere.nii", "--out", "x"), "nowhere.nii: no such file"),
        (("submit", ".", "--out", "x", "--grade", "IV"), "grade: 'IV' is not one of HGG, LGG"),
        (("demo", "--out", "x", "--bundle", "nowhere"), "no bundle 'nowhere'"),
        (("submit", ".", "--out", "x", "--broker", "http://x"), "expected memory://, amqp:// or amqps://"),
        (("generate", "--grade", "XYZ", "--count", "1", "--out", "x"), "grade: 'XYZ'"),
        (("serve", "extractor"), "memory://"),
        (("dead", "replay"), "--all"),
        (("submit", ".", "--out", "x", "--device", "a gpu"), "--device: 'a gpu'"),
    ):
        monkeypatch.setattr(sys, "argv", ["gliaflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2, arguments
        assert message in capfd.readouterr().err.replace("\n", " ")


@pytest.mark.rabbitmq
def test_another_generator_takes_over_and_no_request_is_lost(stages, rabbitmq_url):
    """Of ten waiting requests, one stage serves the first few and stops. A stage with another variant resumes."""
    (first,) = stages("generator")
    received: dict[str, list[SyntheticMessage]] = {}
    with connect(rabbitmq_url) as broker, Submission(broker, by_uri=False) as submission:
        requests = {submission.generate("LGG", 600, seed) for seed in range(10)}
        while requests - {id for id, parts in received.items() if len({p.part[0] for p in parts}) == parts[0].part[1]}:
            answer = submission.answer(30)
            assert isinstance(answer, SyntheticMessage), answer
            received.setdefault(answer.scan.id, []).append(answer)
            if len(received) == 2 and first.process.poll() is None:
                assert first.stop() == 0
                stages("generator", generator="reacgan")
    assert {part.generator for parts in received.values() for part in parts} == {"infogan", "reacgan"}


def test_unknown_generator_is_reported_with_those_of_the_bundle(gliaflow):
    done = gliaflow(
        "generate", "--grade", "LGG", "--count", "1", "--out", "x.npz", "--generator", "biggan", check=False
    )
    assert done.returncode == 2
    assert "has no 'biggan'; there is: infogan, reacgan" in done.stderr.replace("\n", " ")
