"""The recorder: labelled features reach the store through its queue. What is stored never changes."""

import dataclasses
import errno
import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from gliaflow_cli.main import app
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_proto import (
    FailureMessage,
    FeaturesMessage,
    Geometry,
    ProtocolError,
    Queue,
    Scan,
    ScanMessage,
    Source,
    encode,
)
from gliaflow_proto.routing import ALL_QUEUES, RECORDER, STAGE_QUEUES, routing_key
from gliaflow_runner.broker import open_broker
from gliaflow_runtime.broker.connect import connect, forget
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import InvalidInput, TemporarilyUnavailable, Worker
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, part_path, write_part
from gliaflow_store.recorder import Recorder, nearly_equal
from prometheus_client import REGISTRY
from sample_scans import good_scan
from structlog.testing import capture_logs
from typer.testing import CliRunner

ROOT = Path(__file__).parents[3]
GEOMETRY = Geometry(
    affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    shape=[8, 8, 6],
    orientation=[0, 1, 1, 1, 2, 1],
    origin=[0.0, 0.0],
    step=[1.0, 1.0],
    size=[8, 8],
    slices=[3, 4],
)
ORIGIN = FeatureOrigin("b@1", "enc5", (3, 4, 4))
SCAN = Scan(id="s", submission="sub", name="s.nii", patient="p", cohort="c", label="LGG")


def part(**changes):
    """Features of two slices; the second has 9 tumour pixels."""
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[1, 2:5, 2:5] = 1
    features = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).astype(np.float16)
    message = FeaturesMessage(
        id="m", scan=SCAN, bundle="b@1", tap="enc5", geometry=GEOMETRY, features=features, mask=mask
    )
    return dataclasses.replace(message, **changes)


def scan(**changes):
    return dataclasses.replace(SCAN, **changes)


def recorder_of(folder, **options):
    return Recorder(folder, ORIGIN, **options)


def content(folder):
    """The bytes of each file, by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def record(recorder, message):
    return recorder.handle(message, Delivery(RECORDER.name, routing_key(message), b""))


@contextmanager
def running(*workers):
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(20)


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_part_is_a_file_of_the_store(tmp_path):
    outcome = record(recorder_of(tmp_path / "new" / "store"), part())
    assert list(outcome.publish) == []
    store = FeatureStore(tmp_path / "new" / "store")
    assert (store.patients.tolist(), store.cohorts.tolist(), store.labels.tolist()) == (["p"] * 2, ["c"] * 2, [1, 1])
    assert (store.slices.tolist(), store.tumour.tolist()) == ([3, 4], [0, 9])
    assert (store.bundle, store.tap, store.shape) == ("b@1", "enc5", (3, 4, 4))
    np.testing.assert_array_equal(store.batch(np.array([1, 0])), part().features[::-1])
    np.testing.assert_array_equal(store.masks(np.arange(2)), part().mask)


def moved(features, slices=1):
    """The features as another processor computes them: nearly the same, but a window of some slices has moved."""
    features = (features.astype(np.float32) * 1.001).astype(np.float16)
    features[:slices] = np.roll(features[:slices], 1, axis=3)
    return features


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"id": "m2", "scan": scan(submission="again", attempt=3, sent=5.0)},
        {"features": (part().features * np.float16(1.001)).astype(np.float16)},
        {"mask": np.ones((2, 8, 8), np.uint8)},
    ],
    ids=["delivered again", "submitted again", "by another processor", "with another mask"],
)
def test_a_part_that_is_stored_and_comes_again_is_acknowledged_and_its_file_stays(tmp_path, changes):
    record(recorder_of(tmp_path), part())
    before = content(tmp_path)
    outcome = record(recorder_of(tmp_path), part(**changes))
    assert (list(outcome.publish), outcome.done) == ([], None), "the delivery is acknowledged"
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"scan": scan(label="HGG")}, "label"),
        ({"scan": scan(patient="Jane Doe")}, "patient"),
        ({"scan": scan(label="HGG", patient="Jane Doe", cohort="d")}, "label, patient, cohort"),
        ({"part": [0, 2]}, "number of parts"),
        ({"part": [1, 2]}, "number of parts"),
        ({"geometry": dataclasses.replace(GEOMETRY, slices=[4, 5])}, "slices"),
        ({"features": part().features[:, ::-1]}, "features"),
        ({"features": np.zeros((2, 3, 4, 4), np.float16)}, "features"),
    ],
)
def test_a_part_that_contradicts_the_stored_scan_is_refused_and_the_stored_one_stays(tmp_path, changes, differs):
    record(recorder_of(tmp_path), part())
    before = content(tmp_path)
    with pytest.raises(
        InvalidInput, match=f"differs in {differs}\\. To replace it: gliaflow store .* --remove"
    ) as refused:
        record(recorder_of(tmp_path), part(**changes))
    assert "Jane" not in str(refused.value)
    assert content(tmp_path) == before


def test_a_later_part_of_another_scan_with_the_same_id_is_refused(tmp_path):
    """Else it would make the stored scan unusable."""
    for index in (0, 1):
        record(recorder_of(tmp_path), part(part=[index, 2]))
    for changes in ({"part": [2, 3]}, {"part": [5, 9], "scan": scan(label="HGG")}):
        with pytest.raises(InvalidInput, match="differs in"):
            record(recorder_of(tmp_path), part(**changes))
    store = FeatureStore(tmp_path)
    assert (len(store), store.problems) == (4, [])


@pytest.mark.parametrize(("label", "refused"), [("LGG", False), ("HGG", True)])
def test_of_two_recorders_on_one_folder_the_first_wins(tmp_path, monkeypatch, label, refused):
    def beaten(folder, mine):
        monkeypatch.setattr("gliaflow_store.recorder.write_part", write_part)
        record(recorder_of(folder), part(scan=scan(label=label)))  # the other recorder, at the last moment
        return write_part(folder, mine)

    monkeypatch.setattr("gliaflow_store.recorder.write_part", beaten)
    if refused:
        with pytest.raises(InvalidInput, match="differs in label"):
            record(recorder_of(tmp_path), part())
    else:
        record(recorder_of(tmp_path), part())
    assert len(content(tmp_path)) == 1
    assert FeatureStore(tmp_path).labels.tolist() == [("HGG", "LGG").index(label)] * 2


def test_most_slices_decide_whether_features_are_nearly_equal():
    features = np.random.default_rng(0).random((9, 3, 4, 4)).astype(np.float16)
    features[6:] = 0  # cropped, and without tumour
    assert nearly_equal(features, moved(features, 2))
    assert not nearly_equal(features, moved(features, 4))
    assert not nearly_equal(features, np.random.default_rng(1).random((9, 3, 4, 4)).astype(np.float16))
    assert nearly_equal(features[6:], features[6:])


def test_a_stored_file_that_cannot_be_read_stays_and_is_named(tmp_path):
    record(recorder_of(tmp_path), part())
    path = part_path(tmp_path, "s", 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match=f"{path.name}: cut short; delete that file"):
        record(recorder_of(tmp_path), part())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scan": Scan(id="s")}, "label: None"),
        ({"scan": Scan(id="s", label="GBM")}, "label: 'GBM' is not one of HGG, LGG"),
        ({"features": np.full((2, 3, 4, 4), np.nan, np.float16)}, "finite"),
        ({"features": np.full((2, 3, 4, 4), np.inf, np.float16)}, "finite"),
        ({"features": np.ones((2, 3, 4, 4), np.float32)}, "float32, expected finite FP16"),
        ({"features": np.ones((3, 3, 4, 4), np.float16)}, r"\(3, 3, 4, 4\), expected \[2, C, H, W\]"),
        ({"features": np.ones((2, 3), np.float16)}, r"expected \[2, C, H, W\]"),
        ({"features": np.ones((2, 0, 4, 4), np.float16)}, r"expected \[2, C, H, W\]"),
        ({"mask": np.zeros((2, 8, 9), np.uint8)}, "mask"),
        ({"mask": np.zeros((2, 8, 8), np.float32)}, "mask: float32"),
        ({"features": np.ones((2, 3, 5, 4), np.float16)}, "3×5×4 of tap enc5 of b@1, but this recorder stores 3×4×4"),
        ({"tap": "dec3"}, "give extractor and trainer the same bundle and tap"),
        ({"scan": scan(id="x" * 600)}, "scan.id: 600 characters, over the limit"),
        ({"scan": scan(patient="x" * 600)}, "scan.patient: 600 characters, over the limit"),
    ],
)
def test_invalid_features_are_refused(tmp_path, changes, reason):
    with pytest.raises(InvalidInput, match=reason):
        record(recorder_of(tmp_path), part(**changes))
    assert content(tmp_path) == {}


def test_features_of_another_bundle_are_passed_over_with_a_warning_and_counted(tmp_path):
    """A bundle that is replaced stage by stage leaves no dead letter."""
    broker = open_broker(Settings(broker="memory://", state=tmp_path / "state"))
    labels = {"stage": "recorder"}
    counted = REGISTRY.get_sample_value("gliaflow_other_bundle_total", labels) or 0
    with capture_logs() as logs:
        with running(Worker(recorder_of(tmp_path / "store"), broker.attach())):
            wait_for(lambda: broker.depth(RECORDER.name) == 0)
            for message in (part(bundle="b@2", tap="dec3", scan=scan(id="old", label="new class")), part()):
                broker.publish(routing_key(message), encode(message))
            wait_for(lambda: content(tmp_path / "store"))
        assert broker.depth(RECORDER.dead) == 0
    assert {*FeatureStore(tmp_path / "store").scans} == {"s"}
    (line,) = (line for line in logs if line["log_level"] == "warning")
    assert (line["event"], line["scan"]) == ("passed over", "old")
    assert "the features are of b@2, but this recorder serves b@1; give all stages the same bundle" in line["reason"]
    assert REGISTRY.get_sample_value("gliaflow_other_bundle_total", labels) == counted + 1


@pytest.mark.parametrize("filled", ["before the start", "later"])
def test_a_folder_with_features_of_another_bundle_is_refused(tmp_path, filled):
    """It stays a refusal: no replacement of a bundle ends it."""
    recorder = recorder_of(tmp_path)
    record(Recorder(tmp_path, ORIGIN._replace(bundle="b@2")), part(bundle="b@2", scan=scan(id="other")))
    with pytest.raises(InvalidInput, match=r"3×4×4 of tap enc5 of b@1, but .* has .* of b@2; use another folder"):
        record(recorder if filled == "later" else recorder_of(tmp_path), part())


def test_the_recorder_stops_before_the_disk_is_full(tmp_path):
    """A dead letter at once: with retries, a full store would block the extractor."""
    with pytest.raises(
        InvalidInput, match=r"store is full.*1e\+09 GiB stay free \(GLIAFLOW_STORE_FREE_GIB\).*dead replay"
    ):
        record(recorder_of(tmp_path, keep_free=10**9 * 2**30), part())
    assert content(tmp_path) == {}
    record(recorder_of(tmp_path), part())
    record(recorder_of(tmp_path, keep_free=10**9 * 2**30), part())  # it is stored, and needs no space


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (errno.ENOSPC, InvalidInput, "the store is full"),
        (errno.EDQUOT, InvalidInput, "the store is full"),
        (errno.EIO, TemporarilyUnavailable, "the store cannot be written: Input/output error"),
    ],
)
def test_an_error_of_the_disk(tmp_path, monkeypatch, code, error, reason):
    def fails(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("gliaflow_store.recorder.write_part", fails)
    with pytest.raises(error, match=reason):
        record(recorder_of(tmp_path), part())


def test_files_that_killed_recorders_left_are_removed_after_an_hour(tmp_path):
    old, new, other = (tmp_path / name for name in (".a.safetensors.1.part", ".b.safetensors.2.part", "mine.txt"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    recorder_of(tmp_path)
    assert {*tmp_path.iterdir()} == {new, other}


def test_another_kind_of_message_is_refused(tmp_path):
    with pytest.raises(ProtocolError, match="expected 'features'"):
        record(recorder_of(tmp_path), FailureMessage(id="f", scan=Scan(id="s"), stage="x", reason="y"))


def test_a_refused_part_becomes_a_dead_letter_and_does_not_fail_its_scan(tmp_path):
    forget("memory://")
    settings = Settings(broker="memory://", state=tmp_path / "state")
    broker = open_broker(settings)
    failures = Queue("failures", ("failure.sub",))
    broker.declare(failures)
    broker.declare(RECORDER)
    bad = part(features=np.full((2, 3, 4, 4), np.nan, np.float16))
    for message in (bad, part()):
        broker.publish(routing_key(message), encode(message))
    with running(Worker(recorder_of(tmp_path / "store"), broker.attach())):
        wait_for(lambda: list((tmp_path / "store").glob("*.safetensors")))
    assert broker.depth(failures.name) == 0, "no failure is announced"
    listed = CliRunner().invoke(app, ["dead", "list", "--broker", "memory://"])
    assert listed.exit_code == 0, listed.exception
    assert "finite" in listed.output
    assert "1 dead letters" in listed.output


@pytest.mark.parametrize("where", ["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_labelled_scans_pass_the_stages_and_are_stored(tmp_path, where, request):
    url = "memory://" if where == "memory" else request.getfixturevalue("rabbitmq_url")
    bundle = load_bundle(None)
    first = connect(url)
    brokers = [first, *(first.attach() if where == "memory" else connect(url) for _ in range(3))]
    stages = [
        Preprocessor(bundle, brokers[1], []),
        Extractor(bundle, UNetSession(bundle, threads=1)),
        Recorder(tmp_path / "st", FeatureOrigin(bundle.id, bundle.tap, bundle.tap_shape)),
    ]
    workers = [Worker(stage, broker) for stage, broker in zip(stages, brokers[1:], strict=True)]
    first.delete(RECORDER.name)
    try:
        for worker in workers:
            first.declare(worker.stage.queue)
        for number, label in enumerate(["HGG", "LGG"]):
            good_scan(tmp_path / "scan.nii.gz", seed=number)
            source = Source(data=(tmp_path / "scan.nii.gz").read_bytes())
            scan = Scan(id=f"s{number}", patient=f"p{number}", label=label)
            message = ScanMessage(id=f"m{number}", scan=scan, source=source)
            first.publish(routing_key(message), encode(message))

        def complete():
            try:
                return set(FeatureStore(tmp_path / "st").scans) == {"s0", "s1"}
            except ValueError:
                return False

        with running(*workers):
            wait_for(complete)
    finally:
        first.delete(RECORDER.name)
        first.delete(RECORDER.dead)
        for broker in brokers:
            broker.close()
    store = FeatureStore(tmp_path / "st")
    assert (store.shape, store.bundle, store.tap) == (bundle.tap_shape, bundle.id, bundle.tap)
    assert set(zip(store.patients.tolist(), store.labels.tolist(), strict=True)) == {("p0", 0), ("p1", 1)}
    for scan in ("s0", "s1"):
        slices = store.slices[store.scans == scan]
        assert slices.tolist() == list(range(slices[0], slices[0] + len(slices)))  # every slice, once, in order
    assert store.problems == []


def test_other_stages_do_not_declare_the_recorders_queue():
    """Without a consumer, features would fill the queue and block the extractor."""
    assert RECORDER not in STAGE_QUEUES
    assert (*STAGE_QUEUES, RECORDER) == ALL_QUEUES


def test_every_queue_has_a_policy_and_the_recorders_queue_expires():
    definitions = json.loads((ROOT / "deploy" / "rabbitmq" / "definitions.json").read_text())
    policies = {policy["name"]: policy["definition"] for policy in definitions["policies"]}
    assert {queue.name for queue in ALL_QUEUES} <= policies.keys()
    recorder = policies[RECORDER.name]
    assert (recorder["overflow"], recorder["dead-letter-exchange"]) == ("reject-publish", RECORDER.dead)
    assert recorder["expires"] > 0
