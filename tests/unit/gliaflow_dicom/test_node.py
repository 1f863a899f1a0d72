"""The node with a stand-in for the pipeline: which studies are answered, which wait, and which are set aside."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from gliaflow.answer import Answer
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_cli import main
from gliaflow_dicom.node import completeness, delivery
from gliaflow_dicom.node import node as node_module
from gliaflow_dicom.node.answers import kept_answers
from gliaflow_dicom.node.aside import list_aside
from gliaflow_dicom.node.node import MAX_READS, Node
from gliaflow_dicom.node.spool import hashed
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.errors import UsageError
from pydicom.dataset import FileDataset
from sample_dicom import CANARY, head, single_frames, uid
from sample_node import (
    Archive,
    Pipeline,
    answer_all,
    answers,
    associated,
    node_settings,
    running,
    send,
    settle,
    stand_in,
    wait_until,
)
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # pynetdicom's, of refused connections
VOXELS = head((16, 16, 12))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.01)
    monkeypatch.setattr(completeness, "PAUSES_S", (0.05, 0.1))
    monkeypatch.setattr(node_module, "make_objects", stand_in)


def images(**options: Any) -> list[FileDataset]:
    return single_frames(VOXELS, **options)


def other_contrast(image: FileDataset, _: int) -> None:
    image.ScanningSequence, image.InversionTime = "SE", None


@pytest.mark.parametrize("each_alone", [False, True], ids=["one association", "one association an image"])
def test_a_series_is_answered_once_and_its_images_are_deleted(tmp_path: Path, each_alone: bool) -> None:
    pipeline, archive = Pipeline(), Archive()
    with archive.running(), running(tmp_path, to=[archive.peer], settle_s=0.5) as node:
        for part in [[image] for image in images()] if each_alone else [images()]:
            assert {*send(node.listener.port, part)} == {0}
        answer_all(node, pipeline, lambda: archive.got)
        settle(node, pipeline)
        assert len(pipeline.sent) == len(archive.got) == 1
        assert np.array_equal(pipeline.images[0].get_fdata(), VOXELS)
        assert not node.spool.waiting()


def test_no_header_leaves_the_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline()
    with running(tmp_path) as node:
        send(node.listener.port, images(series=f"flair {CANARY}"))
        answer_all(node, pipeline, lambda: answers(node))
        names = " ".join(str(path) for path in node.spool.folder.rglob("*"))
    (item,) = pipeline.sent
    text = f"{item.name} {item.patient} {item.source} {names} {''.join(capfd.readouterr())}"
    for secret in (CANARY, uid("study"), uid("study", f"flair {CANARY}"), "P1"):
        assert secret not in text
    assert item.name == hashed(uid("study", f"flair {CANARY}"))


def test_a_study_waits_for_its_sequences_and_is_sent_with_them(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=60) as node:
        node._rules = replace(node._rules, sequences=("t1ce",))
        send(node.listener.port, images())
        settle(node, pipeline)
        assert not pipeline.sent
        send(node.listener.port, images(series="t1 km", change=other_contrast))
        answer_all(node, pipeline, lambda: answers(node))
        assert not node.spool.waiting(), "the images of both series are deleted"
    (item,) = pipeline.sent
    assert set(item.sequences) == {"t1ce"}


def test_a_study_without_a_sequence_is_answered_after_a_while(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=0.3) as node:
        node._rules = replace(node._rules, sequences=("t1ce",))
        send(node.listener.port, images())
        answer_all(node, pipeline, lambda: answers(node))
    assert pipeline.sent[0].sequences == {}


def test_after_an_abort_the_node_waits_for_the_resend(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path) as node:
        with associated(node.listener.port, images()) as association:
            for image in images()[:11]:
                association.send_c_store(image)
            association.abort()
        settle(node, pipeline)
        assert not pipeline.sent
        send(node.listener.port, images())
        answer_all(node, pipeline, lambda: answers(node))
        settle(node, pipeline)
    assert [image.shape for image in pipeline.images] == [VOXELS.shape]


def test_a_series_that_is_never_sent_again_is_set_aside_and_can_be_retried(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=0.3) as node:
        with associated(node.listener.port, images()) as association:
            for image in images()[:11]:
                association.send_c_store(image)
            association.abort()
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        (aside,) = list_aside(node.spool.folder)
        assert (aside.kind, aside.images) == ("incomplete", 11)
        assert "send the whole series again" in aside.reason
        done = CliRunner().invoke(main.app, ["dicom", "retry", aside.study[:8], "--spool", str(node.spool.folder)])
        assert "to be read again by the node: 1 study" in done.output
        answer_all(node, pipeline, lambda: answers(node))
        assert not list_aside(node.spool.folder)


def test_the_rest_of_a_series_that_was_set_aside_joins_it(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=0.3) as node:
        with associated(node.listener.port, images()) as association:
            for image in images()[:5]:
                association.send_c_store(image)
            association.abort()
        wait_until(lambda: node.spool.waiting())
        study = hashed(uid("study"))
        wait_until(lambda: node.spool.ending(study, hashed(uid("study", "flair"))) != "clean")
        node._set_aside(study, "incomplete", "a test")
        send(node.listener.port, images()[5:])
        answer_all(node, pipeline, lambda: answers(node))
    assert pipeline.images[0].shape == VOXELS.shape


def test_the_archive_says_when_a_series_is_complete(tmp_path: Path) -> None:
    pipeline, archive = Pipeline(), Archive(counts={uid("study", "flair"): 12})
    with archive.running(), running(tmp_path, pacs=archive.peer) as node:
        send(node.listener.port, images()[:11])
        settle(node, pipeline)
        assert not pipeline.sent
        send(node.listener.port, images()[11:])
        answer_all(node, pipeline, lambda: answers(node))
    assert pipeline.images[0].shape == VOXELS.shape


def test_the_log_says_at_the_start_whether_the_archive_answers_and_later_that_it_is_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    archive, pipeline = Archive(counts={uid("study", "flair"): 12}), Pipeline()
    with running(tmp_path, pacs=archive.peer) as node:
        wait_until(lambda: node._archive and node._archive._away)
        send(node.listener.port, images())
        settle(node, pipeline)
        assert not pipeline.sent
        with archive.running():
            answer_all(node, pipeline, lambda: answers(node))
    log = "".join(capfd.readouterr())
    assert log.count("the archive of --pacs is away") == log.count("the archive of --pacs is back") == 1
    assert "it does not accept a connection: check host, port and TLS" in log


def test_a_ca_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("x")
    with (
        pytest.raises(UsageError, match=r"dicom_ca: .*no\.pem"),
        running(tmp_path, pacs="tls://A@127.0.0.1:1", ca=tmp_path / "no.pem"),
    ):
        pass


def test_an_archive_may_leave_out_the_count(tmp_path: Path) -> None:
    archive = Archive(counts={uid("study", "flair"): 12}, says_count=False)
    with archive.running():
        settings = node_settings(tmp_path)
        peer = node_module.parse_peer(archive.peer, "--pacs")
        assert completeness.count_in_archive(settings, peer, uid("study"), uid("study", "flair")) == 12
        assert completeness.count_in_archive(settings, peer, uid("study"), "1.2.3") == 0


def test_while_the_archive_is_away_a_series_waits(tmp_path: Path) -> None:
    pipeline, archive = Pipeline(), Archive(counts={uid("study", "flair"): 12})
    with running(tmp_path, pacs=archive.peer, incomplete_s=0.2) as node:
        send(node.listener.port, images())
        settle(node, pipeline)
        assert not pipeline.sent
        assert not list_aside(node.spool.folder)
        with archive.running():
            answer_all(node, pipeline, lambda: answers(node))


def test_a_series_with_fewer_images_than_in_the_archive_is_set_aside(tmp_path: Path) -> None:
    pipeline, archive = Pipeline(), Archive(counts={uid("study", "flair"): 20})
    with archive.running(), running(tmp_path, pacs=archive.peer, incomplete_s=0.3) as node:
        send(node.listener.port, images())
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        assert list_aside(node.spool.folder)[0].reason.startswith("12 images came, and the archive of --pacs has 20: ")


def test_a_study_without_flair_is_forgotten_after_a_while(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=1.0) as node:
        send(node.listener.port, images(series="t1", change=other_contrast))
        settle(node, pipeline)
        assert node.spool.waiting()  # its FLAIR series may be on its way
        answer_all(node, pipeline, lambda: not node.spool.waiting())
        assert node.spool._bytes == 0
    assert not pipeline.sent


def test_a_series_that_cannot_be_read_is_set_aside_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline()
    gap = [image for image in single_frames(head((16, 16, 14))) if image.InstanceNumber != 6]
    with running(tmp_path) as node:
        send(node.listener.port, gap)
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        (aside,) = list_aside(node.spool.folder)
        done = CliRunner().invoke(main.app, ["dicom", "list", "--spool", str(node.spool.folder)])
    assert aside.kind == "refused"
    assert "between image 5 and image 7" in aside.reason  # by InstanceNumber, as an archive shows them
    assert f"study {uid('study')}: {aside.reason}" in done.output
    assert aside.study[:12] in done.output
    assert aside.reason not in "".join(capfd.readouterr())  # it may quote a header


def test_of_two_flair_series_a_person_chooses(tmp_path: Path) -> None:
    def number(image: FileDataset, _: int) -> None:
        image.SeriesNumber = 9

    pipeline = Pipeline()
    with running(tmp_path) as node:
        send(node.listener.port, [*images(), *images(series="flair 2", change=number)])
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        CliRunner().invoke(main.app, ["dicom", "retry", "--all", "--series", "9", "--spool", str(node.spool.folder)])
        answer_all(node, pipeline, lambda: answers(node))
    assert [item.name for item in pipeline.sent] == [hashed(uid("study", "flair 2"))]


def test_a_scan_that_a_stage_fails_is_set_aside(tmp_path: Path) -> None:
    pipeline = Pipeline()
    pipeline.reason = "preprocessor: the scan is empty"
    with running(tmp_path) as node:
        send(node.listener.port, images())
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        assert list_aside(node.spool.folder)[0].reason == pipeline.reason
        done = CliRunner().invoke(main.app, ["dicom", "delete", "--all", "--yes", "--spool", str(node.spool.folder)])
        assert done.output == "1 study deleted\n"
        node._tidy()
        assert node.spool._bytes == 0


@pytest.mark.parametrize("reason", ["no answer within 1800 s: RabbitMQ is away", "no readable answer within 9 s: x"])
def test_a_scan_without_any_answer_is_sent_again(tmp_path: Path, reason: str) -> None:
    pipeline = Pipeline()
    pipeline.reason = reason
    with running(tmp_path) as node:
        send(node.listener.port, images())
        answer_all(node, pipeline, lambda: pipeline.sent)
        pipeline.reason = ""
        answer_all(node, pipeline, lambda: answers(node))
        assert not list_aside(node.spool.folder)


def test_a_broker_that_goes_away_does_not_count_against_the_study(tmp_path: Path) -> None:
    class Lost(Pipeline):
        def submit_all(self, scans: Sequence[Input]) -> Iterator[Answer]:
            raise BrokerError("away")

    with running(tmp_path) as node:
        send(node.listener.port, images())
        lost = 0
        while lost <= MAX_READS:
            try:
                node.round(cast(Flow, Lost()))
                time.sleep(0.05)
            except BrokerError:
                lost += 1
        answer_all(node, Pipeline(), lambda: answers(node))


def test_a_study_that_ends_the_process_again_and_again_is_set_aside(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        send(node.listener.port, images())
        (study,) = node.spool.waiting()
        for _ in range(MAX_READS):
            node.spool.begin_reading(study)  # and the process is killed
        answer_all(node, Pipeline(), lambda: list_aside(node.spool.folder))
        assert "the process ended 5 times" in list_aside(node.spool.folder)[0].reason


def test_an_unexpected_error_sets_one_study_aside_and_the_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(series: Any, answer: Answer, *, capture: bool = False) -> Any:
        if series.uid == uid("study", "flair"):
            raise ZeroDivisionError(CANARY)
        return stand_in(series, answer)

    monkeypatch.setattr(node_module, "make_objects", broken)
    with running(tmp_path) as node:
        send(node.listener.port, [*images(), *images(study="another")])
        answer_all(node, Pipeline(), lambda: list_aside(node.spool.folder) and answers(node))
        (aside,) = list_aside(node.spool.folder)
    assert aside.reason.startswith("an unexpected error: ZeroDivisionError at test_node.py:")


def test_a_series_that_comes_again_is_the_same_object_and_a_loop_ends(tmp_path: Path) -> None:
    pipeline, archive = Pipeline(), Archive()
    with archive.running(), running(tmp_path, to=[archive.peer]) as node:
        for count in (1, 2, 3, 4):
            send(node.listener.port, images())
            answer_all(node, pipeline, lambda count=count: len(archive.got) == count and not node.spool.waiting())
        send(node.listener.port, images())  # the archive sends the study whenever an answer comes
        answer_all(node, pipeline, lambda: not node.spool.waiting())
        settle(node, pipeline)
    assert len(pipeline.sent) == len(archive.got) == 4
    assert len({*archive.got}) == 1


def test_the_rest_of_a_series_that_was_answered_too_early_is_no_series(tmp_path: Path) -> None:
    """Without an archive, a sender that pauses for longer than settle_s looks like one that has ended."""
    pipeline = Pipeline()
    whole = single_frames(head((16, 16, 24)))
    with running(tmp_path, incomplete_s=0.3) as node:
        send(node.listener.port, whole[:12])
        answer_all(node, pipeline, lambda: answers(node))
        send(node.listener.port, whole[12:])
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        assert (
            "these 12 images belong to a series that was answered with 12; 12 are missing"
            in list_aside(node.spool.folder)[0].reason
        )
        send(node.listener.port, whole)
        answer_all(node, pipeline, lambda: len(pipeline.sent) == 2)
    assert pipeline.images[1].shape == (16, 16, 24)


def test_a_killed_node_continues(tmp_path: Path) -> None:
    """Between the last response and the answer, and between the answer and the end of the images."""
    pipeline = Pipeline()
    with running(tmp_path) as node:
        send(node.listener.port, images())
    with running(tmp_path) as node:
        received = node.spool.images(hashed(uid("study")))
        answer_all(node, pipeline, lambda: answers(node))
        (answer,) = kept_answers(node.spool)
        assert answer.origin.received == received
    for name in received:
        path = tmp_path / "spool" / "studies" / hashed(uid("study")) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        import os

        os.utime(path, ns=(received[name], received[name]))
    (tmp_path / "spool" / "incoming" / "half").write_bytes(b"x")
    with running(tmp_path) as node:
        assert not node.spool.waiting()
        assert not any(node.spool.incoming.iterdir())
        assert answers(node) == 1
    assert len(pipeline.sent) == 1


def test_a_full_spool_takes_no_images_until_there_is_room(tmp_path: Path) -> None:
    pipeline, archive = Pipeline(), Archive()
    size = 14 * (16 * 16 * 2 + 2000) / 2**30
    with archive.running(), running(tmp_path, to=[archive.peer], spool_gib=size, incomplete_s=0.5, keep_days=0) as node:
        send(node.listener.port, images(series="t1", study="first", change=other_contrast))
        statuses = send(node.listener.port, images())
        assert 0xA700 in statuses
        assert node.ready() == {"listener": True, "broker": False, "spool": False}
        answer_all(node, pipeline, lambda: node.ready()["spool"])  # the study without FLAIR is deleted
        assert {*send(node.listener.port, images())} == {0}
        answer_all(node, pipeline, lambda: archive.got)


def test_one_node_has_one_spool(tmp_path: Path) -> None:
    with running(tmp_path) as node, pytest.raises(UsageError, match="another `gliaflow dicom` uses this spool"):
        Node(node_settings(tmp_path))
    assert node.spool.folder.stat().st_mode & 0o777 == 0o700


def test_the_reason_of_a_study_is_json_without_names(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path) as node:
        send(node.listener.port, [*images(), *images(series=f"flair {CANARY}")])
        answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
        (aside,) = node.spool.aside.iterdir()
        assert CANARY not in json.dumps(json.loads((aside / "reason.json").read_text()))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--to", "A@h:1"], "--allow (GLIAFLOW_DICOM_ALLOW): name the AE titles"),
        (["--allow", "any"], "--to (GLIAFLOW_DICOM_TO): name where the answers go"),
        (["--allow", "any", "--to", "A@h:1", "--pacs", "x"], "--pacs (GLIAFLOW_DICOM_PACS): 'x' is not AE@HOST:PORT"),
        (
            ["--allow", "any", "--to", "A@h:1", "--ae", "ABCDEFGHIJKLMNOPQ"],
            "--ae (GLIAFLOW_DICOM_AE): 'ABCDEFGHIJKLMNOPQ' is",
        ),
        (["--allow", "any", "--to", "A@h:1", "--settle", "0"], "--settle"),
        (["retry"], "name the studies to retry"),
        (["delete", "abc"], "there is no spool in"),
    ],
)
def test_a_wrong_command_line_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.setenv("GLIAFLOW_DICOM_SPOOL", str(tmp_path / "spool"))
    done = CliRunner().invoke(main.app, ["dicom", *arguments])
    assert isinstance(done.exception, UsageError), done.exception
    assert text in str(done.exception)
    assert "\n" not in str(done.exception)
