"""Answers in the spool are sent to each destination until it accepts them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gliaflow_dicom.node import delivery
from gliaflow_dicom.node.answers import AnswerOrigin, KeptAnswer, OpenAnswers, delete_old, keep_answer, kept_answers
from gliaflow_dicom.node.delivery import Sender
from gliaflow_dicom.node.peers import listening_tls, parse_destination
from gliaflow_dicom.node.spool import Spool
from pydicom.dataset import FileDataset
from sample_dicom import head, single_frames
from sample_node import Archive, certificate, node_settings, open_spool, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # pynetdicom's, of refused connections
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.01)
    monkeypatch.setattr(delivery, "AWAY_S", (0.05, 0.1))
    monkeypatch.setattr(delivery, "NOT_ACCEPTED_S", (0.05, 0.1))


def objects(series: str = "s") -> dict[str, FileDataset]:
    """Stand-ins with the SOP classes of a segmentation and a report."""
    seg, report = single_frames(head((4, 4, 2)), series=series, study=series)
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = SEG
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = SR
    return {"_seg.dcm": seg, "_sr.dcm": report}


def keep(spool: Spool, series: str = "s", made: float = 1e9) -> KeptAnswer:
    return keep_answer(spool, AnswerOrigin("study", series, ["a.dcm"], {}, made), objects(series))


@contextmanager
def sending(spool: Spool, folder: Path, to: str, **values: Any) -> Iterator[Sender]:
    sender = Sender(node_settings(folder, **values), spool, parse_destination(to))
    yield sender
    sender.close()


def test_the_objects_arrive_in_order_and_once(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
    assert [uid for uid, _ in archive.got] == [each.SOPInstanceUID for each in objects().values()]


def test_a_destination_that_is_away_gets_them_when_it_is_back(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, sending(spool, tmp_path, archive.peer) as sender:
        answer = keep(spool)
        wait_until(lambda: sender._away is not None)
        assert not sender.stuck
        with archive.running():
            wait_until(lambda: answer.is_delivered([archive.peer]))


def test_with_tls_both_sides_show_a_certificate(tmp_path: Path) -> None:
    ca, own = certificate(tmp_path, "ca"), certificate(tmp_path, "node", "ca")
    settings = node_settings(tmp_path, cert=own, ca=ca)
    archive = Archive()
    with open_spool(tmp_path) as spool, archive.running(listening_tls(settings)):
        with sending(spool, tmp_path, archive.peer, cert=own, ca=ca) as plain:
            answer = keep(spool)
            wait_until(lambda: plain._away is not None)
        with sending(spool, tmp_path, f"tls://{archive.peer}", cert=own, ca=ca) as sender:
            wait_until(lambda: answer.is_delivered([sender.name]))


def test_each_destination_has_a_state_of_its_own(tmp_path: Path) -> None:
    here, away = Archive(), Archive()
    with (
        open_spool(tmp_path) as spool,
        here.running(),
        sending(spool, tmp_path, here.peer),
        sending(spool, tmp_path, away.peer),
    ):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([here.peer]))
        assert not answer.is_delivered([here.peer, away.peer])


def test_a_warning_counts_as_accepted_and_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = Archive(status=0xB000)
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
    assert len(archive.got) == 2
    assert "0xb000" in "".join(capfd.readouterr())


@pytest.mark.parametrize("known", [SEG, SR])
def test_an_archive_that_does_not_know_one_sop_class_gets_the_other_objects_once(tmp_path: Path, known: str) -> None:
    archive = Archive(contexts=[known])
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer) as sender:
        keep(spool, "first")
        keep(spool, "second")
        wait_until(lambda: len(sender.stuck) == len(archive.got) == 2)
        time.sleep(0.3)
    assert len(archive.got) == 2


def no_room(_: Any) -> int:
    return 0xA700


def abort(event: Any) -> int:
    event.assoc.abort()
    return 0


def hang(_: Any) -> int:
    time.sleep(1.2)
    return 0xC000


@pytest.mark.parametrize("fault", [no_room, abort, hang])
def test_an_answer_that_is_not_accepted_is_stuck_and_does_not_hold_up_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: Callable[[Any], int]
) -> None:
    first = {each.SOPInstanceUID for each in objects("first").values()}
    archive = Archive(status_of=lambda event: fault(event) if event.request.AffectedSOPInstanceUID in first else 0)
    with open_spool(tmp_path) as spool:
        bad, good = keep(spool, "first", made=1.0), keep(spool, "second", made=2.0)
        with archive.running(), sending(spool, tmp_path, archive.peer, idle_s=0.5) as sender:
            wait_until(lambda: good.is_delivered([archive.peer]))
            assert sender.stuck == {bad.folder.name}
            assert sender._away is None
            archive.status_of = None
            wait_until(lambda: bad.is_delivered([archive.peer]))
            wait_until(lambda: not sender.stuck)
    log = "".join(capfd.readouterr())
    assert "an answer is not accepted" in log
    assert "is away" not in log


def test_a_damaged_file_of_one_answer_does_not_hold_up_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool:
        without_origin, without_object, good = (keep(spool, each) for each in "abc")
        (without_origin.folder / "answer.json").write_text("{}")
        (without_object.folder / "2_sr.dcm").write_bytes(b"damaged")
        with archive.running(), sending(spool, tmp_path, archive.peer) as sender:
            wait_until(lambda: good.is_delivered([archive.peer]))
            wait_until(lambda: sender.stuck == {without_object.folder.name})
        assert len(kept_answers(spool)) == 2
        keep(spool, "a")  # the same series again
        assert len(kept_answers(spool)) == 3
    log = "".join(capfd.readouterr())
    (line,) = [line for line in log.splitlines() if "a kept answer is damaged" in line]
    assert without_origin.folder.name in line


def test_a_damaged_list_is_as_if_it_were_missing(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        answer = keep(spool)
        for name in ("again.json", "to-0.json", delivery_record(answer)):
            (answer.folder / name).write_text('[{}, "x"]')
        assert answer.repeats() == []
        assert not answer.is_delivered(["P"])


def delivery_record(answer: KeptAnswer) -> str:
    answer.accept("P", "nothing")
    (path,) = answer.folder.glob("to-*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    return path.name


def test_the_log_says_at_once_whether_a_destination_is_away_and_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, sending(spool, tmp_path, archive.peer) as sender:
        wait_until(lambda: sender._away is not None)
        with archive.running():
            wait_until(lambda: sender._away is None)
        keep(spool)
        wait_until(lambda: sender._away is not None)
        with archive.running():
            wait_until(lambda: len(archive.got) == 2)
    log = "".join(capfd.readouterr())
    assert log.count("it does not accept a connection: check host, port and TLS") == 2
    assert log.count("the destination is back") == 2
    assert [uid for uid, _ in archive.got] == [each.SOPInstanceUID for each in objects().values()]


def test_delivered_answers_are_not_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = KeptAnswer.__init__
    monkeypatch.setattr(KeptAnswer, "__init__", lambda self, folder: (read.append(folder), real(self, folder))[1])
    with open_spool(tmp_path) as spool:
        delivered, opened = keep(spool, "a"), keep(spool, "b")
        for path in delivered.objects:
            delivered.accept("P", path.name)
        answers = OpenAnswers(spool, "P")
        for count in (2, 1, 1):
            read.clear()
            assert [each.folder for each in answers.read()] == [opened.folder]
            assert len(read) == count
        keep(spool, "a")  # it came again, so it is sent again
        assert {each.folder for each in answers.read()} == {delivered.folder, opened.folder}


def test_after_a_correction_of_the_patient_the_new_objects_replace_the_kept_ones(tmp_path: Path) -> None:
    archive = Archive()
    corrected = objects()
    for each in corrected.values():
        each.PatientID = "RIGHT"
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        before = keep(spool)
        wait_until(lambda: before.is_delivered([archive.peer]))
        after = keep_answer(spool, AnswerOrigin("study", "s", ["a.dcm"], {}, 1e9), corrected)
        wait_until(lambda: after.is_delivered([archive.peer]))
        assert [each.folder for each in kept_answers(spool)] == [after.folder]
    uids = [uid for uid, _ in archive.got]
    assert uids[:2] == uids[2:]
    assert [b"RIGHT" in data for _, data in archive.got] == [False, False, True, True]


def test_the_same_answer_again_has_the_same_bytes(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
        again = objects()
        again["_seg.dcm"].ContentTime = "235959"  # what makes two objects with the same UIDs differ
        keep_answer(spool, AnswerOrigin("study", "s", ["a.dcm"], {}, 1e9), again)
        wait_until(lambda: len(archive.got) == 4)
    assert archive.got[:2] == archive.got[2:]


def test_what_was_accepted_before_a_kill_is_not_sent_again(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool:
        keep(spool).accept(archive.peer, "1_seg.dcm")
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        (answer,) = kept_answers(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
    assert [uid for uid, _ in archive.got] == [objects()["_sr.dcm"].SOPInstanceUID]


def test_delivered_answers_are_kept_for_some_days(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        answer = keep(spool, made=1.0)
        delete_old(spool, ["P"], keep_s=0)
        assert kept_answers(spool)  # never before it is delivered
        for path in answer.objects:
            answer.accept("P", path.name)
        delete_old(spool, ["P"], keep_s=1e12)
        assert kept_answers(spool)
        delete_old(spool, ["P"], keep_s=86400)
        assert not kept_answers(spool)
        assert not any(spool.answers.iterdir())
