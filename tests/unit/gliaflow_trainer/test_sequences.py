"""U-Nets of several sequences: what they learn from, what may be missing, and that FLAIR alone is as it was."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import small  # noqa: E402
from gliaflow_cli.learning import choose_sequences  # noqa: E402
from gliaflow_extractor.extractor import UNetSession  # noqa: E402
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline  # noqa: E402
from gliaflow_plugins.cohorts.volumes import NiftiFile  # noqa: E402
from gliaflow_plugins.contracts import Case, FitContext, PluginError, SequenceFile  # noqa: E402
from gliaflow_plugins.registry import load_registry  # noqa: E402
from gliaflow_runtime.bundle.manifest import BundleError  # noqa: E402
from gliaflow_runtime.errors import UsageError  # noqa: E402
from gliaflow_trainer.fine_tuning import unet_to_fine_tune  # noqa: E402
from gliaflow_trainer.profiles import PROFILES, with_sequences  # noqa: E402
from gliaflow_trainer.run_context import RunContext  # noqa: E402
from gliaflow_trainer.run_folder import settings_of  # noqa: E402
from gliaflow_trainer.sequences import patients_with, refuse_absent, refuse_unlearned, report_missing  # noqa: E402
from gliaflow_trainer.slices import CutScan, Slices, blank_bundle, changed_files, cut  # noqa: E402
from gliaflow_trainer.unet_bundle import UNetRecipe, fit_unet_bundle  # noqa: E402
from gliaflow_trainer.unet_fit import UNetOptions, fit_unet, probabilities, randomised, without_some  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

BOTH = ("flair", "t1ce")
TUMOUR_MM = np.diag([5.0, 5, 6, 1])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """FLAIR scans without a visible tumour, which T1 after contrast shows; H1 has no T1 after contrast."""
    folder = small.write_cohort(tmp_path_factory.mktemp("cohort"), 2, 2)
    found = []
    for case in small.cohort(folder).cases:
        assert isinstance(case.scan, NiftiFile)
        volume = nib.load(case.scan.path).get_fdata()
        beside = case.scan.path.with_name("beside.nii.gz")
        nib.save(nib.Nifti1Image(volume.astype(np.int16), TUMOUR_MM), beside)
        nib.save(nib.Nifti1Image(volume.clip(0, 330).astype(np.int16), TUMOUR_MM), case.scan.path)
        t1ce = {"t1ce": SequenceFile(NiftiFile(beside))}
        found.append(replace(case, sequences={} if case.id == "H1" else t1ce))
    return found


def cut_all(cases: list[Case], folder: Path, drop: float) -> tuple[list[CutScan], dict[str, str]]:
    reasons: dict[str, str] = {}
    bundle = blank_bundle(with_sequences(small.PROFILE, BOTH, drop), folder / "blank")
    scans = cut(cases, bundle, folder / "slices", lambda each: reasons.update({each.case.id: each.reason}))
    return scans, reasons


def test_a_case_that_lacks_a_sequence_is_left_out_by_name_unless_the_sequence_is_dropped_in_training(
    cases: list[Case], tmp_path: Path
) -> None:
    scans, reasons = cut_all(cases, tmp_path / "needed", drop=0)
    assert {scan.case for scan in scans} == {"H0", "L0", "L1"}
    assert "H1_flair.nii.gz: it has no t1ce, which the U-Net needs: put it beside the FLAIR" in reasons["H1"]
    scans, reasons = cut_all(cases, tmp_path / "dropped", drop=0.2)
    assert set(reasons.values()) == {""}
    for scan in scans:
        assert scan.image.shape == (len(scan.mask), 2, 48, 48)
        assert bool(scan.image[:, 1].any()) == (scan.case != "H1")
        assert np.array_equal(next(scan.messages(16)).image, scan.image[:16])
    (path,) = (cases[0].scan.path,)
    changed = replace(cases[0], sequences={"t1ce": SequenceFile(NiftiFile(path))})
    assert changed_files([changed], tmp_path / "dropped/slices", BOTH) == [str(path)]
    assert changed_files([changed], tmp_path / "dropped/slices", ["flair"]) == []


def test_a_run_depends_on_the_sequences_that_it_uses(cases: list[Case]) -> None:
    plain = [replace(case, sequences={}) for case in cases]
    assert settings_of(cases, ["flair"]) == settings_of(plain, ["flair"])
    assert settings_of(cases, BOTH) != settings_of(plain, BOTH)


def test_the_bundle_segments_by_the_second_sequence_and_answers_without_it(cases: list[Case], tmp_path: Path) -> None:
    scans, _ = cut_all(cases, tmp_path, drop=0.3)
    quick = replace(small.PROFILE, unet={**small.PROFILE.unet, "epochs": 7})
    profile = with_sequences(quick, BOTH, 0.3)
    with Progress(disable=True) as bar:
        split = {scan.patient: "train" for scan in scans}
        recipe = UNetRecipe("two", profile)
        bundle = fit_unet_bundle(Slices(scans), split, recipe, tmp_path / "two", RunContext(0, "cpu", bar))
    assert bundle is not None
    assert bundle.manifest.input.channels == BOTH
    assert bundle.manifest.input.optional == ("t1ce",)
    scan = next(scan for scan in scans if scan.case == "L0")
    found = UNetSession(bundle, cropped=False)(np.asarray(scan.image))[1] > 0
    truth = np.asarray(scan.mask) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.6
    net = unet_to_fine_tune(tmp_path / "two", profile)
    assert net.mean.shape == (2, 1, 1)
    with_t1ce = [scan.image[:, 1].astype(np.float64) for scan in scans if scan.case != "H1"]
    expected = np.concatenate(with_t1ce).mean()
    assert float(net.mean[1, 0, 0]) == pytest.approx(expected, rel=1e-4), "a sequence that is missing is no dark one"
    served = probabilities(net, np.asarray(scan.image)) > 0.5
    assert (served != found).mean() < 0.001
    with pytest.raises(BundleError, match="its U-Net takes flair, t1ce, and not flair; give --channels flair,t1ce"):
        unet_to_fine_tune(tmp_path / "two", small.PROFILE)


def test_a_sequence_that_only_measured_patients_have_is_refused(cases: list[Case]) -> None:
    spec = with_sequences(small.PROFILE, BOTH, 0.5).input
    learn = [case for case in cases if case.id == "H1"]
    with pytest.raises(PluginError, match=r"^fold 1/2: no patient to learn from has t1ce \(T1 after contrast\)"):
        refuse_unlearned(learn, spec, "fold 1/2: ")
    refuse_unlearned(learn, small.PROFILE.input)
    refuse_unlearned(cases, spec)


def test_sequences_move_alike_and_their_intensities_change_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    blobs = torch.from_numpy(rng.random((6, 1, 8, 8))).float()
    image = torch.nn.functional.interpolate(blobs, (64, 64), mode="bicubic").clamp(min=0)
    image, mask = torch.cat([image, image, torch.zeros_like(image)], dim=1), (image > 0.6).float()
    moved, _ = randomised(image, mask, torch.Generator().manual_seed(0))
    assert not moved[:, 2].any(), "a sequence that is missing stays so"
    for flair, other in moved[:, :2].flatten(2).unbind(0):
        assert not torch.allclose(flair, other, rtol=0.05)
        assert float(torch.corrcoef(torch.stack([flair, other]))[0, 1]) > 0.8
    alone, its_mask = randomised(image[:, :1], mask, torch.Generator().manual_seed(0))
    assert alone.shape == its_mask.shape


def test_dropped_sequences_are_0_at_the_rate_that_was_asked_for_and_the_flair_stays() -> None:
    image = torch.ones(4000, 3, 1, 1)
    kept = without_some(image, 0.2, torch.Generator().manual_seed(0)).mean(dim=(0, 2, 3))
    assert kept[0] == 1
    assert kept[1:].tolist() == pytest.approx([0.8, 0.8], abs=0.03)


def test_augmentations_move_all_sequences_alike_and_leave_a_missing_one_missing() -> None:
    pipeline = AugmentationPipeline(load_registry(), [("rotation", {}), ("elastic", {})])
    plane = np.random.default_rng(0).random((48, 48), np.float32)
    mask = (plane > 0.5).astype(np.uint8)
    alone, its_mask = pipeline(plane, mask, np.random.default_rng(1))
    both, same_mask = pipeline(np.stack([plane, 2 * plane]), mask, np.random.default_rng(1))
    assert np.array_equal(both[0], alone)
    assert np.allclose(both[1], 2 * alone, atol=1e-6)
    assert np.array_equal(same_mask, its_mask)

    seen = []

    def augment(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        seen.append(image.shape)
        return image + 1, mask

    slices = SimpleNamespace(images=[np.stack([plane, 0 * plane])] * 2, masks=[mask] * 2)
    fitted = [
        fit_unet(slices, np.arange(2), np.zeros(0, int), UNetOptions(2, epochs=1), FitContext(0), augment=each)[0]
        for each in (augment, lambda image, mask, rng: (np.stack([image[0] + 1, image[1]]), mask))
    ]
    assert set(seen) == {(2, 48, 48)}
    for a, b in zip(fitted[0].parameters(), fitted[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_flags_give_channels_in_order_and_wrong_ones_are_explained() -> None:
    profile = PROFILES["demo"]
    assert choose_sequences(profile, None, None) is profile
    chosen = choose_sequences(profile, "t2, t1ce,FLAIR", 0.0)
    assert (chosen.input.channels, chosen.input.optional) == (("flair", "t1ce", "t2"), ())
    assert choose_sequences(profile, "flair,t1", 0.5).unet["drop"] == 0.5
    with pytest.raises(UsageError, match="'flair,t1c' is not flair with some of t1, t1ce, t2"):
        choose_sequences(profile, "flair,t1c", None)
    with pytest.raises(UsageError, match="not flair with"):
        choose_sequences(profile, "t1", None)
    with pytest.raises(UsageError, match="--drop: the FLAIR alone cannot be left out"):
        choose_sequences(profile, None, 0.1)


def test_a_sequence_that_no_scan_has_is_refused_and_one_that_some_lack_is_counted(cases: list[Case]) -> None:
    spec = with_sequences(small.PROFILE, ("flair", "t1ce", "t2"), 0.2).input
    with pytest.raises(
        PluginError, match=r"no scan with a mask has t2 \(T2\): put it beside .* \(--channels flair,t1ce\)"
    ):
        refuse_absent(cases, spec)
    in_doubt = [replace(case, unused={"t2": "several files may be its T2"}) for case in cases]
    with pytest.raises(PluginError, match=r"has t2 \(T2\) \(H0: several files may be its T2\): put"):
        refuse_absent(in_doubt, spec)
    for drop, then in ((0.2, "they are used without it"), (0.0, "left out, since the U-Net needs it")):
        both, said = with_sequences(small.PROFILE, BOTH, drop).input, StringIO()
        refuse_absent(cases, both)
        report_missing(cases, both, Progress(console=Console(file=said, width=1000), disable=True))
        assert f"1 of 4 scans have no t1ce: H1; {then}" in said.getvalue()
    assert patients_with(cases, both) == {"t1ce": 3}
    assert patients_with(cases, small.PROFILE.input) == {}
