"""What an image's name says, in the styles that people use; and whose scan it is."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from gliaflow_plugins.cohorts.image_names import case_key, is_image, judge, name_of, patient_of, stem

STUDY = PurePosixPath("/study")
KINDS = {
    "FLAIR": """flair FLAIR P1_flair P1-flair P1.flair P1_FLAIR P1_t2f BraTS-GLI-00001-000-t2f P1_t2_flair T2-FLAIR
        T2FLAIR t2_tse_flair_tra ax_flair_p2 P1_FLAIR_brain flair_masked rFLAIR FLAIR_N4
        900-00-1961_2005.07.05_flair_LPS_rSRI
        UCSF-PDGM-0004_FLAIR_bias sub-01_ses-1_run-2_FLAIR sub-01_space-T1w_FLAIR sub-01_ses-T1_FLAIR flair_to_t1
        P1_FLAIR_to_MNI152 t2_tirm_tra_dark-fluid t2_spc_da-fl_sag CT_001_flair tumor_001_flair GT_001_flair""",
    "mask": """seg mask P1_seg P1_SEG P1.seg P1-seg P1_mask P1_label P1_labels P1_flair-label P1_segmentation
        Segmentation P1_tumor P1_lesion P1_truth P1_gt P1_pred P1_roi P1_Läsion P1_Maske
        HF1_GlistrBoost_ManuallyCorrected W39_Segm
        aseg aparc+aseg brainmask wmh flair_seg FLAIR_mask flair_lesion flair_tumor flairmask seg_001_flair mask_flair
        P1_FLAIR_brain_mask sub-01_dseg sub-01_probseg sub-01_label-lesion_roi sub-01_desc-brain_mask
        UCSF-PDGM-0004_brain_parenchyma_segmentation label_001 mask_001 tumor_001""",
    "other sequence": """T1 T1CE T2 t1ce P1_t1 P1_T1w P1_T1Gd P1_t1n P1_t2w 3DT1 P1_dwi P1_DWI_b1000 P1_adc P1_swi
        UCSF-PDGM-0004_DTI_eddy_FA sub-01_T1w sub-01_T2w sub-01_T2star sub-01_bold sub-01_PDw sub-01_angio
        sub-01_space-FLAIR_T1w t1_to_flair T1toFLAIR T1_in_FLAIR T1FLAIR MPRAGE localizer""",
    "doubtful file": "T1_FLAIR P1_T1_FLAIR FLAIR_T1",
    "derivative": "flair_prob FLAIR_pve_0 flair_template FLAIR_jacobian P1_flair_warp P1_T2map P1_biasfield",
    "unknown": "P1 scan image 001 P1_brain P1_t0 BRATS_306 BRATS_306_0000 glioma_0001 orig MSSEG_001 Untitled",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, text in KINDS.items() for name in text.split()])
def test_the_name_says_what_the_image_is(kind: str, name: str) -> None:
    for ending in (".nii.gz", ".NII.GZ", ".Nii", ".mgz", ".nrrd"):
        assert judge(STUDY / f"P9/{name}{ending}", STUDY).kind == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("scan_as_mask/scan_as_mask_flair.nii.gz", "FLAIR"),
        ("scan_as_mask/scan_as_mask_seg.nii.gz", "mask"),
        ("FLAIR/P1.nii.gz", "FLAIR"),
        ("P1/5_AX_FLAIR/P1_5.nii.gz", "FLAIR"),
        ("T1/P1.nii.gz", "other sequence"),
        ("P1/4_Ax_T1_POST/P1_4.nii.gz", "other sequence"),
        ("T1/P1_flair.nii.gz", "FLAIR"),  # T1 may be a visit
        ("labels/P1.nii.gz", "mask"),
        ("lesion_masks/P1_flair.nii.gz", "mask"),
        ("P1/HD-GLIO-AUTO-segmentation/native/flair.nii.gz", "mask"),
        ("images/P1.nii.gz", "unknown"),
        ("brain_tumor/P1.nii.gz", "unknown"),
        ("P_T1/P_T1_flair.nii.gz", "FLAIR"),  # the folder's name says nothing about the image
    ],
)
def test_a_folder_says_what_the_name_does_not(path: str, kind: str) -> None:
    assert judge(STUDY / path, STUDY).kind == kind


def test_of_the_folders_around_only_those_of_the_submission_count() -> None:
    assert judge(PurePosixPath("/T1_masks/study/P1.nii.gz"), PurePosixPath("/T1_masks/study")).kind == "unknown"
    assert judge(PurePosixPath("/data/masks/P1.nii.gz"), PurePosixPath("/data/masks")).kind == "mask"
    assert judge(PurePosixPath("/wmh/P1/FLAIR.nii.gz"), PurePosixPath("/wmh")).kind == "FLAIR"


@pytest.mark.parametrize(
    ("path", "name", "patient"),
    [
        ("P1_flair.nii.gz", "P1_flair", "P1"),
        ("P1.nii.gz", "P1", "P1"),
        ("45/45_flair.nii.gz", "45_flair", "45"),
        ("BraTS-GLI-00001-000-t2f.nii.gz", "BraTS-GLI-00001-000-t2f", "BraTS-GLI-00001-000"),
        ("TCGA-CS-4942_flair.nii", "TCGA-CS-4942_flair", "TCGA-CS-4942"),
        ("900-00-1961_2005.07.05_flair_LPS_rSRI.nii.gz", "900-00-1961_2005.07.05_flair_LPS_rSRI", "900-00-1961"),
        ("sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-1_FLAIR", "sub-01"),
        ("flair_P1.nii.gz", "flair_P1", "P1"),
        ("P1_baseline_flair.nii.gz", "P1_baseline_flair", "P1"),
        ("P1/flair.nii.gz", "P1_flair", "P1"),
        ("P1/baseline/FLAIR.nii.gz", "P1_baseline_FLAIR", "P1"),
        ("P2/ses-01/anat/t2_flair.nii.gz", "P2_ses-01_anat_t2_flair", "P2"),
        ("P3/2019-01-05/nifti/scan.nii.gz", "P3_2019-01-05_nifti_scan", "P3"),
        ("P3/MRI_20190105/5_AX_FLAIR/image.nii.gz", "P3_MRI_20190105_5_AX_FLAIR_image", "P3"),
        ("P4/visit 2/ax_flair_p2.nii.gz", "P4_visit 2_ax_flair_p2", "P4"),
        ("Patient-001/week-000-1/FLAIR.nii.gz", "Patient-001_week-000-1_FLAIR", "Patient-001"),
        ("EGD-0001/2_FLAIR/NIFTI/FLAIR.nii.gz", "EGD-0001_2_FLAIR_NIFTI_FLAIR", "EGD-0001"),
        ("scan_001/flair.nii.gz", "scan_001_flair", "scan_001"),
        ("45/flair.nii.gz", "45_flair", "45"),
        ("P5/scan1/301_AX_FLAIR/image.nii.gz", "P5_scan1_301_AX_FLAIR_image", "P5"),
        ("P5/pre/brain.nii.gz", "P5_pre_brain", "P5"),
        ("UCSF-PDGM-0004_nifti/FLAIR.nii.gz", "UCSF-PDGM-0004_nifti_FLAIR", "UCSF-PDGM-0004"),
        ("BraTS2021/BraTS2021_00030_flair.nii", "BraTS2021_00030_flair", "BraTS2021_00030"),
        ("P1/AX_FLAIR_20190105_5.nii", "P1_AX_FLAIR_20190105_5", "P1"),
    ],
)
def test_name_and_patient_come_from_the_files_own_path(path: str, name: str, patient: str) -> None:
    assert (name_of(STUDY / path), patient_of(STUDY / path)) == (name, patient)


def test_endings_are_read_without_regard_to_case() -> None:
    assert stem(PurePosixPath("P1_FLAIR.Nii.GZ")) == "P1_FLAIR"
    assert not is_image("backup.tar.gz")
    assert is_image("P1.HDR")


def test_versions_of_one_scan_have_the_same_key() -> None:
    same = ["flair", "flair_brain", "FLAIR_N4", "t2_flair", "ax_flair_p2", "flair (1)", "flair - Kopie"]
    assert {case_key(STUDY / f"P1/{name}.nii.gz") for name in same} == {()}
    assert case_key(STUDY / "sub-01_run-1_FLAIR.nii") == case_key(STUDY / "sub-01_run-2_FLAIR.nii")
    assert case_key(STUDY / "TCGA-CS-1_flair.nii") != case_key(STUDY / "TCGA-DU-1_flair.nii")
