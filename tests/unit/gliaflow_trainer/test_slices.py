"""Slices of a cohort on disk are those of the preprocessor, are cut once, and give the features that serving gives."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("torch")

import small
from gliaflow_extractor.extractor import Extractor, UNetSession, crop
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.slices import prepare, prepare_mask
from gliaflow_proto import FeaturesMessage, Scan, ScanMessage, Source, message_id
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.stage import Stage
from gliaflow_trainer import slices as slices_module
from gliaflow_trainer.features import extract
from gliaflow_trainer.leaks import refuse_copies
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.slices import CutScan, Slices, blank_bundle, changed_files, cut, cut_cohort, kept_scans
from rich.progress import Progress
from sample_scans import BROKEN

DELIVERY = Delivery("", "", b"")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return small.cohort(small.write_cohort(tmp_path_factory.mktemp("cohort"), 2, 2)).cases


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return blank_bundle(small.PROFILE, tmp_path_factory.mktemp("blank"))


def cut_all(cases: list[Case], bundle: Bundle, folder: Path) -> tuple[list[CutScan], dict[str, str]]:
    """The scans, and for each case the reason why it cannot be used; "": it can."""
    reasons: dict[str, str] = {}
    scans = cut(cases, bundle, folder, lambda result: reasons.update({result.case.id: result.reason}))
    return scans, reasons


def test_slices_and_masks_are_what_prepare_and_prepare_mask_give(
    cases: list[Case], bundle: Bundle, tmp_path: Path
) -> None:
    scans, reasons = cut_all(cases, bundle, tmp_path)
    assert reasons == dict.fromkeys(["H0", "H1", "L0", "L1"], "")
    assert {(scan.case, scan.patient, scan.label) for scan in scans} == {(c.id, c.patient, c.label) for c in cases}
    for scan in scans:
        case = next(case for case in cases if case.id == scan.case)
        prepared = prepare(*read_nifti(case.scan.read()), bundle.manifest.input)
        assert case.mask is not None
        assert scan.geometry == prepared.geometry
        assert scan.image.dtype == np.float16
        assert np.array_equal(scan.flair, prepared.image.astype(np.float16))
        assert np.array_equal(scan.mask, prepare_mask(read_nifti(case.mask.read())[0], prepared.geometry))
        assert set(np.unique(scan.mask)) == {0, 4}, "regions keep their numbers"


def test_slices_of_several_scans_are_numbered(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    scans, _ = cut_all(cases, bundle, tmp_path)
    slices = Slices(scans)
    assert len(slices.images) == len(slices.masks) == sum(len(scan.image) for scan in scans)
    numbers = slices.of(["L1"])
    (scan,) = (scan for scan in scans if scan.patient == "L1")
    assert np.array_equal(np.stack([slices.images[i] for i in numbers]), scan.image)
    assert np.array_equal(np.stack([slices.masks[i] for i in numbers]), scan.mask)
    assert len(slices.of([])) == len(slices.of(["nobody"])) == 0


class Killed(BaseException):
    pass


def test_after_a_kill_only_unfinished_scans_are_cut_again(
    cases: list[Case], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def killed(path: Path, planes: np.ndarray) -> None:
        if path.name.endswith("mask.npy") and len(list(tmp_path.glob("*.json"))) == 2:
            raise Killed
        save(path, planes)

    with monkeypatch.context() as patch:
        patch.setattr(slices_module.np, "save", killed)
        with pytest.raises(Killed):
            cut_all(cases, bundle, tmp_path)
    before = {scan.id: (tmp_path / f"{scan.id}.json").stat().st_mtime_ns for scan in kept_scans(tmp_path)}
    assert len(before) == 2
    assert len(list(tmp_path.glob("*.image.npy"))) == 3, "half of a scan is there, and does not count"

    read: list[str] = []

    class Watched:
        def __init__(self, case: Case) -> None:
            self.case = case

        def read(self) -> bytes:
            read.append(self.case.id)
            return self.case.scan.read()

    scans, reasons = cut_all([replace(case, scan=Watched(case)) for case in cases], bundle, tmp_path)
    assert len(scans) == len(reasons) == 4
    assert sorted(read) == sorted(case.id for case in cases if message_id(case.id) not in before)
    assert all((tmp_path / f"{name}.json").stat().st_mtime_ns == then for name, then in before.items())
    whole, _ = cut_all(cases, bundle, tmp_path / "whole")
    for resumed, uninterrupted in zip(scans, whole, strict=True):
        assert np.array_equal(resumed.image, uninterrupted.image)
        assert np.array_equal(resumed.mask, uninterrupted.mask)


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __str__(self) -> str:
        return "cohort/bad.nii"

    def read(self) -> bytes:
        return self.data


class Missing(Bytes):
    def read(self) -> bytes:
        raise OSError("cohort/bad.nii: No such file or directory")


def test_bad_scans_and_masks_are_named_and_left_out(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    good, case = cases[0], cases[1]
    text, empty = (BROKEN[name][0]() for name in ("text.nii", "all_zero.nii.gz"))
    other = nib.Nifti1Image(np.eye(9, 8, dtype=np.uint8)[..., None].repeat(7, 2), np.eye(4)).to_bytes()
    soft = nib.Nifti1Image(np.random.default_rng(0).random(small.SHAPE).astype(np.float32), np.eye(4)).to_bytes()
    labels = np.asarray(nib.load(case.mask.path).dataobj)
    beside = nib.Nifti1Image(labels, np.diag([-5.0, 5, 6, 1])).to_bytes()
    bad = {
        "gone": (replace(case, scan=Missing(b"")), "cohort/bad.nii: No such file or directory"),
        "text": (replace(case, scan=Bytes(text)), "cohort/bad.nii: .*not a NIfTI"),
        "empty": (replace(case, scan=Bytes(empty)), "cohort/bad.nii: it is constant or almost empty"),
        "mask text": (replace(case, mask=Bytes(text)), "mask cohort/bad.nii: .*not a NIfTI"),
        "mask gone": (replace(case, mask=Missing(b"")), "cohort/bad.nii: No such file or directory"),
        "mask shape": (replace(case, mask=Bytes(other)), r"mask cohort/bad.nii: shape \[9, 8, 7\], but its scan has"),
        "mask is scan": (replace(case, mask=Bytes(case.scan.read())), "mask cohort/bad.nii: it is the scan itself"),
        "mask soft": (replace(case, mask=Bytes(soft)), "mask cohort/bad.nii: .* a probability map"),
        "mask beside": (
            replace(case, mask=Bytes(beside)),
            "mask cohort/bad.nii: .* up to 70 voxels away from its scan",
        ),
    }
    scans, reasons = cut_all([*(replace(case, id=name) for name, (case, _) in bad.items()), good], bundle, tmp_path)
    assert [scan.case for scan in scans] == [good.id]
    for name, (_, reason) in bad.items():
        assert re.search(reason, reasons[name]), reasons[name]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npy", ".refused"}


def test_a_refused_scan_stays_refused_on_resume(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    """Or a mask that was repaired after the U-Net was fitted would change the split of the patients."""
    refused = replace(cases[0], mask=Bytes(cases[0].scan.read()))
    _, before = cut_all([refused, cases[1]], bundle, tmp_path)
    scans, after = cut_all([cases[0], cases[1]], bundle, tmp_path)
    assert [scan.case for scan in scans] == [cases[1].id]
    assert after == before
    assert changed_files([refused, cases[1]], tmp_path) == []
    assert changed_files([cases[0], cases[1]], tmp_path) == [str(cases[0].mask)]


def test_an_empty_mask_is_used_and_named(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    mask = nib.load(cases[0].mask.path)
    empty = nib.Nifti1Image(np.zeros(small.SHAPE, np.uint8), mask.affine).to_bytes()
    doubts: list[str] = []
    (scan,) = cut([replace(cases[0], mask=Bytes(empty))], bundle, tmp_path, lambda result: doubts.extend(result.doubts))
    assert not scan.mask.any()
    assert doubts == ["mask cohort/bad.nii: the mask is empty; the patient counts as one without tumour"]


def copies(cases: list[Case], folder: Path) -> list[Case]:
    """The cases with copies of their files, which a test may change."""
    folder.mkdir()
    copied = []
    for case in cases:
        paths = [Path(shutil.copy(volume.path, folder)) for volume in (case.scan, case.mask)]
        copied.append(replace(case, scan=NiftiFile(paths[0]), mask=NiftiFile(paths[1])))
    return copied


def test_files_that_changed_since_they_were_cut_are_named(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    own = copies(cases, tmp_path / "cohort")
    folder = tmp_path / "slices"
    cut_all(own, bundle, folder)
    assert changed_files(own, folder) == []
    scan, mask, gone = own[0].scan.path, own[1].mask.path, own[2].scan.path
    for path in (scan, mask, gone):
        os.utime(path, (0, 0))
    assert changed_files(own, folder) == [], "a new date is no change"
    assert changed_files(copies(cases, tmp_path / "copy"), folder) == [], "nor is a copy of the folder"
    for path in (scan, mask):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[0, 0, 0] += 1
        nib.save(nib.Nifti1Image(voxels, image.affine), path)
    gone.unlink()
    assert changed_files(own, folder) == [str(scan), str(mask), f"{gone}: No such file or directory"]
    with (
        Progress(disable=True) as bar,
        pytest.raises(PluginError, match=r"changed since they were cut: .*remove it, or"),
    ):
        cut_cohort(own, small.PROFILE, tmp_path, bar)


def test_two_scans_with_the_same_voxels_have_the_same_digest(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    """However they are packed."""
    image = nib.load(cases[0].scan.path)
    packed = Bytes(gzip.compress(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine).to_bytes()))
    scans, _ = cut_all([*cases[:2], replace(cases[0], id="again", scan=packed)], bundle, tmp_path)
    voxels = {scan.case: scan.voxels for scan in scans}
    assert voxels["again"] == voxels["H0"] != voxels["H1"]


def test_one_tumour_in_the_masks_of_two_scans_has_one_digest(
    cases: list[Case], bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the scans are. An empty mask is not compared."""
    image = nib.load(cases[1].mask.path)
    voxels = nib.load(cases[1].scan.path).get_fdata(dtype=np.float32)
    noisy = voxels * np.random.default_rng(0).uniform(0.9, 1.1, voxels.shape).astype(np.float32)
    scan = Bytes(nib.Nifti1Image(noisy, image.affine).to_bytes())
    empty = Bytes(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_bytes())
    again = replace(cases[1], id="again", patient="again", scan=scan)
    none = [replace(cases[1], id=name, patient=name, mask=empty) for name in ("none", "nothing")]
    scans, _ = cut_all([*cases[:2], again, *none], bundle, tmp_path)
    tumours = {each.case: each.tumour for each in scans}
    assert tumours["again"] == tumours["H1"] != tumours["H0"] != ""
    assert tumours["none"] == tumours["nothing"] == ""
    with Progress() as bar:
        refuse_copies([each for each in scans if each.case in ("H0", "H1", "again")], False, bar)
    assert "problem   the same mask voxels: H1 and again" in capsys.readouterr().out


def test_a_cohorts_scan_without_mask_is_not_read(cases: list[Case], tmp_path: Path) -> None:
    unmasked = replace(cases[1], mask=None, scan=Missing(b""))
    with Progress(disable=True) as bar:
        scans = cut_cohort([cases[0], unmasked], small.PROFILE, tmp_path, bar)
    assert [scan.case for scan in scans] == [cases[0].id]


def test_gzip_and_the_stored_order_make_no_difference(cases: list[Case], bundle: Bundle, tmp_path: Path) -> None:
    """A file's content decides, not its name."""
    image = nib.load(cases[0].scan.path)
    mask = nib.load(cases[0].mask.path)
    turned = [each.as_reoriented([[1, -1], [0, 1], [2, 1]]).to_bytes() for each in (image, mask)]
    case = replace(cases[0], id="turned", scan=Bytes(gzip.compress(turned[0])), mask=Bytes(turned[1]))
    (plain, same), reasons = cut_all([cases[0], case], bundle, tmp_path)
    assert set(reasons.values()) == {""}
    assert np.array_equal(plain.image, same.image)
    assert np.array_equal(plain.mask, same.mask)


def features_of(stage: Stage, messages: list) -> list[FeaturesMessage]:
    return [result for message in messages for result in stage.handle(message, DELIVERY).publish]


def test_stored_slices_give_the_features_that_serving_gives(cases: list[Case], tmp_path: Path) -> None:
    """A scan through preprocessor and extractor gives the features of the same scan when it is cut and stored first."""
    bundle = load_bundle(None)
    (scan,), _ = cut_all(cases[:1], bundle, tmp_path / "slices")
    unet = UNetSession(bundle)
    extractor = Extractor(bundle, unet)
    source = Source(uri=cases[0].scan.path.as_uri())
    served = Preprocessor(bundle, MemoryBroker(), [str(cases[0].scan.path.parent)]).handle(
        ScanMessage(id="s", scan=Scan(id=scan.id, label="HGG"), source=source), DELIVERY
    )
    direct = features_of(extractor, list(served.publish))
    stored = features_of(extractor, list(scan.messages(3)))
    assert [message.part for message in stored] == [[n, len(stored)] for n in range(-(-len(scan.image) // 3))]
    for name in ("features", "mask"):
        one_by_one, at_once = (np.concatenate([getattr(m, name) for m in messages]) for messages in (stored, direct))
        assert np.allclose(one_by_one.astype(np.float32), at_once.astype(np.float32), rtol=2e-2, atol=2e-2)
    assert [z for message in stored for z in message.geometry.slices] == list(scan.geometry.slices)
    with Progress(disable=True) as bar:
        store = extract([scan], bundle, tmp_path / "features", RunContext(0, "cpu", bar), cropped=True)
        again = extract([], bundle, tmp_path / "features", RunContext(0, "cpu", bar), cropped=True)
    kept = store.batch(np.arange(len(store)))
    assert np.allclose(kept, np.concatenate([m.features for m in direct]).astype(np.float32), rtol=2e-2, atol=2e-2)
    assert set(store.patients) == {"H0"}
    assert len(again) == len(store), "a complete store is not extracted again"


def test_features_that_cannot_be_recorded_end_the_run(cases: list[Case], tmp_path: Path) -> None:
    bundle = load_bundle(None)
    (scan,), _ = cut_all(cases[:1], bundle, tmp_path / "slices")
    with Progress(disable=True) as bar, pytest.raises(RuntimeError, match=r"1 scans could not be.*'III'"):
        extract([replace(scan, label="III")], bundle, tmp_path / "f", RunContext(0, "cpu", bar), cropped=False)
    assert not (tmp_path / "f" / "complete").exists()


def test_cropped_features_are_a_window_around_the_tumour() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((3, 2, 8, 8), dtype=np.float32) + 1
    mask = np.zeros((3, 32, 32), np.bool_)  # 4 pixels a position
    mask[0, 4:12, 20:30] = True  # rows 1 to 2, columns 5 to 7: half of the last
    mask[1, :4, :4] = True  # in the corner: part of the window is outside the map
    window = crop(features, mask)
    assert window.shape == (3, 2, 4, 4)
    whole, half = features[0, :, 1:3, 5:7].sum(), features[0, :, 1:3, 7].sum() / 2
    assert window[0].sum() == pytest.approx(whole + half), "each position is weighted by its share of the mask"
    assert np.count_nonzero(window[1]) == 2
    assert window[1, :, 2, 2] == pytest.approx(features[1, :, 0, 0]), "the middles of tumour and window coincide"
    assert not window[2].any(), "without tumour, all is 0"
