"""The exchange and key of each message, which its receiver checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gliaflow_proto import Message, ProtocolError, Scan, Source, routing_key
from gliaflow_proto.messages import ScanMessage
from gliaflow_proto.routing import check_route, exchange_of
from sample_messages import ONE_OF_EACH

UNLABELLED = ScanMessage(id="m", scan=Scan(id="s", submission="sub"), source=Source(data=b""))
LABELLED = replace(UNLABELLED, scan=replace(UNLABELLED.scan, label="HGG"))
ROUTES = {(exchange_of(routing_key(message)), routing_key(message)) for message in (*ONE_OF_EACH, UNLABELLED)}


def test_clients_publish_to_exchanges_of_their_own():
    assert exchange_of("scan") == exchange_of("generate") == exchange_of("upload.abc") == "gliaflow.client"
    assert exchange_of("scan.labelled") == "gliaflow.labelled"
    assert {exchange_of(key) for key in ("slices", "features.labelled", "prediction.sub")} == {"gliaflow"}


@pytest.mark.parametrize("message", [*ONE_OF_EACH, UNLABELLED], ids=routing_key)
def test_a_message_is_accepted_by_its_own_route_only(message: Message):
    key = routing_key(message)
    check_route(message, exchange_of(key), key)
    for exchange, other in ROUTES - {(exchange_of(key), key)}:
        with pytest.raises(ProtocolError, match="must be published to the exchange"):
            check_route(message, exchange, other)


def test_a_key_that_the_sender_may_use_does_not_help_behind_an_exchange_of_its_own():
    for exchange in ("amq.gen-mine", "gliaflow.submission.mine", "gliaflow.upload.mine"):
        with pytest.raises(ProtocolError, match=r"'gliaflow\.client' with the key 'scan'"):
            check_route(UNLABELLED, exchange, "scan")


def test_a_label_needs_the_exchange_for_labelled_scans():
    for key in ("scan", "scan.labelled"):  # a client can choose the key, by the dead letters of its own queue
        with pytest.raises(ProtocolError, match=r"scan\.label: .*'gliaflow\.labelled'.*the user annotator"):
            check_route(LABELLED, "gliaflow.client", key)


def test_an_operator_may_send_to_a_queue_by_its_name():
    for message in ONE_OF_EACH:
        check_route(message, "", "gliaflow.extractor")


def test_scans_of_version_0_1_that_still_wait_are_accepted():
    check_route(LABELLED, "gliaflow", "scan")
