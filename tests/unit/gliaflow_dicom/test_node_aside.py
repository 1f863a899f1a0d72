"""Studies that are set aside, and the commands that list, retry and delete them."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from gliaflow_cli import main
from gliaflow_dicom.node.aside import delete_aside, list_aside, set_aside, take_back
from gliaflow_dicom.node.spool import Spool, hashed
from gliaflow_runtime.errors import UsageError
from pydicom.dataset import FileDataset
from sample_dicom import head, single_frames, uid
from sample_node import open_spool
from typer.testing import CliRunner, Result

STUDY = hashed(uid("study"))


def keep(spool: Spool, images: list[FileDataset], where: str = "studies") -> list[Path]:
    """Images of one study in the spool, as the node keeps them."""
    paths = []
    for image in images:
        path = spool.folder / where / STUDY / hashed(image.SeriesInstanceUID) / f"{hashed(image.SOPInstanceUID)}.dcm"
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def images(**options: object) -> list[FileDataset]:
    return single_frames(head((8, 8, 4)), **options)  # type: ignore[arg-type]


def run(spool: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main.app, ["dicom", *arguments, "--spool", str(spool)])


@pytest.mark.parametrize("arguments", [["list"], ["retry", "--all"], ["delete", "--all", "--yes"]])
def test_a_folder_that_is_no_spool_is_an_error(tmp_path: Path, arguments: list[str]) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        done = run(folder, *arguments)
        assert isinstance(done.exception, UsageError)
        assert f"there is no spool in {folder}: name it with --spool or GLIAFLOW_DICOM_SPOOL" in str(done.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"reason": "x"}', "\udcff", None])
def test_a_study_whose_reason_is_damaged_is_listed_and_can_be_retried(tmp_path: Path, content: str | None) -> None:
    with open_spool(tmp_path) as spool:
        keep(spool, images())
        set_aside(spool.folder, STUDY, "refused", "a gap")
        reason = spool.aside / STUDY / "reason.json"
        if content is None:
            reason.unlink()
        else:
            reason.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert "the reason is lost" in run(spool.folder, "list").output
        (study,) = list_aside(spool.folder)
        assert (study.kind, study.images) == ("failed", 4)
        assert run(spool.folder, "retry", STUDY[:6]).exit_code == 0
        assert len(spool.images(STUDY)) == 4


def test_images_are_named_by_their_numbers_or_if_these_repeat_by_their_uids(tmp_path: Path) -> None:
    def same(image: FileDataset, _: int) -> None:
        image.InstanceNumber = 5

    with open_spool(tmp_path) as spool:
        first, second, *_ = keep(spool, images())
        set_aside(spool.folder, STUDY, "refused", f"a gap between {first.name} and {second.name}")
        assert list_aside(spool.folder)[0].reason == "a gap between image 1 and image 2"
        delete_aside(spool.folder, STUDY)
        equal = images(change=same)
        first, second, *_ = keep(spool, equal)
        set_aside(spool.folder, STUDY, "refused", f"a gap between {first.name} and {second.name}")
        expected = f"a gap between SOP instance {equal[0].SOPInstanceUID} and SOP instance {equal[1].SOPInstanceUID}"
        assert list_aside(spool.folder)[0].reason == expected


def test_retry_refuses_a_series_that_the_study_does_not_have(tmp_path: Path) -> None:
    def ninth(image: FileDataset, _: int) -> None:
        image.SeriesNumber, image.SeriesDescription = 9, "ax t1"

    with open_spool(tmp_path) as spool:
        keep(spool, [*images(), *images(series="other", change=ninth)])
        set_aside(spool.folder, STUDY, "refused", "two series")
        done = run(spool.folder, "retry", STUDY[:6], "--series", "8")
        assert isinstance(done.exception, UsageError)
        expected = "It has: series 4 'flair', 4 images; series 9 'ax t1 / other', 4 images"
        assert f"--series 8: study {STUDY[:12]} has no such series. {expected}" in str(done.exception)
        assert "--series is empty" in str(run(spool.folder, "retry", "--all", "--series", "").exception)
        assert list_aside(spool.folder)
        assert run(spool.folder, "retry", STUDY[:6], "--series", "ax t1").exit_code == 0
        assert spool.declared(STUDY) == ("ax t1",)


def test_a_retried_study_is_joined_with_images_that_came_since(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        first, *_ = keep(spool, images()[:3])
        set_aside(spool.folder, STUDY, "incomplete", "2 images are missing")
        later = keep(spool, images()[2:])[0]
        later.write_bytes(b"later")
        take_back(spool.folder, STUDY, declared=[])
        assert len(spool.images(STUDY)) == 4
        assert (first.exists(), later.read_bytes(), spool.declared(STUDY)) == (True, b"later", ())
        assert not any(spool.aside.iterdir())


@pytest.mark.parametrize("arguments", [["retry"], ["delete", "--yes"]])
def test_a_study_that_the_node_takes_back_meanwhile_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    with open_spool(tmp_path) as spool:
        keep(spool, images())
        set_aside(spool.folder, STUDY, "refused", "a gap")
        listed = list_aside(spool.folder)
        take_back(spool.folder, STUDY)
        monkeypatch.setattr("gliaflow_dicom.node.aside.choose_aside", lambda *_: listed)
        done = run(spool.folder, *arguments, STUDY)
        assert isinstance(done.exception, UsageError)
        assert f"study {STUDY[:12]} is not set aside any more" in str(done.exception)
        assert len(spool.images(STUDY)) == 4
        assert spool.declared(STUDY) is None


def test_the_reason_file_holds_what_list_prints(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        keep(spool, images())
        set_aside(spool.folder, STUDY, "refused", "a gap")
        record = json.loads((spool.aside / STUDY / "reason.json").read_text())
        assert (record["kind"], record["reason"], record["images"]) == ("refused", "a gap", 4)
        assert f"refused     4 images, study {uid('study')}: a gap\n" in run(spool.folder, "list").output


def test_the_command_leaves_no_core_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory has patients' headers."""
    limits = {}
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    run(tmp_path, "list")
    assert limits == {resource.RLIMIT_CORE: (0, 0)}
