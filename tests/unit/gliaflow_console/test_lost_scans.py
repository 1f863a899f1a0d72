"""A dead letter whose scan is not there any more is not sent back: it would die of another reason."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gliaflow_console.letters import Letters
from gliaflow_console.lost_scans import ELSEWHERE, GONE
from gliaflow_proto import Queue, Source, encode
from gliaflow_proto.routing import CLIENT_EXCHANGE, PREPROCESSOR, STAGE_QUEUES
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from sample_messages import SCAN, SCAN_MESSAGE

EMPTY = "the file is empty"


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        for queue in STAGE_QUEUES:
            broker.declare(queue)
        yield broker


def bury(broker: MemoryBroker, source: Source) -> None:
    body = encode(replace(SCAN_MESSAGE, scan=replace(SCAN, label=None), source=source))
    key = PREPROCESSOR.keys[0]
    broker.dead_letter(Delivery(PREPROCESSOR.name, key, body, "id", exchange=CLIENT_EXCHANGE), EMPTY)


def lost(letters: Letters) -> str:
    """Why the only letter is lost. Then the console refuses to send it back, and it stays as it is."""
    [letter] = letters.listing()["letters"]
    if letter["lost"]:
        refused = {"id": letter["id"], "reason": letter["lost"]}
        for ids in ({letter["id"]}, None):
            assert letters.replay(ids) == {"sent": 0, "refused": [refused]}
        assert [each["reason"] for each in letters.listing()["letters"]] == [EMPTY]
    return str(letter["lost"])


def test_a_file_that_is_gone_or_in_no_folder_of_the_stages(broker: MemoryBroker, tmp_path: Path) -> None:
    scan = tmp_path / "uploads" / "Jane Döe.nii"
    bury(broker, Source(uri=scan.as_uri()))
    letters = Letters(broker, threading.Lock(), [str(scan.parent), "s3://bucket/scans"])
    assert lost(letters) == GONE
    scan.parent.mkdir()
    scan.write_bytes(b"")
    assert lost(letters) == ""
    others = Letters(broker, threading.Lock(), [str(tmp_path / "other")])
    assert lost(others) == ELSEWHERE
    scan.unlink()
    assert lost(others) == ELSEWHERE, "nobody learns which files there are in other folders"
    assert lost(Letters(broker, threading.Lock())) == "", "the stages of a broker may see other files"


def test_an_upload_that_its_sender_has_deleted(broker: MemoryBroker) -> None:
    bury(broker, Source(upload="gliaflow.upload.x", chunks=1))
    letters = Letters(broker, threading.Lock())
    assert lost(letters) == GONE
    broker.declare(Queue("gliaflow.upload.x", expires_s=60))
    assert lost(letters) == ""


@pytest.mark.parametrize("source", [Source(data=b"scan"), Source(uri="s3://bucket/scan.nii")])
def test_what_is_in_the_message_or_in_a_store_is_not_lost(broker: MemoryBroker, source: Source) -> None:
    bury(broker, source)
    letters = Letters(broker, threading.Lock(), ["/data"])
    assert lost(letters) == ""
    assert letters.replay(None)["sent"] == 1
