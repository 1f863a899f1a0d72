"""The recorder: labelled features reach the store through its queue; invalid ones are refused."""

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
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import InvalidInput, TemporarilyUnavailable, Worker
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.recorder import Recorder
from sample_scans import good_scan
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


def part(**changes):
    """Features of two slices; the second has 9 tumour pixels."""
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[1, 2:5, 2:5] = 1
    features = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).astype(np.float16)
    scan = Scan(id="s", submission="sub", name="s.nii", patient="p", cohort="c", label="LGG")
    message = FeaturesMessage(
        id="m", scan=scan, bundle="b@1", tap="enc5", geometry=GEOMETRY, features=features, mask=mask
    )
    return dataclasses.replace(message, **changes)


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
    outcome = record(Recorder(tmp_path / "new" / "store"), part())
    assert list(outcome.publish) == []
    store = FeatureStore(tmp_path / "new" / "store")
    assert (store.patients.tolist(), store.cohorts.tolist(), store.labels.tolist()) == (["p"] * 2, ["c"] * 2, [1, 1])
    assert (store.slices.tolist(), store.tumour.tolist()) == ([3, 4], [0, 9])
    assert (store.bundle, store.tap, store.shape) == ("b@1", "enc5", (3, 4, 4))
    np.testing.assert_array_equal(store.batch(np.array([1, 0])), part().features[::-1])
    np.testing.assert_array_equal(store.masks(np.arange(2)), part().mask)


def test_a_redelivered_part_replaces_its_file(tmp_path):
    for _ in range(2):
        record(Recorder(tmp_path), part())
    assert len(list(tmp_path.iterdir())) == 1


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
        ({"features": np.ones((2, 3, 5, 4), np.float16)}, "3×5×4 of tap enc5 of b@1, but .* has 3×4×4"),
        ({"tap": "dec3"}, "use another folder"),
        ({"bundle": "b@2"}, "use another folder"),
    ],
)
def test_invalid_features_are_refused(tmp_path, changes, reason):
    record(Recorder(tmp_path), part())
    for recorder in (Recorder(tmp_path), Recorder(tmp_path)):  # a recorder that starts later also knows the store
        with pytest.raises(InvalidInput, match=reason):
            record(recorder, part(**changes))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_a_temporary_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gliaflow_store.recorder.write_part", full)
    with pytest.raises(TemporarilyUnavailable, match="the store cannot be written: No space left on device"):
        record(Recorder(tmp_path), part())


def test_another_kind_of_message_is_refused(tmp_path):
    with pytest.raises(ProtocolError, match="expected 'features'"):
        record(Recorder(tmp_path), FailureMessage(id="f", scan=Scan(id="s"), stage="x", reason="y"))


def test_a_refused_part_becomes_a_dead_letter_and_does_not_fail_its_scan(tmp_path):
    settings = Settings(broker="memory://", state=tmp_path / "state")
    broker = open_broker(settings)
    failures = Queue("failures", ("failure.sub",))
    broker.declare(failures)
    broker.declare(RECORDER)
    bad = part(features=np.full((2, 3, 4, 4), np.nan, np.float16))
    for message in (bad, part()):
        broker.publish(routing_key(message), encode(message))
    with running(Worker(Recorder(tmp_path / "store"), broker.attach())):
        wait_for(lambda: list((tmp_path / "store").glob("*.safetensors")))
    assert broker.depth(failures.name) == 0, "no failure is announced"
    listed = CliRunner().invoke(app, ["dead", "list", "--broker", "memory://"]).output
    assert "finite" in listed
    assert "1 dead letters" in listed


@pytest.mark.parametrize("where", ["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_labelled_scans_pass_the_stages_and_are_stored(tmp_path, where, request):
    url = "memory://" if where == "memory" else request.getfixturevalue("rabbitmq_url")
    bundle = load_bundle(None)
    first = connect(url)
    brokers = [first, *(first.attach() if where == "memory" else connect(url) for _ in range(3))]
    stages = [
        Preprocessor(bundle, brokers[1], []),
        Extractor(bundle, UNetSession(bundle, threads=1)),
        Recorder(tmp_path / "st"),
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
    assert (recorder["overflow"], recorder["dead-letter-routing-key"]) == ("reject-publish", RECORDER.dead_key)
    assert recorder["expires"] > 0
