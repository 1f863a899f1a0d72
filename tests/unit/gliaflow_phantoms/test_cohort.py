"""A folder of phantoms is one cohort: it resumes and grows, what is in it does not change, and no other mixes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow_cli.main import app
from gliaflow_phantoms import cohort
from gliaflow_phantoms.atlas import atlas
from gliaflow_phantoms.cohort import COHORT_FILE, image_file, made_by, write_cohort
from gliaflow_phantoms.phantom import DRAWING, make_patient
from gliaflow_plugins.cohorts.case_folders import Brats
from gliaflow_runtime.errors import UsageError
from typer.testing import CliRunner

SEED, SHARE = 3, 0.5
Files = dict[Path, tuple[int, bytes]]


def files(folder: Path) -> Files:
    """When each file was written, and its bytes."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def voxels(folder: Path, kind: str) -> np.ndarray:
    return np.asarray(nib.load(image_file(folder, kind)).dataobj)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with FLAIR, one of each grade. The atlas was computed once, and not by each thread."""
    folder, seen = tmp_path_factory.mktemp("phantoms") / "two", []
    atlas.cache_clear()
    write_cohort(folder, 2, SEED, SHARE, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert atlas.cache_info().misses == 1
    return folder


@pytest.fixture
def two(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the two patients."""
    return Path(shutil.copytree(drawn, tmp_path / "two"))


def test_a_cohort_is_in_the_brats_layout_and_says_how_it_was_made(two: Path) -> None:
    found = Brats().read(two)
    assert found is not None
    assert [(case.patient, case.grade, case.mask is not None) for case in found.cases] == [
        ("phantom_3_0001", "HGG", True),
        ("phantom_3_0000", "LGG", True),
    ]
    made = {"made_by": "gliaflow phantom", "drawing": DRAWING, "seed": SEED, "hgg_share": SHARE}
    assert made_by(two) == {"made_by": made}
    assert made_by(two / "HGG") == {}


def test_patients_and_sequences_are_added_and_no_file_that_is_there_is_written_again(two: Path) -> None:
    before = files(two)
    three = write_cohort(two, 3, SEED, SHARE, ("flair", "t1ce"))
    after = files(two)
    assert {path: after[path] for path in before} == before
    assert len(after) - len(before) == 1 + 1 + 3  # T1 after contrast of two, and all of the third
    together = make_patient(three[1].parent.name, np.random.default_rng([SEED, 1]), ("flair", "t1ce"))
    np.testing.assert_array_equal(voxels(three[1], "flair"), together.flair)
    np.testing.assert_array_equal(voxels(three[1], "t1ce"), together.images["t1ce"])
    np.testing.assert_array_equal(voxels(three[1], "seg"), together.mask)

    assert write_cohort(two, 2, SEED, SHARE) == three[:2], "fewer than there are"
    assert files(two) == after


def test_an_interrupted_cohort_resumes_as_if_it_had_not_been(two: Path) -> None:
    before = files(two)
    lost = sorted(two.rglob("*_flair.nii.gz"))[0]
    lost.unlink()
    write_cohort(two, 2, SEED, SHARE)
    after = files(two)
    assert after.keys() == before.keys(), "nothing half written is left"
    assert [path for path in before if after[path] != before[path]] == [lost.relative_to(two)]
    assert nib.load(lost).shape == nib.load(str(lost).replace("flair", "seg")).shape


def test_a_run_that_was_killed_before_its_first_patient_resumes(tmp_path: Path) -> None:
    write_cohort(tmp_path, 0, SEED)
    (tmp_path / ".phantoms.json.0a1b2c3d.part").touch()
    assert write_cohort(tmp_path, 0, SEED) == []


def other_drawing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "DRAWING", DRAWING + 1)


def before_drawings_had_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"made_by": "gliaflow phantom", "patients": 2, "seed": SEED, "hgg_share": SHARE, "sequences": ["flair"]}
    (folder / COHORT_FILE).write_text(json.dumps(made))


def no_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / COHORT_FILE).unlink()


def half_a_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / COHORT_FILE).write_text('{"made_by": "gli')


def other_layout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real patients: with phantoms among them, the cohort would count as phantoms."""
    shutil.rmtree(folder)
    (folder / "sub-01").mkdir(parents=True)


@pytest.mark.parametrize(
    ("seed", "share", "change", "message"),
    [
        (SEED + 1, SHARE, None, "seed 3, not 4"),
        (SEED, 0.6, None, "hgg_share 0.5, not 0.6"),
        (SEED, SHARE, other_drawing, f"drawing {DRAWING}, not {DRAWING + 1}"),
        (SEED, SHARE, before_drawings_had_numbers, f"drawing unknown, not {DRAWING}"),
        (SEED, SHARE, no_record, "no readable phantoms.json"),
        (SEED, SHARE, half_a_record, "no readable phantoms.json"),
        (SEED, SHARE, other_layout, "no readable phantoms.json"),
    ],
)
def test_another_cohort_is_not_mixed_in(
    two: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    share: float,
    change: Callable[[Path, pytest.MonkeyPatch], None] | None,
    message: str,
) -> None:
    if change is not None:
        change(two, monkeypatch)
    before = files(two)
    with pytest.raises(UsageError, match=message) as error:
        write_cohort(two, 3, seed, share)
    assert str(two) in str(error.value)
    assert files(two) == before


def test_the_share_of_high_grade_does_not_depend_on_the_number_of_patients() -> None:
    for share in (0.0, 0.25, 0.6, 1.0):
        for patients in (5, 10, 40):
            assert abs(sum(cohort._grade(k, share) == "HGG" for k in range(patients)) - share * patients) < 1


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hgg_share"):
        write_cohort(tmp_path / "new", 1, SEED, hgg_share=60)
    with pytest.raises(ValueError, match=r"sequences must be flair.*: t1$"):
        write_cohort(tmp_path / "new", 1, SEED, sequences=("t1",))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", "4"), "name another folder, or delete this one"),
        (("--sequences", "t1,t2"), "--sequences must be flair, or flair with some of t1, t1ce, t2: t1, t2"),
    ],
)
def test_the_command_says_what_to_do(two: Path, flags: tuple[str, str], message: str) -> None:
    done = CliRunner().invoke(app, ["phantom", str(two), "--hgg-share", str(SHARE), *flags])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
