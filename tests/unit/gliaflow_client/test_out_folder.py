"""The folder of the answers: each scan is known by its place, no file of the user is overwritten, and runs resume."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow.sequences import SequenceInput
from gliaflow_client.out_folder import OutFolder, Target
from gliaflow_client.record import RECORD, ScanState, free_name
from gliaflow_client.table import TABLE, ScanRow, read_table, write_table
from gliaflow_proto import NO_TUMOUR, PredictionMessage, ScanMessage, encode, routing_key
from gliaflow_runtime.broker.interface import Broker, Unroutable
from gliaflow_runtime.errors import UsageError
from stand_in import StandIn, fail


def predict(broker: Broker, message: ScanMessage) -> None:
    """Answer with a mask of the scan's first byte. A scan named ``bad…`` fails; one named ``none`` has no tumour."""
    if message.scan.name.startswith("bad"):
        fail(broker, message, "no head")
        return
    content = message.source.data or b"?"
    answer = PredictionMessage(
        id=message.id,
        scan=message.scan,
        bundle="b@1",
        grade="" if message.scan.name == "none" else "HGG",
        p_hgg=0.5 if message.scan.name == "none" else 0.77880078,
        tumour_ml=1.23456,
        slices=3,
        tumour_slices=1,
        affine=[float(x) for x in np.eye(4).ravel()],
        mask=np.full((2, 3, 4), content[0], np.uint8),
        status=NO_TUMOUR if message.scan.name == "none" else "ok",
        trained_on="phantoms",
    )
    with suppress(Unroutable):  # the client has left, which a real stage notes, too
        broker.publish(routing_key(answer), encode(answer), message_id=answer.id)


@pytest.fixture
def flow() -> Iterator[Flow]:
    with StandIn(predict) as stages:
        yield Flow(stages.broker.attach(), timeout=30)


def scan(path: Path, content: str, name: str = "flair", root: Path | None = None) -> Input:
    """A scan; without ``name``, all have one file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    relative = str(path.relative_to(root or path.parents[1]))
    return Input(path, name, path.parent.name, relative=relative)


def submit(flow: Flow, out: Path, inputs: Sequence[Input], *, resume: bool = False) -> list[str]:
    """As ``gliaflow submit``. Returns the names of the scans that were sent."""
    with OutFolder(out) as folder:
        targets = folder.assign(inputs)
        kept = [each for each in targets if resume and folder.is_answered(each)]
        todo = [each for each in targets if each not in kept]
        folder.keep(kept)
        folder.answer(flow, todo)
        return [each.scan for each in todo]


def masks(out: Path) -> dict[str, str]:
    """By scan, the content of the scan that its mask is of."""
    rows = read_table(out / TABLE).values()
    return {row.scan: chr(int(np.asarray(nib.load(out / row.mask).dataobj).flat[0])) for row in rows if row.mask}


def test_the_names_of_many_scans_of_one_name_stay_short() -> None:
    taken: set[str] = set()
    for _ in range(100):
        taken.add(free_name("flair", taken))
    assert taken == {"flair", *(f"flair-{number}" for number in range(2, 101))}


def test_a_row_has_source_mask_and_rounded_numbers(flow: Flow, tmp_path: Path) -> None:
    submit(flow, tmp_path / "out", [replace(scan(tmp_path / "P1/flair.nii", "1"), warnings=("is it?",), grade="LGG")])
    (row,) = read_table(tmp_path / "out" / TABLE).values()
    assert row.seconds is not None
    assert replace(row, seconds=None) == ScanRow(
        scan="flair",
        patient="P1",
        source="P1/flair.nii",
        grade="HGG",
        p_hgg=0.778801,
        tumour_ml=1.235,
        slices=3,
        status="ok",
        warnings=("is it?",),
        bundle="b@1",
        trained_on="phantoms",
        mask="flair_seg.nii.gz",
        true_grade="LGG",
    )


def test_a_scan_without_tumour_has_no_grade_and_no_probability(flow: Flow, tmp_path: Path) -> None:
    submit(flow, tmp_path / "out", [scan(tmp_path / "P1/flair.nii", "1", "none")])
    (row,) = read_table(tmp_path / "out" / TABLE).values()
    assert (row.status, row.grade, row.p_hgg, row.mask) == ("no tumour", "", None, "none_seg.nii.gz")


def test_a_scan_that_is_added_before_resume_is_answered_and_the_others_are_not(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, two = (scan(tmp_path / f"study/P{n}/flair.nii", str(n), f"flair-{n}") for n in (1, 2))
    assert submit(flow, out, [one, two]) == ["flair-1", "flair-2"]
    added = scan(tmp_path / "study/P0/flair.nii", "0", "flair-1")  # the names of all have moved on by one
    again = [added, replace(one, name="flair-2"), replace(two, name="flair-3")]
    assert submit(flow, out, again, resume=True) == ["flair-1-2"]
    assert masks(out) == {"flair-1": "1", "flair-2": "2", "flair-1-2": "0"}
    assert [row.source for row in read_table(out / TABLE).values()] == ["P1/flair.nii", "P2/flair.nii", "P0/flair.nii"]
    assert submit(flow, out, again, resume=True) == []


def test_what_is_not_answered_any_more_is_answered_again_in_its_row(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scans = [scan(tmp_path / f"P{n}/flair.nii", str(n), f"{'bad' if n == 3 else 'p'}{n}") for n in range(5)]
    submit(flow, out, scans)
    (out / "p0_seg.nii.gz").unlink()  # the mask is gone
    scans[1].path.write_text("A")  # the scan is another
    os.utime(scans[2].path, ns=(1, 1))  # the same content, copied
    assert submit(flow, out, scans, resume=True) == ["p0", "p1", "bad3"]
    assert masks(out) == {"p0": "0", "p1": "A", "p2": "2", "p4": "4"}
    assert submit(flow, out, scans, resume=True) == ["bad3"], "a failed scan has no answer"


def test_another_channel_of_a_file_is_another_question(flow: Flow, tmp_path: Path) -> None:
    four = scan(tmp_path / "P1/four.nii", "1")
    submit(flow, tmp_path / "out", [replace(four, channel="0")])
    assert submit(flow, tmp_path / "out", [replace(four, channel="1")], resume=True) == ["flair"]


def test_a_scan_with_its_sequences_is_the_same_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = scan(tmp_path / "P1/four.nii", "1")
    stamps = set()
    for folder in (tmp_path, tmp_path / "P1"):
        monkeypatch.chdir(folder)
        path = Path(os.path.relpath(four.path))
        sequences = {"t1ce": SequenceInput(path, "1")}
        stamps.add(ScanState.of(replace(four, path=path, channel="0", sequences=sequences)))
    assert len(stamps) == 1


def test_scans_are_known_after_their_folder_was_moved(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scans = [scan(tmp_path / f"study/P{n}/flair.nii", str(n), f"p{n}") for n in range(2)]
    submit(flow, out, scans)
    (tmp_path / "study").rename(tmp_path / "moved")
    moved = [replace(each, path=tmp_path / "moved" / each.relative) for each in scans]
    moved[1].path.write_text("another")
    assert submit(flow, out, moved, resume=True) == ["p1-2"], "the same place, but not the same scan"
    shutil.copytree(tmp_path / "moved", tmp_path / "copy", copy_function=shutil.copy2)
    copied = [replace(each, path=tmp_path / "copy" / each.relative) for each in scans]
    assert len(submit(flow, out, copied, resume=True)) == 2, "a copy beside the original is another scan"


def test_a_second_submission_keeps_the_rows_and_masks_of_the_first(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = (scan(tmp_path / f"{name}/P1/flair.nii", name) for name in "ab")
    submit(flow, out, [first])
    with OutFolder(out) as folder:
        (target,) = folder.assign([second])
        assert target.scan == "flair-2"
        assert target.note == f"another scan in {out} is named flair; this scan's answers are named flair-2"
        folder.answer(flow, [target])
    assert masks(out) == {"flair": "a", "flair-2": "b"}
    first.path.write_text("c")
    both = [replace(second, name="b_flair"), replace(first, name="a_flair")]  # find_inputs gives each its own name
    assert submit(flow, out, both) == ["flair-2", "flair"], "without --resume, their own rows are replaced"
    assert masks(out) == {"flair": "c", "flair-2": "b"}


@pytest.mark.parametrize(("one", "other"), [("Case", "case"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "straße")])
def test_names_that_some_file_systems_hold_for_one_are_two(flow: Flow, tmp_path: Path, one: str, other: str) -> None:
    submit(flow, tmp_path / "out", [scan(tmp_path / "P1/a.nii", "1", one)])
    assert submit(flow, tmp_path / "out", [scan(tmp_path / "P2/b.nii", "2", other)]) == [f"{other}-2"]


def test_one_file_under_two_names_has_two_answers(flow: Flow, tmp_path: Path) -> None:
    one = scan(tmp_path / "P1/a.nii", "1", "one")
    inputs = [one, replace(one, name="two", patient="P2")]
    assert submit(flow, tmp_path / "out", inputs) == ["one", "two"]
    assert submit(flow, tmp_path / "out", inputs, resume=True) == []


def test_a_manual_mask_is_kept(flow: Flow, tmp_path: Path) -> None:
    study = tmp_path / "study"
    p1 = scan(study / "P1.nii", "1", "P1")
    (study / "P1_seg.nii.gz").write_text("by hand")
    (study / "P1_gliaflow_seg.nii.gz").write_text("by hand too")
    for _ in range(2):
        submit(flow, study, [p1])
        (row,) = read_table(study / TABLE).values()
        assert row.mask == "P1_gliaflow2_seg.nii.gz"
        assert (
            "gliaflow did not write P1_seg.nii.gz, or it was changed since: it is kept, and the mask" in row.warnings[0]
        )
    assert (study / "P1_seg.nii.gz").read_text() == "by hand"
    assert submit(flow, study, [p1], resume=True) == []


def test_the_second_choice_of_one_scan_is_not_the_first_of_another(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "P1_seg.nii.gz").write_text("by hand")
    scans = [scan(tmp_path / "a/1.nii", "1", "P1"), scan(tmp_path / "b/2.nii", "2", "P1_gliaflow")]
    for inputs in (scans, scans, scans[::-1]):
        submit(flow, out, inputs)
        assert masks(out) == {"P1": "1", "P1_gliaflow": "2"}


def test_a_mask_that_the_user_corrected_is_kept(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    p1 = scan(tmp_path / "P1/a.nii", "1", "P1")
    submit(flow, out, [p1])
    (out / "P1_seg.nii.gz").write_text("corrected")
    assert submit(flow, out, [p1], resume=True) == []
    submit(flow, out, [p1])
    assert (out / "P1_seg.nii.gz").read_text() == "corrected"
    assert masks(out) == {"P1": "1"}


def test_the_mask_of_a_replaced_scan_does_not_stay_beside_its_failure(flow: Flow, tmp_path: Path) -> None:
    def once_bad(broker: Broker, message: ScanMessage) -> None:
        fail(broker, message, "no head") if message.source.data == b"bad" else predict(broker, message)

    p1 = scan(tmp_path / "P1/a.nii", "1", "P1")
    with StandIn(once_bad) as stages:
        flow = Flow(stages.broker.attach(), timeout=30)
        submit(flow, tmp_path / "out", [p1])
        p1.path.write_text("bad")
        submit(flow, tmp_path / "out", [p1])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, TABLE]


def test_an_answer_stays_if_the_unchanged_scan_fails_later(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    p1 = scan(tmp_path / "P1/a.nii", "1", "P1")
    submit(flow, out, [p1])
    (before,) = read_table(out / TABLE).values()
    os.utime(p1.path, ns=(1, 1))
    rows: list[ScanRow] = []
    for reason in ("no head", "no broker"):
        bad = StandIn(lambda broker, message, reason=reason: fail(broker, message, reason))
        with bad as stages, OutFolder(out) as folder:
            failing = Flow(stages.broker.attach(), timeout=30)
            folder.answer(failing, folder.assign([p1]), lambda target, answer, row: rows.append(row))
            assert folder.row("P1").status == "ok"
        (row,) = read_table(out / TABLE).values()
        assert len(row.warnings) == 1
        assert re.match(f"not answered again: .*{reason}", row.warnings[0])
        assert replace(row, warnings=()) == before
    assert [row.status for row in rows] == ["failed", "failed"], "for the screen and the exit code"
    assert masks(out) == {"P1": "1"}
    assert submit(flow, out, [p1], resume=True) == []


def test_without_the_record_all_files_count_as_the_users(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    p1 = scan(tmp_path / "P1/a.nii", "1", "P1")
    submit(flow, out, [p1])
    (out / RECORD).unlink()
    assert submit(flow, out, [p1], resume=True) == ["P1"]
    assert [row.mask for row in read_table(out / TABLE).values()] == ["P1_gliaflow_seg.nii.gz"]
    (out / RECORD).unlink()
    other = scan(tmp_path / "other/P1/b.nii", "2", "P1")
    assert submit(flow, out, [other]) == ["P1-2"], "a row with another source is another scan's"


def test_a_run_that_was_killed_is_resumed_in_its_own_files(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scans = [scan(tmp_path / f"P{n}/a.nii", str(n), f"P{n}") for n in range(3)]
    submit(flow, out, scans)
    write_table(out / TABLE, list(read_table(out / TABLE).values())[:1])  # the table was not written since
    with (out / RECORD).open("a") as record:
        record.write('\n{"file": "P2_se')  # half a line
    assert submit(flow, out, scans, resume=True) == ["P1", "P2"]
    assert sorted(path.name for path in out.glob("*.gz")) == [f"P{n}_seg.nii.gz" for n in range(3)]
    assert masks(out) == {"P0": "0", "P1": "1", "P2": "2"}


def test_answers_that_came_before_an_error_are_in_the_table(flow: Flow, tmp_path: Path) -> None:
    scans = [scan(tmp_path / f"P{n}/a.nii", str(n), f"P{n}") for n in range(3)]

    def stop(target: Target, *_: object) -> None:
        if target.scan == "P1":
            raise KeyboardInterrupt

    with OutFolder(tmp_path / "out") as folder, pytest.raises(KeyboardInterrupt):
        folder.answer(flow, folder.assign(scans), stop)
    assert list(masks(tmp_path / "out").values()) == ["0", "1"]


def test_a_mask_that_cannot_be_written_fails_its_scan(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gliaflow_client.out_folder.as_gzip", full)
    submit(flow, tmp_path / "out", [scan(tmp_path / "P1/a.nii", "1")])
    (row,) = read_table(tmp_path / "out" / TABLE).values()
    assert (row.status, row.error, row.mask) == ("failed", "mask not written: No space left on device", "")


def test_changes_of_the_user_during_a_run_are_kept(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scans = [scan(tmp_path / f"P{n}/a.nii", str(n), f"P{n}") for n in range(3)]
    submit(flow, out, scans)

    def note(*_: object) -> None:
        rows = [replace(row, added={"note": f"about {row.scan}"}) for row in read_table(out / TABLE).values()]
        write_table(out / TABLE, rows)

    with OutFolder(out) as folder:
        folder.answer(flow, folder.assign(scans[:1]), note)
    assert [row.added["note"] for row in read_table(out / TABLE).values()] == ["about P0", "about P1", "about P2"]

    with OutFolder(out) as folder:
        folder.answer(flow, folder.assign(scans[:1]), lambda *_: (out / TABLE).write_text("mine") and None)
        assert folder.table.name == "predictions_gliaflow1.csv"
    assert (out / TABLE).read_text() == "mine"
    assert len(read_table(folder.table)) == 3


def test_two_commands_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with OutFolder(tmp_path), pytest.raises(UsageError, match="another gliaflow command writes into this folder"):
        OutFolder(tmp_path)
    OutFolder(tmp_path).__exit__(None, None, None)


def test_a_lock_of_another_machine_on_cifs_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gliaflow_runtime.files.fcntl.flock", held)
    with pytest.raises(UsageError, match="another gliaflow command writes into this folder"):
        OutFolder(tmp_path)


def test_a_folder_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        OutFolder(tmp_path / "file")
    (tmp_path / TABLE).write_text("subject,age\n")
    with pytest.raises(UsageError, match="not a table of `gliaflow submit`"):
        OutFolder(tmp_path)
    (tmp_path / TABLE).unlink()
    OutFolder(tmp_path).__exit__(None, None, None)


def test_resume_gives_kept_rows_the_labels_of_today(flow: Flow, tmp_path: Path) -> None:
    p1 = scan(tmp_path / "P1/a.nii", "1", "P1")
    submit(flow, tmp_path / "out", [p1])
    assert submit(flow, tmp_path / "out", [replace(p1, grade="LGG", patient="TCGA-1")], resume=True) == []
    (row,) = read_table(tmp_path / "out" / TABLE).values()
    assert (row.patient, row.true_grade, row.grade) == ("TCGA-1", "LGG", "HGG")


def test_names_that_a_spreadsheet_program_changed_are_restored(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    p1 = scan(tmp_path / "P1/0012.nii", "1", "0012_flair")
    submit(flow, out, [replace(p1, patient="0012")])
    (row,) = before = list(read_table(out / TABLE).values())
    write_table(out / TABLE, [replace(row, patient="12", mask="")])
    with OutFolder(out) as folder:
        assert list(folder.rows.values()) == before
        assert folder.notes[0] == f"{out / TABLE}: 0012_flair: patient '12' is '0012' again, as gliaflow wrote it"
    assert submit(flow, out, [replace(p1, patient="0012")], resume=True) == []
    assert list(read_table(out / TABLE).values()) == before, "in the file too"


def test_values_that_were_sorted_away_from_their_scan_are_restored(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scans = [scan(tmp_path / f"{name}.nii", name, name) for name in ("1", "2")]
    submit(flow, out, scans)
    one, two = before = list(read_table(out / TABLE).values())
    swapped = [replace(one, tumour_ml=9.25, grade="LGG"), replace(two, p_hgg=0.25)]
    write_table(out / TABLE, swapped)
    with OutFolder(out) as folder:
        assert [note.split(": ", 1)[1] for note in folder.notes] == [
            f"1: grade 'LGG' is {one.grade!r} again, as gliaflow wrote it",
            f"1: tumour_ml 9.25 is {one.tumour_ml} again, as gliaflow wrote it",
            f"2: p_hgg 0.25 is {two.p_hgg} again, as gliaflow wrote it",
        ]
    assert submit(flow, out, scans, resume=True) == []
    assert list(read_table(out / TABLE).values()) == before


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_text("subject,age\n")
    with pytest.raises(UsageError):
        OutFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]


def test_a_folder_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^--out /proc/nope: cannot be created \(.*\); name a folder you can write to$"
    ):
        OutFolder(Path("/proc/nope"))
    (tmp_path / TABLE).mkdir()
    with pytest.raises(UsageError, match=rf"{TABLE}: a folder, not a table; move it, or choose another --out$"):
        OutFolder(tmp_path)
