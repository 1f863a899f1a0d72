"""Names of patients and scans are in messages, because answers need them, and in no log, metric, id, key or reason."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgpack
import nibabel as nib
import numpy as np
import pytest
from gliaflow.answer import PackedMask, write_image
from gliaflow.scans import Input
from gliaflow.submission import Submission
from gliaflow_proto import FailureMessage, PredictionMessage, Queue
from gliaflow_runner.running import RunningStages
from gliaflow_runner.services import PIPELINE
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import Settings
from prometheus_client import generate_latest
from sample_scans import good_scan

NAME = "Doe_Jane_1970"  # stands in the file's name, path and header, and is the patient's name


def scan_with_texts(path: Path) -> Path:
    """A scan whose header names the patient in every text field of NIfTI."""
    image = nib.load(good_scan(path))
    for field, size in (("descrip", 80), ("aux_file", 24), ("intent_name", 16), ("db_name", 18), ("data_type", 10)):
        image.header[field] = NAME.encode()[:size]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    assert NAME.encode() in gzip.decompress(path.read_bytes())
    return path


def send_all(broker: Broker, roots: Path, out: Path) -> list[str]:
    """Send one good scan and broken bytes for each kind of failure. Returns the reasons of the failures."""
    folder = roots / NAME
    folder.mkdir(parents=True)
    good = scan_with_texts(folder / f"{NAME}.nii.gz")
    whole = good.read_bytes()
    broken = {
        "no gzip": b"\x1f\x8b" + NAME.encode() * 40,
        "no scan": NAME.encode() * 40,
        "cut short": whole[: len(whole) // 2],
        "magic": gzip.decompress(whole)[:344] + NAME.encode()[:4] + gzip.decompress(whole)[348:],
        "datatype": gzip.decompress(whole)[:70] + NAME.encode()[:2] + gzip.decompress(whole)[72:],
    }
    four = nib.Nifti1Image(np.ones((8, 8, 8, 2), np.int16), np.eye(4)).to_bytes()
    reasons: list[str] = []
    numbers = count()
    with Submission(broker, by_uri=False) as submission:

        def raw(**changes: object) -> None:
            number = f"raw-{next(numbers)}"
            scan = {"id": number, "submission": submission.id, "name": NAME, "patient": NAME}
            message = {"schema": "gliaflow/1", "kind": "scan", "id": number, "scan": scan} | changes
            broker.publish("scan", msgpack.packb(message), message_id=number)

        submission.submit(Input(good, NAME, NAME, grade="HGG", cohort=NAME))
        for kind, data in broken.items():
            (folder / f"{NAME}-{kind}.nii").write_bytes(data)
            submission.submit(Input(folder / f"{NAME}-{kind}.nii", f"{NAME}-{kind}", NAME))
        raw(source={"data": four}, channel=NAME)
        raw(source={"uri": (folder / "gone.nii").as_uri()})
        raw(source={"uri": f"file:///elsewhere/{NAME}.nii"})
        raw(source={"uri": folder.as_uri()}, channel="0")
        raw(source={"upload": f"gliaflow.upload.{NAME}", "chunks": 1}, part=[0, 1])
        raw(source={"upload": NAME, "chunks": 1}, trace="")
        raw(scan={"id": "x", "submission": submission.id, "patient": [NAME]})  # not decodable: no answer
        raw(scan={"id": "y", "submission": NAME + " "})
        answered = False
        while len(reasons) < len(broken) + 6 or not answered:
            answer = submission.answer(60)
            assert answer is not None, reasons
            if isinstance(answer, FailureMessage):
                reasons.append(answer.reason)
            if isinstance(answer, PredictionMessage):
                answered = True
                assert answer.scan.patient == NAME, "messages carry the name"
                write_image(out, PackedMask.of(answer).image())
    assert NAME.encode() not in gzip.decompress(out.read_bytes()), "the mask's header carries none of the scan's texts"
    return reasons


def assert_no_name(texts: dict[str, str]) -> None:
    for source, text in texts.items():
        assert NAME not in text, source
        assert NAME[:4] not in text, source


def test_one_process_leaks_no_name(tmp_path: Path, printed: Callable[[], str]) -> None:
    settings = Settings(broker="memory://privacy", roots=[str(tmp_path / "roots")], state=tmp_path / "state", threads=1)
    configure_logging("debug", "json")
    with RunningStages(PIPELINE, settings), connect(settings.broker) as broker:
        reasons = send_all(broker, tmp_path / "roots", tmp_path / "mask.nii.gz")
    logged = printed()
    assert "dead letter" in logged, "the process did log"
    assert_no_name({"printed": logged, "reasons": " ".join(reasons), "metrics": generate_latest().decode()})


@pytest.mark.rabbitmq
def test_four_processes_and_rabbitmq_leak_no_name(
    stages: Callable, rabbitmq_url: str, rabbitmqctl: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "roots").mkdir()
    running = stages(*PIPELINE, log_level="debug", roots=f'["{tmp_path / "roots"}"]')
    with connect(rabbitmq_url) as broker, connect(rabbitmq_url) as client:
        everything = Queue("gliaflow.test-privacy", ("#",), expires_s=60)
        broker.declare(everything)
        reasons = send_all(client, tmp_path / "roots", tmp_path / "mask.nii.gz")
        texts = {"reasons": " ".join(reasons), "queues": rabbitmqctl("list_queues", "name")}
        texts["connections"] = rabbitmqctl("list_connections", "name", "client_properties")
        with broker.consume(everything, 100) as consumer:
            while delivery := consumer.next(2):
                headers = " ".join(f"{name} {value}" for name, value in delivery.headers.items())
                texts[f"{delivery.key} {delivery.message_id}"] = f"{delivery.key} {delivery.message_id} {headers}"
                consumer.ack(delivery)
        broker.delete(everything.name)
    assert len(texts) > 15, "the queue received the messages"
    for stage in running:
        texts |= {f"{stage.port}{path}": stage.get(path)[1] for path in ("/metrics", "/readyz", "/livez")}
        assert stage.stop() == 0
        texts[stage.log.name] = stage.log.read_text()
    assert any("dead letter" in text for text in texts.values()), "the stages did log"
    assert_no_name(texts)
