"""The node after kills, aborts, refusals and full disks: no part of a series is answered, and no image is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from gliaflow.answer import Answer
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_dicom.node import completeness
from gliaflow_dicom.node import node as node_module
from gliaflow_dicom.node.aside import SetAside, list_aside, take_back
from gliaflow_dicom.node.node import KILLED, Node
from gliaflow_dicom.node.peers import PeerAway
from gliaflow_dicom.node.spool import hashed
from pydicom.dataset import FileDataset
from sample_dicom import head, single_frames, uid
from sample_node import Pipeline, answer_all, answers, associated, running, send, settle, stand_in, wait_until

VOXELS = head((16, 16, 12))
STUDY = hashed(uid("study"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completeness, "PAUSES_S", (0.05, 0.1))
    monkeypatch.setattr(node_module, "make_objects", stand_in)


def images(**options: Any) -> list[FileDataset]:
    return single_frames(VOXELS, **options)


def t1(image: FileDataset, _: int) -> None:
    image.ScanningSequence, image.InversionTime = "SE", None


def send_and_abort(node: Node, sent: list[FileDataset]) -> None:
    with associated(node.listener.port, sent) as association:
        for image in sent:
            assert association.send_c_store(image).Status == 0
        association.abort()
    wait_until(lambda: not node.listener._server.connections)


def the_one_aside(node: Node, pipeline: Pipeline) -> SetAside:
    answer_all(node, pipeline, lambda: list_aside(node.spool.folder))
    (aside,) = list_aside(node.spool.folder)
    return aside


@contextmanager
def after_a_kill(node: Node, folder: Path, **values: float) -> Iterator[Node]:
    """A node on the spool as a kill at this moment leaves it."""
    shutil.copytree(node.spool.folder, folder / "spool")
    with running(folder, **values) as other:
        yield other


def test_after_a_kill_within_an_association_the_series_waits_to_be_sent_again(tmp_path: Path) -> None:
    pipeline = Pipeline()
    whole = single_frames(head((16, 16, 20)))
    with running(tmp_path) as node, associated(node.listener.port, whole) as association:
        for image in whole[:12]:
            assert association.send_c_store(image).Status == 0
        with after_a_kill(node, tmp_path / "killed", settle_s=1) as other:
            settle(other, pipeline, 3)
            assert not pipeline.sent
            send(other.listener.port, whole[12:])  # the sender tries again
            answer_all(other, pipeline, lambda: answers(other))
    assert [image.shape for image in pipeline.images] == [(16, 16, 20)]


def test_after_a_kill_a_series_that_is_not_sent_again_is_answered_with_a_warning(tmp_path: Path) -> None:
    """All its images may have been answered with success: then the sender sends none again."""
    pipeline = Pipeline()
    with running(tmp_path) as node, associated(node.listener.port, images()) as association:
        for image in images():
            assert association.send_c_store(image).Status == 0
        with after_a_kill(node, tmp_path / "killed") as other:
            answer_all(other, pipeline, lambda: answers(other))
    (item,) = pipeline.sent
    assert item.warnings == (KILLED,)


def test_a_series_that_was_complete_is_not_while_more_of_it_comes(tmp_path: Path) -> None:
    whole = single_frames(head((16, 16, 20)))
    place = hashed(uid("study")), hashed(uid("study", "flair"))
    with running(tmp_path, settle_s=30) as node:
        send(node.listener.port, whole[:11])
        wait_until(lambda: node.spool.ending(*place) == "clean")
        with associated(node.listener.port, whole) as association:
            assert association.send_c_store(whole[11]).Status == 0
            with after_a_kill(node, tmp_path / "killed") as other:
                assert other.spool.ending(*place) == "killed"


def test_an_open_association_may_pause_for_longer_than_the_settle_time(tmp_path: Path) -> None:
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=0.2) as node:
        with associated(node.listener.port, images()) as association:
            for image in images()[:11]:
                assert association.send_c_store(image).Status == 0
            settle(node, pipeline)
            assert node.spool.waiting()
            assert not pipeline.sent
            assert not list_aside(node.spool.folder)
            assert association.send_c_store(images()[11]).Status == 0
        answer_all(node, pipeline, lambda: answers(node))
    assert [image.shape for image in pipeline.images] == [VOXELS.shape]


def test_a_flair_series_with_too_few_images_after_an_abort_is_set_aside(tmp_path: Path) -> None:
    with running(tmp_path, incomplete_s=0.3) as node:
        send_and_abort(node, images()[:7])
        aside = the_one_aside(node, Pipeline())
        assert (aside.kind, aside.images) == ("incomplete", 7)
        assert aside.reason.startswith("7 images came; the association was aborted or lost, ")


def test_a_study_of_which_the_association_was_lost_before_its_flair_is_set_aside(tmp_path: Path) -> None:
    with running(tmp_path, incomplete_s=0.3) as node:
        send_and_abort(node, images(series="t1", change=t1))
        assert "no FLAIR series is among the 12 images that came" in the_one_aside(node, Pipeline()).reason


def test_a_study_with_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    with running(tmp_path, incomplete_s=0.3) as node:
        send(node.listener.port, images(series="t1", change=t1))
        next(node.spool.studies.rglob("*.dcm")).write_bytes(b"damaged")
        assert "no FLAIR series came, and 1 of 12 images cannot be read" in the_one_aside(node, Pipeline()).reason


def test_the_short_rest_of_a_series_that_was_answered_is_set_aside(tmp_path: Path) -> None:
    pipeline = Pipeline()
    whole = single_frames(head((16, 16, 24)))
    with running(tmp_path, incomplete_s=0.3) as node:
        send(node.listener.port, whole[:16])
        answer_all(node, pipeline, lambda: answers(node))
        send(node.listener.port, whole[16:])
        reason = the_one_aside(node, pipeline).reason
    assert reason.startswith("these 8 images belong to a series that was answered with 16; 16 are missing: send the ")


@pytest.mark.parametrize(
    ("wanted", "text"), [(["99"], "no series matches --series 99; the study has: "), ([], "no series is FLAIR: ")]
)
def test_a_study_that_is_retried_and_has_no_such_series_is_set_aside_again(
    tmp_path: Path, wanted: list[str], text: str
) -> None:
    with running(tmp_path, incomplete_s=0.3) as node:
        send_and_abort(node, images(series="t1", change=t1))
        the_one_aside(node, Pipeline())
        take_back(node.spool.folder, STUDY, declared=wanted)
        aside = the_one_aside(node, Pipeline())
        assert aside.kind == "refused"
        assert aside.reason.startswith(text)


def test_after_a_crash_the_studies_are_read_one_by_one(tmp_path: Path) -> None:
    class Crash(BaseException):
        """As if the process ended."""

    class Crashing(Pipeline):
        def submit_all(self, scans: Sequence[Input]) -> Iterator[Answer]:
            if any(item.patient == hashed(uid("poison")) for item in scans):
                raise Crash
            return super().submit_all(scans)

    names = ("a", "b", "c", "poison")
    with running(tmp_path) as node:
        send(node.listener.port, [image for name in names for image in images(study=name)])

        def crashed() -> bool:
            """Whether one round ends in a crash. After one, no note is removed."""
            read: list[str] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(node.spool, "end_reading", read.append)
                try:
                    node.round(cast(Flow, Crashing()))
                except Crash:
                    return True
            for study in read:
                node.spool.end_reading(study)
            return False

        wait_until(crashed)
        crashes = 1
        while not list_aside(node.spool.folder) and crashes < 10:
            crashes += crashed()
        (aside,) = list_aside(node.spool.folder)
        assert aside.study == hashed(uid("poison"))
        assert crashes == node_module.MAX_READS
        answer_all(node, Pipeline(), lambda: answers(node) == 3)


def test_an_archive_that_does_not_answer_is_asked_once_in_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(settings: Any, archive: Any, study: str, series: str) -> int:
        asked.append(study)
        raise PeerAway("it hangs")

    monkeypatch.setattr(completeness, "count_in_archive", away)
    monkeypatch.setattr(completeness, "PAUSES_S", (60.0, 60.0))
    with running(tmp_path, pacs="ARCHIVE@127.0.0.1:9") as node:
        send(node.listener.port, [image for name in ("a", "b", "c") for image in images(study=name)])
        time.sleep(0.3)
        for count in (1, 2, 3):  # each study has its turn
            node.round(cast(Flow, Pipeline()))
            assert len({*asked}) == len(asked) == count


def test_a_full_disk_does_not_close_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    errors: list[BaseException] = [OSError(28, "No space left on device"), KeyboardInterrupt()]

    class Connected:
        class broker:
            connected = True

    @contextmanager
    def open_flow(*_: Any, **__: Any) -> Iterator[Any]:
        opened.append(True)
        yield Connected

    def fail(_: Any) -> None:
        assert node.ready()["broker"]
        raise errors.pop(0)

    monkeypatch.setattr(node_module, "open_flow", open_flow)
    monkeypatch.setattr(node_module, "AWAY_S", 0.01)
    with running(tmp_path) as node:
        monkeypatch.setattr(node, "round", fail)
        with pytest.raises(KeyboardInterrupt):
            node.run()
    assert opened == [True]
    assert not errors


def test_no_image_is_kept_while_its_study_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []

    def locked(name: str, real: Any) -> Any:
        def move(*arguments: Any, **options: Any) -> None:
            assert node.spool.changing.locked()
            moved.append(name)
            real(*arguments, **options)

        return move

    for name in ("set_aside", "take_back"):
        monkeypatch.setattr(node_module, name, locked(name, getattr(node_module, name)))
    pipeline = Pipeline()
    with running(tmp_path, incomplete_s=0.3) as node:
        send_and_abort(node, images()[:5])
        the_one_aside(node, pipeline)
        send(node.listener.port, images()[5:])
        answer_all(node, pipeline, lambda: answers(node))
    assert moved == ["set_aside", "take_back"]
