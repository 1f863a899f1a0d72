"""Scans in, grades and masks out: in one process, and in four on RabbitMQ, with the same answers."""

import csv
import re
import signal
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from broken import BROKEN, good_scan, write_broken
from gliaflow.scans import stem
from gliaflow.submission import Submission
from gliaflow_proto import MAX_MESSAGE_BYTES, Queue, SyntheticMessage, decode
from gliaflow_proto.routing import BALANCER
from gliaflow_runtime.broker.connect import connect
from safetensors.numpy import load_file

ALL = ("preprocessor", "extractor", "generator", "classifier")
COLUMNS = ["scan", "patient", "grade", "p_hgg", "tumour_ml", "slices", "status", "error", "bundle", "seconds"]


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return {row["scan"]: row for row in reader}


def mask(folder: Path, scan: str) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{scan}_seg.nii.gz").dataobj)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans, one of them turned, mirrored and stored as float64."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        good_scan(folder / f"p{number}_flair.nii.gz", seed=number)
    image = nib.load(folder / "p0_flair.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj, np.float64), turned.affine), folder / "turned.nii")
    return folder


def test_in_one_process(gliaflow, scans, tmp_path):
    gliaflow("submit", scans, "--out", "out")
    rows = table(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["ok"] * 3
    assert rows["p0_flair"]["p_hgg"] == rows["turned"]["p_hgg"]
    for name, path in (("p0_flair", "p0_flair.nii.gz"), ("turned", "turned.nii")):
        scan, found = nib.load(scans / path), nib.load(tmp_path / "out" / f"{name}_seg.nii.gz")
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
    straight, turned = (
        nib.as_closest_canonical(nib.load(tmp_path / "out" / f"{n}_seg.nii.gz")) for n in ("p0_flair", "turned")
    )
    np.testing.assert_array_equal(np.asarray(straight.dataobj), np.asarray(turned.dataobj))


@pytest.mark.rabbitmq
def test_four_processes_on_rabbitmq_give_the_same_answers(gliaflow, stages, scans, tmp_path, rabbitmq_url):
    running = stages(*ALL, "extractor", "classifier")  # and two replicas, which share the parts of each scan
    gliaflow("submit", scans, "--out", "memory")
    gliaflow("submit", scans, "--out", "amqp", broker=rabbitmq_url)
    expected, found = table(tmp_path / "memory"), table(tmp_path / "amqp")
    assert expected.keys() == found.keys()
    for name, row in expected.items():
        assert row["p_hgg"] == found[name]["p_hgg"]
        np.testing.assert_array_equal(mask(tmp_path / "memory", name), mask(tmp_path / "amqp", name))
    for stage in running:
        status, metrics = stage.get("/metrics")
        assert status == 200
        assert 'doing="wait"' in metrics
        assert 'doing="compute"' in metrics
        assert stage.get("/livez")[0] == 200
        assert stage.stop() == 0, "SIGTERM drains and leaves with 0"


@pytest.mark.rabbitmq
def test_a_scan_too_large_for_a_message_travels_in_chunks(gliaflow, stages, tmp_path, rabbitmq_url):
    stages(*ALL)
    scan = np.zeros((120, 120, 100), np.float64)
    scan[20:100, 20:100] = np.random.default_rng(0).normal(100, 10, (80, 80, 100))
    nib.save(nib.Nifti1Image(scan, np.diag([2.0, 2, 2, 1])), tmp_path / "large.nii")
    assert (tmp_path / "large.nii").stat().st_size > MAX_MESSAGE_BYTES
    gliaflow("submit", "large.nii", "--out", "amqp", broker=rabbitmq_url)
    gliaflow("submit", "large.nii", "--out", "memory")
    assert table(tmp_path / "amqp")["large"]["p_hgg"] == table(tmp_path / "memory")["large"]["p_hgg"]


@pytest.mark.rabbitmq
def test_a_stage_killed_in_mid_work_loses_nothing(gliaflow, stages, scans, tmp_path, rabbitmq_url):
    stages("preprocessor", "generator")
    doomed = stages("extractor", "classifier")
    for number in range(2, 12):
        good_scan(scans / f"p{number}_flair.nii.gz", seed=number)
    client = threading.Thread(target=gliaflow, args=("submit", scans, "--out", "out"), kwargs={"broker": rabbitmq_url})
    client.start()
    time.sleep(3)
    for stage in doomed:
        stage.stop(signal.SIGKILL)
    stages("extractor", "classifier")
    client.join()
    rows = table(tmp_path / "out")
    assert len(rows) == 13
    assert {row["status"] for row in rows.values()} == {"ok"}


def check_broken(gliaflow, folder, tmp_path, broker):
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


def test_broken_files_are_named_and_the_good_ones_answered(gliaflow, tmp_path):
    (tmp_path / "scans").mkdir()
    check_broken(gliaflow, tmp_path / "scans", tmp_path, "memory://")


@pytest.mark.rabbitmq
def test_broken_files_on_rabbitmq(gliaflow, stages, tmp_path, rabbitmq_url):
    stages(*ALL)
    (tmp_path / "scans").mkdir()
    check_broken(gliaflow, tmp_path / "scans", tmp_path, rabbitmq_url)
    gliaflow("dead", "replay", "--all", broker=rabbitmq_url)
    deadline = time.monotonic() + 30
    while f"{len(BROKEN)} dead letters" not in gliaflow("dead", "list", broker=rabbitmq_url).stdout:
        assert time.monotonic() < deadline, "replayed messages fail again, and are dead letters again"


def test_generate_writes_features_that_follow_the_seed(gliaflow, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        gliaflow("generate", "--grade", "LGG", "--count", 100, "--seed", seed, "--out", f"{name}.safetensors")
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a["features"].shape[0] == 100
    assert a["features"].ndim == 4
    assert a["label"].tolist() == [1] * 100
    np.testing.assert_array_equal(a["features"], b["features"])
    assert (a["features"] != c["features"]).any()


@pytest.mark.rabbitmq
def test_the_generator_balances_labelled_scans(gliaflow, stages, scans, rabbitmq_url):
    (*_, generator, _) = stages(*ALL)
    with connect(rabbitmq_url) as broker:
        tap = Queue("gliaflow.test", ("synthetic.#",), expires_s=600)
        broker.declare(tap)
        for grade in ("HGG", "HGG", "LGG"):
            gliaflow("submit", scans, "--out", "out", "--grade", grade, broker=rabbitmq_url)
        deadline = time.monotonic() + 30
        while broker.depth(BALANCER.name) and time.monotonic() < deadline:
            time.sleep(0.1)
        with broker.consume(tap, 100) as consumer:
            message = decode(consumer.next(30).body)
        broker.delete(tap.name)
    assert message.label == "LGG", "half as many slices are LGG as HGG: LGG is behind"
    metrics = generator.get("/metrics")[1]
    assert 'gliaflow_synthetic_total{label="LGG",verdict="accepted"}' in metrics
    assert 'gliaflow_synthetic_total{label="LGG",verdict="refused"}' in metrics


def test_resume_passes_over_what_is_answered(gliaflow, scans, tmp_path):
    gliaflow("submit", scans / "p0_flair.nii.gz", "--out", "out")
    before = table(tmp_path / "out")["p0_flair"]
    done = gliaflow("submit", scans, "--out", "out", "--resume")
    assert "1 of 3 scans have an answer" in done.stdout
    rows = table(tmp_path / "out")
    assert len(rows) == 3
    assert rows["p0_flair"] == before


def test_a_4d_scan_needs_its_channel(gliaflow, scans, tmp_path):
    flair = nib.load(scans / "p0_flair.nii.gz")
    volume = np.asarray(flair.dataobj)
    nib.save(nib.Nifti1Image(np.stack([volume * 0 + 1, volume], axis=3), flair.affine), tmp_path / "four.nii.gz")
    assert "--channel" in gliaflow("submit", "four.nii.gz", "--out", "x", check=False).stderr
    gliaflow("submit", "four.nii.gz", "--out", "four", "--channel", "1")
    gliaflow("submit", scans / "p0_flair.nii.gz", "--out", "three")
    assert table(tmp_path / "four")["four"]["p_hgg"] == table(tmp_path / "three")["p0_flair"]["p_hgg"]
    assert mask(tmp_path / "four", "four").shape == flair.shape


def test_bad_usage_is_told_in_one_line_with_exit_code_2(gliaflow):
    for arguments, said in (
        (("submit", "nowhere.nii", "--out", "x"), "nowhere.nii: no such file"),
        (("submit", ".", "--out", "x", "--grade", "IV"), "--grade: 'IV' is not one of HGG, LGG"),
        (("demo", "--out", "x", "--bundle", "nowhere"), "manifest.json: no such file"),
        (("submit", ".", "--out", "x", "--broker", "http://x"), "expected memory://, amqp:// or amqps://"),
        (("generate", "--grade", "XYZ", "--count", "1", "--out", "x"), "--grade"),
        (("serve", "extractor"), "memory://"),
        (("dead", "replay"), "--all"),
        (("submit", ".", "--out", "x", "--device", "tpu"), "device"),
    ):
        done = gliaflow(*arguments, check=False)
        assert done.returncode == 2, arguments
        assert said in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.rabbitmq
def test_a_stage_holds_under_600_mb_on_a_whole_brats_sized_scan(gliaflow, stages, tmp_path, rabbitmq_url):
    scan = np.zeros((240, 240, 155), np.int16)
    x, y, z = np.ogrid[-1:1:240j, -1:1:240j, -1:1:155j]
    scan[(x / 0.6) ** 2 + (y / 0.75) ** 2 + (z / 0.9) ** 2 < 1] = 300
    scan += (scan > 0) * np.random.default_rng(0).integers(0, 60, scan.shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "whole.nii.gz")
    running = stages(*ALL)
    for _ in range(2):
        gliaflow("submit", "whole.nii.gz", "--out", "out", "--grade", "HGG", broker=rabbitmq_url)
    held = {name: stage.rss_mb() for name, stage in zip(ALL, running, strict=True)}
    assert max(held.values()) < 600, held


@pytest.mark.rabbitmq
def test_another_generator_takes_over_and_no_request_is_lost(stages, rabbitmq_url):
    """Ten requests wait; in their midst the stage is told to stop, and one with another variant goes on."""
    (first,) = stages("generator")
    got: dict[str, list[SyntheticMessage]] = {}
    with connect(rabbitmq_url) as broker, Submission(broker, by_uri=False) as submission:
        wanted = {submission.generate("LGG", 600, seed) for seed in range(10)}
        while wanted - {scan for scan, parts in got.items() if len({p.part[0] for p in parts}) == parts[0].part[1]}:
            answer = submission.answer(30)
            assert isinstance(answer, SyntheticMessage), answer
            got.setdefault(answer.scan.id, []).append(answer)
            if len(got) == 2 and first.process.poll() is None:
                assert first.stop() == 0
                stages("generator", generator="reacgan")
    assert {part.generator for parts in got.values() for part in parts} == {"infogan", "reacgan"}


def test_a_generator_that_the_bundle_lacks_is_told_with_those_it_has(gliaflow):
    done = gliaflow("generate", "--grade", "LGG", "--count", "1", "--out", "x", "--generator", "biggan", check=False)
    assert done.returncode == 2
    assert "has no 'biggan'; there is: infogan, reacgan" in done.stderr.replace("\n", " ")
