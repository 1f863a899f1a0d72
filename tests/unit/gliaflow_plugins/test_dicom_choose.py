"""Which series is FLAIR, and which series are refused, with the names of the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gliaflow_plugins.dicom.choose import FlairRules, FoundSeries, find_series
from pydicom.dataset import FileDataset
from sample_dicom import AXIAL, CANARY, enhanced, head, single_frames, uid, write, write_flair

SMALL = head((12, 10, 12))


def t1(image: FileDataset, number: int) -> None:
    image.SeriesDescription = image.ProtocolName = "t1"
    image.ScanningSequence, image.EchoTime, image.InversionTime = "SE", 10, None
    image.SeriesNumber = 3


def with_number(value: int, description: str = "") -> Callable[[FileDataset, int], None]:
    def change(image: FileDataset, number: int) -> None:
        image.SeriesNumber = value
        image.SeriesDescription = description or image.SeriesDescription

    return change


def made(
    folder: Path, name: str, change: Callable[[FileDataset, int], None] = lambda image, number: None
) -> list[Path]:
    return write(single_frames(SMALL, series=name, change=change), folder / name)


def taken(found: FoundSeries) -> list[int | None]:
    return [series.number for series in found.flair]


def why(found: FoundSeries) -> list[str]:
    return [each.why for each in found.left_out]


# the choice


def test_flair_is_chosen_by_its_name_and_the_others_are_left_out_with_a_reason(tmp_path):
    found = find_series([*made(tmp_path, "t1", t1), *made(tmp_path, "ax flair")])
    assert taken(found) == [4]
    (series,) = found.flair
    assert (series.problem, series.warnings, series.description) == ("", (), "ax flair")
    assert (series.uid, series.study) == (uid("study", "ax flair"), uid("study"))
    (left,) = found.left_out
    assert (left.path, left.kind) == (tmp_path / "t1", "DICOM series")
    assert left.why == "series 3 't1', 12 images: not FLAIR by its description or timing"


@pytest.mark.parametrize("name", ["T2 FLAIR", "t2_tirm_tra_dark-fluid", "AX TIRM", "dark fluid"])
def test_names_of_flair(tmp_path, name):
    def change(image: FileDataset, number: int) -> None:
        t1(image, number)
        image.ProtocolName = name

    assert taken(find_series(made(tmp_path, "x", change))) == [3]


def test_flair_without_a_name_is_known_by_its_timing_and_gets_a_warning(tmp_path):
    (series,) = find_series(made(tmp_path, "brain")).flair
    (warning,) = series.warnings
    assert warning.startswith("FLAIR only by its timing (InversionTime 2500 ms, EchoTime 100 ms)")


def test_a_named_series_beats_one_known_by_timing_and_an_original_beats_a_derived_one(tmp_path):
    def derived(image: FileDataset, number: int) -> None:
        image.SeriesNumber, image.ImageType = 9, ["DERIVED", "SECONDARY", "MPR"]

    timed = made(tmp_path, "brain", with_number(2))
    reformatted = made(tmp_path, "flair mpr", derived)
    original = made(tmp_path, "flair", with_number(4))
    assert taken(find_series([*timed, *reformatted, *original])) == [4]
    (series,) = find_series([*timed, *reformatted]).flair
    assert series.number == 9, "some sites send only reformats"
    assert series.warnings[0].startswith("ImageType of IM0001.dcm is DERIVED: made from other images")


def test_an_enhanced_image_says_itself_that_it_is_flair(tmp_path):
    def change(image: FileDataset) -> None:
        image.SeriesDescription = image.ProtocolName = "brain"
        image.AcquisitionContrast = "FLUID_ATTENUATED"

    (series,) = find_series(write([enhanced(SMALL, change=change)], tmp_path)).flair
    assert series.warnings == ()


def test_a_tie_is_refused_and_lists_the_series(tmp_path):
    paths = [*made(tmp_path, "flair tra", with_number(4)), *made(tmp_path, "flair cor", with_number(7))]
    found = find_series(paths)
    (series,) = found.flair
    assert series.problem == (
        f"2 series of one study may be FLAIR: series 4, 12 images, UID {uid('study', 'flair tra')}; "
        f"series 7, 12 images, UID {uid('study', 'flair cor')}. Choose one: --series 4 or --series 7"
    )
    with pytest.raises(ValueError, match="may be FLAIR"):
        series.read()
    assert "flair" not in series.problem, "descriptions may have names in them"
    left, _ = find_series(made(tmp_path, "t1", t1), FlairRules(describe=False)).left_out
    assert left.why.startswith("series 3, 12 images")


def test_a_number_chooses_only_where_it_is_that_of_one_study(tmp_path):
    """Series 4 of another study may be T1."""
    tie = [*made(tmp_path, "flair tra", with_number(4)), *made(tmp_path, "flair cor", with_number(7))]
    other = write_flair(tmp_path / "other", SMALL, study="other")
    for found in (find_series([*tie, *other]), find_series(tie, part=True)):
        refused = found.flair[0]
        assert refused.choices == (uid("study", "flair tra"), uid("study", "flair cor"))
        assert refused.problem.endswith(f"--series {refused.choices[0]} or --series {refused.choices[1]}")
    found = find_series([*tie, *other], FlairRules(wanted=(uid("study", "flair cor"),)))
    assert [(series.number, series.problem) for series in found.flair] == [(7, ""), (4, "")]


@pytest.mark.parametrize("wanted", ["7", "COR", uid("study", "flair cor")], ids=["number", "text", "UID"])
def test_the_user_chooses_by_number_text_or_uid(tmp_path, wanted):
    paths = [*made(tmp_path, "flair tra"), *made(tmp_path, "flair cor", with_number(7)), *made(tmp_path, "t1", t1)]
    found = find_series(paths, FlairRules(wanted=(wanted,)))
    assert (taken(found), [each.problem for each in found.flair]) == ([7], [""])
    assert sorted(why(found)) == [
        "series 3 't1', 12 images: not the one of --series",
        "series 4 'flair tra', 12 images: not the one of --series",
    ]


def test_the_user_may_choose_what_the_rules_would_not_but_no_localizer(tmp_path):
    paths = made(tmp_path, "t1", t1)
    assert taken(find_series(paths, FlairRules(wanted=("3",)))) == [3]

    def localizer(image: FileDataset, number: int) -> None:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    found = find_series(made(tmp_path, "flair", localizer), FlairRules(wanted=("4",)))
    assert (found.flair, found.matched) == ([], set())
    assert why(found) == [
        "series 4 'flair', 12 images: a localizer (ImageType LOCALIZER)",
        "a study without a FLAIR series",
    ]
    assert found.left_out[1].path == tmp_path / "flair"


def test_in_a_study_where_no_wanted_series_is_the_rules_choose(tmp_path):
    first = write_flair(tmp_path / "a", SMALL, study="first", series="flair a")
    second = write_flair(tmp_path / "b", SMALL, study="second", series="flair b", change=with_number(7))
    other = write(single_frames(SMALL, study="second", series="flair c", change=with_number(8)), tmp_path / "c")
    found = find_series([*first, *second, *other], FlairRules(wanted=("7", "99")))
    assert (taken(found), [series.problem for series in found.flair]) == ([4, 7], ["", ""])
    assert found.matched == {"7"}
    assert found.every[0] == "series 4 'flair a', 12 images"
    found = find_series([*first, *second, *other], FlairRules(wanted=("7", "8")))
    assert [bool(series.choices) for series in found.flair] == [False, True], "two values in one study are a tie"


def test_a_study_in_which_a_series_must_match_is_refused_if_none_does(tmp_path):
    paths = [*made(tmp_path, "flair"), *made(tmp_path, CANARY, t1)]
    (series,) = find_series(paths, FlairRules(wanted=("99",), must_match=True)).flair
    assert series.problem == ("no series matches --series 99; the study has: series 4, 12 images; series 3, 12 images")
    assert series.choices == ()
    (series,) = find_series(paths, FlairRules(wanted=("3",), must_match=True)).flair
    assert (series.number, series.problem) == (3, "")


def test_one_series_for_each_study(tmp_path):
    first = write_flair(tmp_path / "a", SMALL, study="first", patient="A")
    second = write_flair(tmp_path / "b", SMALL, study="second", patient="A")
    assert [series.paths[0] for series in find_series([*first, *second]).flair] == [first[0], second[0]]


def test_rules_can_be_changed(tmp_path):
    paths = made(tmp_path, "t1", t1)
    assert taken(find_series(paths, FlairRules(pattern="^t1$"))) == [3]
    assert why(find_series(paths, FlairRules(pattern="t1", min_slices=13)))[0] == (
        "series 3 't1', 12 images: fewer than 13 slices"
    )
    with pytest.raises(ValueError, match="the pattern of FLAIR series is not a regular expression"):
        FlairRules(pattern="(")


def test_two_echoes_are_two_volumes_and_the_user_chooses(tmp_path):
    def second_echo(image: FileDataset, number: int) -> None:
        image.EchoTime, image.SOPInstanceUID = 120, uid("second", number)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.InstanceNumber = number + 13

    paths = [*write_flair(tmp_path / "1", SMALL), *write_flair(tmp_path / "2", SMALL + 50, change=second_echo)]
    (series,) = find_series(paths).flair
    assert series.problem.endswith("Choose one: --series 4:100 or --series 4:120")
    (series,) = find_series(paths, FlairRules(wanted=("4:120",))).flair
    assert (series.problem, series.echo_ms, series.paths) == ("", 120, tuple(paths[12:]))
    (series,) = find_series(paths, FlairRules(wanted=(f"{uid('study', 'flair')}:120",))).flair
    assert series.echo_ms == 120


def test_echo_times_that_differ_from_slice_to_slice_are_one_volume(tmp_path):
    def change(image: FileDataset, number: int) -> None:
        image.EchoTime = 100 + number / 10

    (series,) = find_series(write_flair(tmp_path, SMALL, change=change)).flair
    assert (series.problem, series.echo_ms, len(series.slices)) == ("", None, 12)


def test_two_echoes_at_alternate_slices_are_refused(tmp_path):
    def change(image: FileDataset, number: int) -> None:
        image.EchoTime = 100 if number % 2 else 50

    (series,) = find_series(write_flair(tmp_path, SMALL, change=change)).flair
    assert series.problem.startswith("EchoTime differs between slices: 50 ms in IM0001.dcm, IM0003.dcm")
    assert "; 100 ms in IM0002.dcm, IM0004.dcm" in series.problem
    assert series.problem.endswith("; keep the images of one echo")


# files


def test_a_series_in_two_folders_in_any_order_is_one_series(tmp_path):
    paths = write_flair(tmp_path / "a", SMALL)
    (tmp_path / "b").mkdir()
    moved = [path.rename(tmp_path / "b" / path.name) for path in paths[::2]]
    (series,) = find_series([*moved, *reversed(paths[1::2])]).flair
    assert (series.problem, [path.name for path in series.paths]) == ("", [f"IM{n:04}.dcm" for n in range(1, 13)])


def test_a_copy_of_a_file_counts_once_and_a_different_one_is_refused(tmp_path):
    paths = write_flair(tmp_path, SMALL)
    copy = tmp_path / "copy.dcm"
    shutil.copy(paths[3], copy)
    found = find_series([*paths, copy])
    assert found.flair[0].problem == ""
    assert [(each.path, each.why, each.kind) for each in found.left_out] == [
        (copy, f"a copy of {paths[3]}", "repeated file")
    ]
    copy.write_bytes(copy.read_bytes()[:-2] + b"\7\7")
    (series,) = find_series([*paths, copy]).flair
    assert series.problem == "IM0004.dcm and copy.dcm have one SOPInstanceUID but differ; keep the right one"


def test_a_damaged_file_beside_a_series_is_a_warning_with_its_name(tmp_path):
    paths = write_flair(tmp_path, SMALL)
    paths[0].write_bytes(b"damaged")
    (tmp_path / "DICOMDIR.txt").write_text("a text")
    found = find_series([*paths, tmp_path / "DICOMDIR.txt"])
    (series,) = found.flair
    assert series.warnings == ("IM0001.dcm beside it cannot be read: if it belongs to the series, slices are missing",)
    assert why(found) == ["not a DICOM file", "not a DICOM file"]


def test_holes_in_the_instance_numbers_are_a_warning(tmp_path):
    """The slices form a grid, but the scanner made more images."""

    def change(image: FileDataset, number: int) -> None:
        image.InstanceNumber = number + 1 + 2 * (number > 5)
        image.ImagesInAcquisition = 14

    (series,) = find_series(write_flair(tmp_path, SMALL, change=change)).flair
    assert series.problem == ""
    assert series.warnings == (
        "InstanceNumber jumps from 6 to 9 between IM0006.dcm and IM0007.dcm: images may be missing",
        "ImagesInAcquisition is 14, but there are 12 images: slices may be missing",
    )


# what is refused


def shifted(image: FileDataset, by: tuple[float, float, float]) -> None:
    image.ImagePositionPatient = [
        f"{value + shift:.6f}" for value, shift in zip(image.ImagePositionPatient, by, strict=True)
    ]


def gap(image: FileDataset, number: int) -> None:
    shifted(image, (0, 0, 10.0 * (number > 5)))


def duplicate(image: FileDataset, number: int) -> None:
    shifted(image, (0, 0, -5.0 * (number == 6)))


def temporal(image: FileDataset, number: int) -> None:
    duplicate(image, number)
    image.TemporalPositionIdentifier = number


def uneven(image: FileDataset, number: int) -> None:
    shifted(image, (0, 0, 0.7 * (number == 4)))


def tilt(image: FileDataset, number: int) -> None:
    shifted(image, (0, 1.5 * number, 0))


def other_spacing(image: FileDataset, number: int) -> None:
    image.PixelSpacing = ["1", "1.1"] if number == 2 else ["1", "1"]


def other_orientation(image: FileDataset, number: int) -> None:
    if number > 8:
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]


def other_size(image: FileDataset, number: int) -> None:
    if number == 1:
        image.Rows, image.PixelData = 9, image.PixelData[: 9 * 12 * 2]


def no_frame_of_reference(image: FileDataset, number: int) -> None:
    del image.FrameOfReferenceUID


def two_frames_of_reference(image: FileDataset, number: int) -> None:
    image.FrameOfReferenceUID = uid("frame", number > 5)


def two_patients(image: FileDataset, number: int) -> None:
    image.PatientID = f"{CANARY} {number > 5}"


def colour(image: FileDataset, number: int) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"


def inverted(image: FileDataset, number: int) -> None:
    image.PhotometricInterpretation = "MONOCHROME1"


def no_position(image: FileDataset, number: int) -> None:
    del image.ImagePositionPatient


def no_number(image: FileDataset, number: int) -> None:
    image.PixelSpacing = ["0", "1"] if number == 7 else ["1", "1"]


def not_orthogonal(image: FileDataset, number: int) -> None:
    image.ImageOrientationPatient = [1, 0, 0, 0.5, 1, 0]


def no_slope(image: FileDataset, number: int) -> None:
    image.RescaleSlope, image.RescaleIntercept = "0", "0"


def unknown_compression(image: FileDataset, number: int) -> None:
    image.file_meta.TransferSyntaxUID = "1.2.840.113619.5.2"


REFUSED = {
    gap: "2 slices are missing between IM0006.dcm and IM0007.dcm (15 mm apart, the others 5 mm)",
    duplicate: "two images at one position: IM0006.dcm and IM0007.dcm",
    temporal: "two images at one position: IM0006.dcm and IM0007.dcm (temporal positions 5 and 6)",
    uneven: "slices are not evenly spaced: IM0005.dcm is 0.7 mm from its place",
    tilt: "slices are tilted: IM0012.dcm is 16.5 mm beside IM0001.dcm",
    other_spacing: "PixelSpacing: different in IM0003.dcm and in IM0001.dcm",
    other_orientation: "ImageOrientationPatient: different in IM0010.dcm, IM0011.dcm, IM0012.dcm and in",
    other_size: "Rows, Columns: different in IM0002.dcm and in IM0001.dcm",
    no_frame_of_reference: "FrameOfReferenceUID is missing in IM0001.dcm, IM0002.dcm, IM0003.dcm,",
    two_frames_of_reference: "FrameOfReferenceUID: IM0007.dcm, IM0008.dcm",
    two_patients: "IM0001.dcm and IM0007.dcm have different PatientIDs in one series",
    colour: "and 7 more: a colour image, not a scan",
    inverted: "and 7 more: PhotometricInterpretation is MONOCHROME1",
    no_position: "and 7 more: ImagePositionPatient: missing",
    no_number: "IM0008.dcm: PixelSpacing: 0 × 1; it must be 0.1–100 mm",
    not_orthogonal: "and 7 more: ImageOrientationPatient: not two directions at right angles",
    no_slope: "and 7 more: RescaleSlope, RescaleIntercept: 0, 0; not finite, or a slope of 0",
    unknown_compression: "and 7 more: TransferSyntaxUID: 1.2.840.113619.5.2; gliaflow does not read this compression",
}


@pytest.mark.parametrize(("change", "message"), REFUSED.items(), ids=[change.__name__ for change in REFUSED])
def test_what_cannot_be_read_rightly_is_refused_by_the_files_names(tmp_path, change, message):
    (series,) = find_series(write_flair(tmp_path, SMALL, change=change)).flair
    assert message in series.problem
    assert CANARY not in series.problem
    assert str(series).startswith(str(tmp_path))
    with pytest.raises(ValueError, match=r"IM00\d\d"):
        series.read()


def test_a_missing_part_of_a_concatenation_is_refused(tmp_path):
    def change(image: FileDataset) -> None:
        image.ConcatenationUID, image.InConcatenationNumber, image.InConcatenationTotalNumber = "1.2.3", 1, 3

    (series,) = find_series(write([enhanced(SMALL, change=change)], tmp_path)).flair
    assert series.problem == "2 of 3 files of a concatenation are missing beside IM0001.dcm; add them"


def test_a_damaged_multi_frame_image_is_refused_and_is_not_a_series_of_one_slice(tmp_path):
    image = enhanced(SMALL)
    image.NumberOfFrames = 11
    (series,) = find_series(write([image], tmp_path)).flair
    assert series.problem.startswith("IM0001.dcm: NumberOfFrames: 11, but PerFrameFunctionalGroupsSequence has 12")


def test_frames_are_named_by_their_number(tmp_path):
    def change(image: FileDataset) -> None:
        position = image.PerFrameFunctionalGroupsSequence[6].PlanePositionSequence[0]
        position.ImagePositionPatient = (
            image.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence[0].ImagePositionPatient
        )

    (series,) = find_series(write([enhanced(SMALL, change=change)], tmp_path)).flair
    assert series.problem.startswith("two images at one position: IM0001.dcm frame 6 and IM0001.dcm frame 7")


def test_a_mosaic_and_other_objects_are_left_out(tmp_path):
    def mosaic(image: FileDataset, number: int) -> None:
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]

    def report(image: FileDataset, number: int) -> None:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
        del image.PixelData

    found = find_series([*made(tmp_path, "flair", mosaic), *made(tmp_path, "flair sr", report)])
    assert found.flair == []
    assert why(found) == [
        "series 4 'flair', 12 images: a Siemens mosaic, many slices in one picture (ImageType MOSAIC)",
        "series 4 'flair sr', 12 images: not MR images",
        "a study without a FLAIR series",
    ]


def test_a_screenshot_in_a_series_does_not_count(tmp_path):
    def change(image: FileDataset, number: int) -> None:
        if number == 11:
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"

    found = find_series(write_flair(tmp_path, SMALL, change=change))
    assert [(series.problem, len(series.slices)) for series in found.flair] == [("", 11)]
    assert why(found) == ["series 4 'flair', 1 image: not MR images"]


def test_a_rounded_header_is_no_tilt_and_no_gap(tmp_path):
    """Positions of two decimals and cosines of four, as some archives write them."""
    angle = 0.31
    affine = AXIAL.copy()
    affine[1:3, 1:3] = np.array([[-np.cos(angle), np.sin(angle) * 5], [-np.sin(angle), np.cos(angle) * -5]])

    def change(image: FileDataset, number: int) -> None:
        image.ImagePositionPatient = [f"{value:.2f}" for value in image.ImagePositionPatient]
        image.ImageOrientationPatient = [f"{value:.4f}" for value in image.ImageOrientationPatient]

    (series,) = find_series(write_flair(tmp_path, SMALL, affine=affine, change=change)).flair
    assert series.problem == ""
