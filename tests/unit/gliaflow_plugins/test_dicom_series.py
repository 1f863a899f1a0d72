"""From the slices of a series to a NIfTI file: the order, the place, the pixels and their rescale."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from gliaflow_plugins.dicom import compressed, decode
from gliaflow_plugins.dicom.choose import FlairRules, find_series
from gliaflow_plugins.dicom.series import DicomSeries
from hypothesis import given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from sample_dicom import AXIAL, LPS, big_endian, enhanced, head, single_frames, write, write_flair

SMALL = head((40, 34, 12))


def series_of(paths: list[Path]) -> DicomSeries:
    """The only series, which has no problem."""
    found = find_series(paths)
    assert [each.problem for each in found.flair] == [""], found
    return found.flair[0]


def volume(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    image = nib.Nifti1Image.from_bytes(series_of(paths).read())
    return np.asarray(image.dataobj), image.affine


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [n for n in range(3) if n != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


# the place


@settings(max_examples=12, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
    sides=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3), st.floats(0.5, 8)),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    seed=st.integers(0, 99),
)
def test_any_orientation_is_placed_as_itk_places_it(tmp_path_factory, angles, sides, origin, seed):
    """Oblique, non-square, negated cosines, in any order of files: the affine of SimpleITK's own series reader."""
    folder = tmp_path_factory.mktemp("series")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation(angles) * sides, origin
    images = single_frames(SMALL, affine)
    random.Random(seed).shuffle(images)
    voxels, ours = volume(write(images, folder))

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    theirs = np.eye(4)
    theirs[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    theirs[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(ours, LPS @ theirs, atol=1e-5)
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).transpose(2, 1, 0))


@pytest.mark.parametrize("sign", [1, -1], ids=["right-handed", "left-handed"])
def test_slices_rise_along_the_normal(tmp_path, sign):
    """A NIfTI file may have its slices in the other order. The scan is the same."""
    affine = AXIAL.copy()
    affine[:3, 2] *= sign
    voxels, placed = volume(write_flair(tmp_path, SMALL, affine=affine))
    expected = nib.as_closest_canonical(nib.Nifti1Image(SMALL, affine))
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, placed))
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))


def test_enhanced_and_concatenated_images_are_read_like_their_single_frames(tmp_path):
    single = volume(write_flair(tmp_path / "single", SMALL))
    for voxels, affine in (
        volume(write([enhanced(SMALL)], tmp_path / "enhanced")),
        volume(write([big_endian(enhanced(SMALL))], tmp_path / "big")),
        volume(write(concatenation(), tmp_path / "parts")),
    ):
        np.testing.assert_array_equal(voxels, single[0])
        np.testing.assert_array_equal(affine, single[1])


def concatenation() -> list[pydicom.FileDataset]:
    """One Enhanced image in two files."""
    parts = []
    for number, frames in enumerate((slice(0, 7), slice(7, 12)), 1):
        part = enhanced(SMALL)
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"{part.SOPInstanceUID[:60]}.{number}"
        part.ConcatenationUID, part.InConcatenationNumber, part.InConcatenationTotalNumber = "1.2.3", number, 2
        part.PerFrameFunctionalGroupsSequence = part.PerFrameFunctionalGroupsSequence[frames]
        part.NumberOfFrames = len(part.PerFrameFunctionalGroupsSequence)
        part.PixelData = np.ascontiguousarray(SMALL.transpose(2, 1, 0)[frames]).astype("<i2").tobytes()
        parts.append(part)
    return parts


def test_a_legacy_converted_enhanced_image_is_read_like_its_single_frames(tmp_path):
    from highdicom.legacy import LegacyConvertedEnhancedMRImage

    def complete(image, number):
        image.PatientName = "A^B"
        image.AcquisitionNumber = 1
        image.PatientPosition = "HFS"

    singles = write(single_frames(SMALL, change=complete), tmp_path / "single")
    image = LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(path) for path in singles], series_instance_uid="1.2.3", series_number=9,
        sop_instance_uid="1.2.3.4", instance_number=1,
    )  # fmt: skip
    image.SeriesDescription = "flair"
    voxels, affine = volume(write([image], tmp_path / "legacy"))
    np.testing.assert_array_equal(voxels, SMALL)
    np.testing.assert_allclose(affine, AXIAL, atol=1e-6)


def test_a_frames_own_values_beat_the_shared_ones(tmp_path):
    """Each frame of an Enhanced image may have its own rescale."""

    def change(image):
        for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
            item = pydicom.Dataset()
            item.RescaleSlope, item.RescaleIntercept, item.RescaleType = f"{1 + number / 4}", "-3", "US"
            frame.PixelValueTransformationSequence = pydicom.Sequence([item])

    voxels, _ = volume(write([enhanced(SMALL, change=change)], tmp_path))
    np.testing.assert_array_equal(voxels, SMALL * (1 + np.arange(12, dtype=np.float32) / 4) - 3)


def test_the_series_states_its_files_headers_shape_and_affine(tmp_path):
    paths = write_flair(tmp_path, SMALL)
    series = series_of(list(reversed(paths)))
    assert series.paths == tuple(paths)
    assert series.shape == SMALL.shape
    assert str(series) == f"{paths[0]} and 11 more"
    np.testing.assert_allclose(series.affine, AXIAL, atol=1e-9)
    headers = series.headers()
    assert [header.InstanceNumber for header in headers] == list(range(1, 13))
    assert all("PixelData" not in header and header.PatientName for header in headers)


# the pixels


def test_integers_stay_integers_unless_a_slice_is_rescaled(tmp_path):
    voxels, _ = volume(write_flair(tmp_path / "plain", SMALL - 100))
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, SMALL - 100)

    def change(image, number):
        if number == 5:
            image.RescaleSlope, image.RescaleIntercept = "0.3", "7"

    voxels, _ = volume(write_flair(tmp_path / "rescaled", SMALL, change=change))
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels[:, :, 5], SMALL[:, :, 5] * np.float32(0.3) + 7, rtol=1e-6)
    np.testing.assert_array_equal(voxels[:, :, 4], SMALL[:, :, 4])


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_outside_the_stored_ones_are_not_values(tmp_path, signed):
    """12 of 16 bits are stored; the others may hold an overlay. The sign is extended from the twelfth bit."""
    values = np.clip(SMALL, 0, 4095) - 300 * signed

    def change(image, number):
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, signed
        bits = values[:, :, number].T.astype("<u2") & 0xFFF | 0x5000
        image.PixelData = bits.tobytes()

    voxels, _ = volume(write_flair(tmp_path, SMALL, change=change))
    np.testing.assert_array_equal(voxels, values)


def test_pixels_may_be_stored_above_other_bits(tmp_path):
    def change(image, number):
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 15, 0
        image.PixelData = (np.clip(SMALL[:, :, number].T, 0, 4095).astype("<u2") << 4 | 7).tobytes()

    voxels, _ = volume(write_flair(tmp_path, SMALL, change=change))
    np.testing.assert_array_equal(voxels, np.clip(SMALL, 0, 4095))


def eight_bits(image: pydicom.FileDataset, number: int) -> None:
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = np.clip(SMALL[:, :, number].T, 0, 255).astype(np.uint8).tobytes()
    image["PixelData"].VR = "OW"


def swapped(image: pydicom.FileDataset, number: int) -> None:
    """8 bits in the words of a big-endian file."""
    eight_bits(image, number)
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    image.PixelData = np.frombuffer(image.PixelData, "<u2").byteswap().tobytes()
    image._read_little = image._read_implicit = False


@pytest.mark.parametrize("change", [eight_bits, swapped])
def test_pixels_of_eight_bits(tmp_path, change):
    voxels, _ = volume(write_flair(tmp_path, SMALL, change=change))
    assert voxels.dtype == np.uint8
    np.testing.assert_array_equal(voxels, np.clip(SMALL, 0, 255))


# transfer syntaxes


def encode(path: Path, syntax: str) -> None:
    """Write the file again in another transfer syntax."""
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = syntax
    if syntax in (RLELossless, JPEGLSLossless):
        image = pydicom.dcmread(path)
        image.compress(syntax, generate_instance_uid=False)
    elif syntax == JPEG2000Lossless:
        pixels = pydicom.dcmread(path).pixel_array.reshape(-1, image.Rows, image.Columns)
        image.PixelData = encapsulate([bytes(encode_array(np.ascontiguousarray(each))) for each in pixels])
        image["PixelData"].is_undefined_length = True
    image.save_as(path, **({"implicit_vr": True, "little_endian": True} if syntax == "1.2.840.10008.1.2" else {}))


def encode_by_gdcm(path: Path, syntax: int) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    "syntax",
    [
        pytest.param("1.2.840.10008.1.2", id="implicit"),
        pytest.param("1.2.840.10008.1.2.1.99", id="deflated"),
        pytest.param(RLELossless, id="RLE"),
        pytest.param(JPEGLSLossless, id="JPEG-LS"),
        pytest.param(JPEG2000Lossless, id="JPEG 2000"),
        pytest.param(gdcm.TransferSyntax.JPEGLosslessProcess14_1, id="JPEG Lossless SV1"),
    ],
)
def test_every_lossless_transfer_syntax_gives_the_same_voxels(tmp_path, syntax):
    """Signed values, single-frame and Enhanced."""
    values = SMALL - 200
    for paths in (write_flair(tmp_path / "single", values), write([enhanced(values)], tmp_path / "enhanced")):
        for path in paths:
            encode(path, syntax) if isinstance(syntax, str) else encode_by_gdcm(path, syntax)
        written = pydicom.dcmread(paths[0], stop_before_pixels=True).file_meta.TransferSyntaxUID
        assert written != ExplicitVRLittleEndian
        voxels, _ = volume(paths)
        np.testing.assert_array_equal(voxels, values)


def test_a_big_endian_file_gives_the_same_voxels(tmp_path):
    voxels, _ = volume(write([big_endian(image) for image in single_frames(SMALL - 200)], tmp_path))
    assert voxels.dtype.isnative
    np.testing.assert_array_equal(voxels, SMALL - 200)


def test_lossy_pixels_are_read_with_a_warning(tmp_path):
    paths = write_flair(tmp_path, SMALL, change=eight_bits)
    for path in paths:
        encode_by_gdcm(path, gdcm.TransferSyntax.JPEGBaselineProcess1)
    series = series_of(paths)
    assert [each for each in series.warnings if each.startswith("lossy compression: IM0001.dcm")]
    voxels = np.asarray(nib.Nifti1Image.from_bytes(series.read()).dataobj)
    assert np.abs(voxels.astype(int) - np.clip(SMALL, 0, 255)).max() <= 40


@pytest.mark.parametrize("preamble", [True, False])
def test_files_need_neither_an_ending_nor_a_preamble(tmp_path, preamble):
    paths = []
    for path in write_flair(tmp_path, SMALL):
        bare = path.with_suffix("")
        bare.write_bytes(path.read_bytes()[0 if preamble else 132 :])
        path.unlink()
        paths.append(bare)
    np.testing.assert_array_equal(volume(paths)[0], SMALL)


# pixel data that cannot be decoded


def test_pixel_data_that_are_cut_short_are_refused_by_name(tmp_path):
    paths = write_flair(tmp_path, SMALL)
    paths[6].write_bytes(paths[6].read_bytes()[:-10])
    (series,) = find_series(paths).flair
    assert series.problem == "IM0007.dcm: cut short: 2710 of 2720 bytes of pixel data"
    with pytest.raises(ValueError, match=r"^IM0007\.dcm"):
        series.read()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_data_that_are_cut_short_are_refused_by_name(tmp_path, syntax):
    paths = write_flair(tmp_path, SMALL)
    for path in paths:
        encode(path, syntax)
    paths[6].write_bytes(paths[6].read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"^IM0007\.dcm: cut short"):
        series_of(paths).read()


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_a_frame_of_another_size_does_not_reach_the_decoder(tmp_path, syntax, monkeypatch):
    paths = write_flair(tmp_path, SMALL)
    for path in paths:
        encode(path, syntax)
    image = pydicom.dcmread(paths[3])
    if syntax == RLELossless:
        image.PixelData = encapsulate([b"\x03" + bytes(63) + b"\0" * 99])
    else:
        offset = image.PixelData.index(b"\xff\xf7") + 5 if syntax == JPEGLSLossless else (
            image.PixelData.index(b"\xff\x4f\xff\x51") + 8
        )  # fmt: skip
        image.PixelData = image.PixelData[:offset] + b"\x7f\xff" + image.PixelData[offset + 2 :]
    image.save_as(paths[3])
    monkeypatch.setattr(compressed.CompressedFrames, "_decode", lambda self, request, frame, size: bytes(size))
    with pytest.raises(ValueError, match=r"^IM0004\.dcm: its (compressed|RLE) pixel data"):
        series_of(paths).read()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", r"IM0001\.dcm: the decoder crashed on it"),
        ("import time; time.sleep(60)", r"IM0001\.dcm: the decoder took over 0\.2 s"),
        ("print(end='-')", r"IM0001\.dcm: its compressed pixel data are damaged"),
    ],
    ids=["crash", "hang", "error"],
)
def test_a_decoder_that_crashes_or_hangs_costs_one_series(tmp_path, monkeypatch, code, message):
    paths = write_flair(tmp_path, SMALL)
    for path in paths:
        encode(path, RLELossless)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    monkeypatch.setattr(compressed, "_start", start)
    monkeypatch.setattr(compressed, "SECONDS", 0.2 if "sleep" in code else 60)
    with pytest.raises(ValueError, match=message):
        series_of(paths).read()


def test_the_decoder_has_a_memory_limit_and_no_secrets(monkeypatch):
    monkeypatch.setenv("GLIAFLOW_DICOM_CREDENTIALS", "SECRET")
    with compressed._start() as child:
        request = {"syntax": RLELossless, "rows": 1, "columns": 1, "bits_allocated": 16, "bits_stored": 16, "bytes": 0}
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        assert child.stdout.read(1) == b"-"  # it runs, and refuses an empty frame
        process = Path(f"/proc/{child.pid}")
        assert b"SECRET" not in (process / "environ").read_bytes()
        limits = (process / "limits").read_text()
        assert re.search(rf"Max address space +{decode.MEMORY_BYTES} ", limits)
        assert re.search(r"Max core file size +0 ", limits)
        child.stdin.close()


def test_a_file_that_changed_since_it_was_found_is_refused(tmp_path):
    series = series_of(write_flair(tmp_path, SMALL))
    write_flair(tmp_path, SMALL, series="another flair")
    with pytest.raises(ValueError, match=r"^IM0001\.dcm: the file has changed"):
        series.read()


def test_a_volume_over_the_limits_is_refused_before_it_is_read(tmp_path):
    def change(image, number):
        image.Rows = image.Columns = 4097

    (series,) = find_series(write_flair(tmp_path, SMALL, change=change), FlairRules()).flair
    assert series.problem.startswith("IM0001.dcm, IM0002.dcm")
    assert "Rows, Columns: 4097, 4097; each must be 1–4096" in series.problem
