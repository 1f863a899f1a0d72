"""The mask as a DICOM segmentation, and what dcmqi reads back from it."""

from __future__ import annotations

import copy
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow.answer import Answer, write_image
from gliaflow_dicom.objects.make import make_objects
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from requirements import require_program
from sample_answers import SHAPE, answer_to, flair_series, lesion, no_tumour, small_series, voxels
from sample_dicom import AXIAL, LPS, _item, enhanced, single_frames, uid, write


def grid(rows_along: Any, columns_along: Any, mm: tuple[float, float, float] = (1, 1, 5)) -> NDArray[np.float64]:
    """The affine of slices with these direction cosines (LPS), as in ImageOrientationPatient."""
    affine = np.eye(4)
    affine[:3, :3] = np.stack([rows_along, columns_along, np.cross(rows_along, columns_along)], axis=1) * mm
    affine[:3, 3] = -60.25, -100.7, 33
    return LPS @ affine


TURN = np.deg2rad(18)
OBLIQUE = ([np.cos(TURN), np.sin(TURN), 0], [-np.sin(TURN) * 0.8, np.cos(TURN) * 0.8, -0.6])
GRIDS = {
    "axial": grid([1, 0, 0], [0, 1, 0]),
    "sagittal": grid([0, 1, 0], [0, 0, -1]),
    "coronal": grid([1, 0, 0], [0, 0, -1]),
    "oblique": grid(*OBLIQUE),
    "negated row": grid([-1, 0, 0], [0, 1, 0]),
    "negated column": grid([1, 0, 0], [0, -1, 0]),
    "not square": grid([1, 0, 0], [0, 1, 0], (0.8, 1.3, 5.5)),
    "oblique, not square": grid(*OBLIQUE, (0.8, 1.3, 5.5)),
}


def by_dcmqi(segmentation: Dataset, folder: Path) -> Any:
    """The segmentation as dcmqi converts it to NIfTI."""
    program = require_program("segimage2itkimage")
    segmentation.save_as(folder / "seg.dcm", enforce_file_format=True)
    out = folder / "dcmqi"
    out.mkdir()
    command = [program, "--inputDICOM", folder / "seg.dcm", "--outputDirectory", out, "--outputType", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.nii.gz")
    return nib.load(path)


def assert_same(image: Any, answer: Answer, folder: Path) -> None:
    """``image`` equals the file ``<scan>_seg.nii.gz`` voxel for voxel, and its affine to float32."""
    write_image(folder / "scan_seg.nii.gz", answer.mask)
    expected: Any = nib.load(folder / "scan_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)


def sources(segmentation: Dataset) -> list[tuple[str, int | None]]:
    """Which image, and which of its frames, each frame was made from; in the order of their positions."""
    frames = sorted(
        segmentation.PerFrameFunctionalGroupsSequence,
        key=lambda each: float(each.PlanePositionSequence[0].ImagePositionPatient[2]),
    )
    items = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in frames]
    return [(item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")) for item in items]


@pytest.mark.parametrize("name", GRIDS)
def test_dcmqi_reads_the_mask_of_any_orientation(name: str, tmp_path: Path) -> None:
    series = small_series(tmp_path / "in", affine=GRIDS[name])
    answer = answer_to(series)
    assert_same(by_dcmqi(make_objects(series, answer)["_seg.dcm"], tmp_path), answer, tmp_path)


def test_an_empty_mask_has_all_frames(tmp_path: Path) -> None:
    series = small_series(tmp_path / "in")
    segmentation = make_objects(series, no_tumour(series))["_seg.dcm"]
    assert segmentation.NumberOfFrames == SHAPE[2]
    assert not segmentation.pixel_array.any()
    assert_same(by_dcmqi(segmentation, tmp_path), no_tumour(series), tmp_path)


def test_frames_without_tumour_are_there_too(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    segmentation = make_objects(series, answer_to(series))["_seg.dcm"]
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.NumberOfFrames == SHAPE[2]
    assert segmentation.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"


def test_what_is_segmented_is_coded(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    (segment,) = make_objects(series, answer_to(series))["_seg.dcm"].SegmentSequence
    assert segment.SegmentLabel == "FLAIR abnormality"
    codes = [
        segment.SegmentedPropertyCategoryCodeSequence,
        segment.SegmentedPropertyTypeCodeSequence,
        segment.AnatomicRegionSequence,
    ]
    assert [(code[0].CodeValue, code[0].CodingSchemeDesignator) for code in codes] == [
        ("49755003", "SCT"),  # morphologically abnormal structure
        ("108369006", "SCT"),  # neoplasm
        ("12738006", "SCT"),  # brain
    ]
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (segment.SegmentAlgorithmType, algorithm.AlgorithmName) == ("AUTOMATIC", "gliaflow")
    assert "demo@0123456789ab" in algorithm.AlgorithmParameters


def test_study_patient_and_frame_of_reference_are_kept(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    source = series.headers()[0]
    objects = make_objects(series, answer_to(series), capture=True)
    assert objects["_seg.dcm"].FrameOfReferenceUID == source.FrameOfReferenceUID
    for made in objects.values():
        for keyword in (
            "StudyInstanceUID",
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "AccessionNumber",
            "StudyID",
        ):
            assert str(made[keyword].value) == str(source[keyword].value)
        assert made.SeriesInstanceUID != source.SeriesInstanceUID


def test_each_frame_refers_to_its_image(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    segmentation = make_objects(series, answer_to(series))["_seg.dcm"]
    assert sources(segmentation) == [(each.sop_uid, None) for each in series.slices]
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.uid
    assert len(referenced.ReferencedInstanceSequence) == SHAPE[2]


def test_each_frame_refers_to_its_frame_of_an_enhanced_image(tmp_path: Path) -> None:
    series = flair_series(write([enhanced(voxels())], tmp_path / "in"))
    answer = answer_to(series)
    segmentation = make_objects(series, answer)["_seg.dcm"]
    assert sources(segmentation) == [(series.slices[0].sop_uid, number + 1) for number in range(SHAPE[2])]
    assert len(segmentation.SourceImageSequence) == 1
    assert_same(by_dcmqi(segmentation, tmp_path), answer, tmp_path)


def test_each_frame_refers_to_its_file_of_a_concatenation(tmp_path: Path) -> None:
    whole, half = enhanced(voxels()), SHAPE[2] // 2
    parts = [copy.deepcopy(whole), copy.deepcopy(whole)]
    for number, part in enumerate(parts):
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = uid("part", number)
        part.ConcatenationUID, part.InConcatenationNumber, part.InConcatenationTotalNumber = uid("whole"), number + 1, 2
        part.NumberOfFrames, size = half, len(whole.PixelData) // 2
        part.PerFrameFunctionalGroupsSequence = part.PerFrameFunctionalGroupsSequence[number * half :][:half]
        part.PixelData = whole.PixelData[number * size :][:size]
    series = flair_series(write(parts, tmp_path / "in"))
    answer = answer_to(series)
    segmentation = make_objects(series, answer)["_seg.dcm"]
    assert sources(segmentation) == [(uid("part", n), frame + 1) for n in range(2) for frame in range(half)]
    assert_same(by_dcmqi(segmentation, tmp_path), answer, tmp_path)


def test_a_selected_echo_refers_to_its_frames_alone(tmp_path: Path) -> None:
    """An Enhanced image with two echoes at each position: 1, 3, … are the frames of the first."""

    def add_second_echo(image: FileDataset) -> None:
        del image.SharedFunctionalGroupsSequence[0].MREchoSequence
        frames = []
        for frame in image.PerFrameFunctionalGroupsSequence:
            for echo in (100.0, 20.0):
                one = copy.deepcopy(frame)
                one.MREchoSequence = _item(EffectiveEchoTime=echo)
                frames.append(one)
        image.PerFrameFunctionalGroupsSequence = frames
        image.NumberOfFrames = len(frames)
        pixels = np.frombuffer(image.PixelData, "<i2").reshape(SHAPE[2], -1)
        image.PixelData = pixels.repeat(2, axis=0).tobytes()

    paths = write([enhanced(voxels(), change=add_second_echo)], tmp_path / "in")
    late, early = flair_series(paths, "4:100"), flair_series(paths, "4:20")
    answer = answer_to(late)
    segmentation = make_objects(late, answer)["_seg.dcm"]
    assert [frame for _, frame in sources(segmentation)] == list(range(1, 2 * SHAPE[2], 2))
    assert_same(by_dcmqi(segmentation, tmp_path), answer, tmp_path)
    other = make_objects(early, answer_to(early))["_seg.dcm"]
    assert other.SOPInstanceUID != segmentation.SOPInstanceUID


def test_a_legacy_converted_image_is_a_source_too(tmp_path: Path) -> None:
    from highdicom.legacy import LegacyConvertedEnhancedMRImage

    singles = single_frames(voxels())
    for each in singles:
        each.AcquisitionNumber, each.PatientPosition, each.SoftwareVersions = 1, "HFS", "1"
    converted = LegacyConvertedEnhancedMRImage(singles, singles[0].SeriesInstanceUID, 4, uid("converted"), 1)
    series = flair_series(write([converted], tmp_path / "in"))
    answer = answer_to(series)
    segmentation = make_objects(series, answer)["_seg.dcm"]
    assert {image for image, _ in sources(segmentation)} == {uid("converted")}
    assert_same(by_dcmqi(segmentation, tmp_path), answer, tmp_path)


@pytest.mark.parametrize(
    ("mask", "affine", "why"),
    [
        (np.zeros((27, 30, 12)), AXIAL, "27 × 30 × 12 voxels"),
        (lesion(), AXIAL @ np.diag([1, 1, 1.01, 1]), "0.55 mm away"),
        (lesion(), AXIAL @ np.diag([-1, 1, 1, 1]), "mm away"),
    ],
    ids=["shape", "spacing", "mirrored"],
)
def test_a_mask_on_another_grid_is_refused(mask: Any, affine: Any, why: str, tmp_path: Path) -> None:
    series = small_series(tmp_path)
    with pytest.raises(ValueError, match=why):
        make_objects(series, answer_to(series, mask, affine))


def test_an_answer_without_a_mask_is_refused(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    failed = Answer("scan", "patient", "source", "failed", reason="the scan has no brain")
    with pytest.raises(ValueError, match=r"scan: there is no mask .*\(the scan has no brain\)"):
        make_objects(series, failed)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    series = small_series(tmp_path)

    def files(folder: str) -> list[bytes]:
        made = make_objects(series, answer_to(series), capture=True, made_at=datetime(2026, 1, 2, 3, 4, 5, 600))
        paths = [tmp_path / f"{folder}{ending}" for ending in made]
        for path, dataset in zip(paths, made.values(), strict=True):
            dataset.save_as(path, enforce_file_format=True)
        return [path.read_bytes() for path in paths]

    assert files("once") == files("twice")
