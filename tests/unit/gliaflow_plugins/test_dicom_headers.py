"""Headers of untrusted files: what is read of them, and what is refused before it takes memory or time."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from gliaflow_plugins.dicom import headers
from gliaflow_plugins.dicom.choose import FlairRules, find_series
from gliaflow_plugins.dicom.compression import check_frame, is_lossy
from gliaflow_plugins.dicom.headers import OtherFile, full_dataset, inflate, is_dicom, quiet, read_header
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from sample_dicom import CANARY, enhanced, head, single_frames, write, write_flair

SMALL = head((12, 10, 3))
UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0" + UNDEFINED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_flair(tmp_path, SMALL)[0]


def insert(path: Path, element: bytes) -> None:
    """Put an element at the start of the dataset."""
    data = path.read_bytes()
    start = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    path.write_bytes(data[:start] + element + data[start:])


def reason(path: Path) -> str:
    """Why the file is left out."""
    tracemalloc.start()
    found = find_series([path], FlairRules(min_slices=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120 * 2**20
    (left,) = found.left_out
    assert (found.flair, left.path, left.kind) == ([], path, "DICOM file")
    assert CANARY not in left.why
    return left.why


# what is DICOM


def test_a_file_is_dicom_by_its_content(tmp_path, path):
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    dataset_only = tmp_path / "dataset"
    data = path.read_bytes()
    dataset_only.write_bytes(data[132 + 12 + struct.unpack_from("<I", data, 140)[0] :])
    assert is_dicom(path)
    assert is_dicom(bare)
    assert is_dicom(dataset_only)
    for name, content in (("text", b"a text of many words " * 20), ("empty", b""), ("zip", b"PK\3\4" + bytes(300))):
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)
        assert reason(tmp_path / name) == "not a DICOM file"
    assert not is_dicom(tmp_path)
    assert not is_dicom(tmp_path / "missing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    assert not is_dicom(tmp_path / "pipe.dcm")
    assert reason(tmp_path / "pipe.dcm") == "is not a regular file"


def test_values_by_keyword(path):
    with quiet():
        header = read_header(path, ("Rows", "PixelSpacing", "PatientName", "ImageType", "InstanceNumber"))
    assert header.fields.whole("Rows") == 10
    assert header.fields.numbers("PixelSpacing") == (1.0, 1.0)
    assert header.fields.texts("ImageType") == ("ORIGINAL", "PRIMARY", "M", "NONE")
    assert header.fields.words("PatientName") == CANARY
    assert header.fields.number("EchoTime") is None, "only the named elements are kept"
    assert header.meta_text("TransferSyntaxUID") == header.syntax == "1.2.840.10008.1.2.1"


def test_a_value_that_is_no_number_is_named_and_not_quoted(tmp_path):
    def change(image, number):
        image.PatientID = CANARY
        image.add_new(0x00200032, "LO", CANARY)

    paths = write_flair(tmp_path, SMALL, change=change)
    (series,) = find_series(paths, FlairRules(min_slices=1)).flair
    assert series.problem.endswith("ImagePositionPatient: not a list of numbers")


def test_a_description_in_another_character_set_is_read(tmp_path):
    def change(image, number):
        image.SpecificCharacterSet, image.SeriesDescription, image.ProtocolName = "ISO_IR 192", "flair Schädel", ""

    (series,) = find_series(write_flair(tmp_path, SMALL, change=change), FlairRules(min_slices=1)).flair
    assert series.description == "flair Schädel"


def test_the_whole_header_as_a_dataset(path):
    with quiet():
        dataset = full_dataset(path)
    assert dataset.PatientName == CANARY
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert "PixelData" not in dataset


# limits


def test_a_value_longer_than_the_file_takes_no_memory(path):
    insert(path, b"\x08\0\x05\0UT\0\0" + struct.pack("<I", 2**32 - 2))
    assert reason(path) == f"its header is over the limit of {2**25} bytes or {2**21} fields"


def test_a_long_value_is_not_converted(tmp_path):
    def change(image, number):
        image.ImagePositionPatient = ["0"] * 5000

    (series,) = find_series(write_flair(tmp_path, SMALL, change=change), FlairRules(min_slices=1)).flair
    assert series.problem.endswith("ImagePositionPatient: over the limit of 4096 bytes")


def test_sequences_nested_a_thousand_times_are_refused(path):
    insert(path, (b"\x08\0\x40\x11SQ\0\0" + UNDEFINED + ITEM) * 2000)
    assert reason(path) == "damaged (its sequences are nested too deep)"


def test_the_number_of_fields_is_limited(path, monkeypatch):
    monkeypatch.setattr(headers, "MAX_READS", 1000)
    insert(path, b"\x08\0\x40\x11SQ\0\0" + UNDEFINED + (ITEM + b"\xfe\xff\x0d\xe0\0\0\0\0") * 1000)
    assert reason(path).startswith("its header is over the limit")


def test_the_fields_of_a_sequence_of_known_length_count_too(tmp_path, monkeypatch):
    path = write([enhanced(SMALL)], tmp_path)[0]
    monkeypatch.setattr(headers, "MAX_READS", 120)
    (series,) = find_series([path], FlairRules(min_slices=1)).flair
    assert series.problem.startswith("IM0001.dcm: its header is over the limit")


def test_the_number_of_frames_is_limited(tmp_path):
    def change(image):
        image.NumberOfFrames = 10**9

    (series,) = find_series(write([enhanced(SMALL, change=change)], tmp_path), FlairRules(min_slices=1)).flair
    assert series.problem == "IM0001.dcm: NumberOfFrames: 1000000000; the limit is 16384"


def test_a_deflated_bomb_is_inflated_up_to_the_limit(tmp_path):
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    element = b"\x08\0\x05\0UT\0\0" + struct.pack("<I", 2**27)
    bomb = squeezer.compress(element) + b"".join(squeezer.compress(bytes(2**20)) for _ in range(128)) + squeezer.flush()
    path = tmp_path / "bomb"
    meta = b"\2\0\x10\0UI\x16\x00" + b"1.2.840.10008.1.2.1.99"
    path.write_bytes(bytes(128) + b"DICM" + meta + bomb)
    assert reason(path).startswith("its header is over the limit")
    with path.open("rb") as file:
        assert len(inflate(file, 132 + len(meta), 1000)) == 1000


def test_other_objects_and_files_are_no_part_of_a_series(tmp_path, path):
    data = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0")
    (tmp_path / "DICOMDIR").write_bytes(data)
    assert reason(tmp_path / "DICOMDIR") == "a DICOMDIR, which lists the files of a disc"
    with pytest.raises(OtherFile), quiet():
        read_header(Path(__file__))


def test_a_header_that_is_cut_short_is_named(path):
    path.write_bytes(path.read_bytes()[:600])
    assert reason(path) == "StudyInstanceUID is missing: damaged, or not an image"


# compressed frames state their own size


JPEG = b"\xff\xd8\xff\xe0\0\4ab\xff\xc3\0\x0b\x10\0\x0a\0\x0c\1\1\x11\0"
JPEG_LS = b"\xff\xd8\xff\xf7\0\x0b\x10\0\x0a\0\x0c\1\1\x11\0"
CODESTREAM = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIHBBB", 41, 0, 12, 10, 0, 0, 12, 10, 0, 0, 1, 15, 1, 1)


@pytest.mark.parametrize(
    ("syntax", "frame"), [(JPEGLosslessSV1, JPEG), (JPEGLSLossless, JPEG_LS), (JPEG2000Lossless, CODESTREAM)]
)
def test_the_size_in_the_codestream_must_be_that_of_the_header(syntax, frame):
    check_frame(syntax, frame, 10, 12, 16)
    with pytest.raises(ValueError, match="its compressed pixel data are 10 × 12; Rows and Columns say 12 × 10"):
        check_frame(syntax, frame, 12, 10, 16)
    with pytest.raises(ValueError, match="have 16 bits; BitsAllocated says 8"):
        check_frame(syntax, frame, 10, 12, 8)
    colour = frame.replace(b"\1\1\x11\0", b"\3\1\x11\0").replace(b"\0\1\x0f", b"\0\3\x0f")
    with pytest.raises(ValueError, match="3 colour channels"):
        check_frame(syntax, colour, 10, 12, 16)
    for cut in range(12):
        with pytest.raises(ValueError, match="its compressed pixel data are damaged"):
            check_frame(syntax, frame[:cut], 10, 12, 16)


def test_an_rle_frame_has_one_segment_for_each_byte():
    check_frame(RLELossless, b"\2" + bytes(63), 10, 12, 16)
    with pytest.raises(ValueError, match="RLE pixel data are damaged, or have other than 2 segments"):
        check_frame(RLELossless, b"\3" + bytes(63), 10, 12, 16)


@pytest.mark.parametrize(
    ("syntax", "flag", "lossy"),
    [("1", "01", True), ("1", "", False), ("50", "", True), ("91", "", True), ("91", "00", False), ("90", "", False)],
)
def test_which_images_are_lossy(syntax, flag, lossy):
    assert is_lossy(f"1.2.840.10008.1.2.4.{syntax}", flag) is lossy


def test_pixels_in_an_icon_are_not_the_images_pixels(tmp_path):
    """IconImageSequence has pixel data of its own, before those of the image."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def change(image, number):
        icon = Dataset()
        icon.Rows = icon.Columns = 2
        icon.BitsAllocated = 8
        icon.PixelData = b"\1\2\3\4"
        icon["PixelData"].VR = "OB"
        image.IconImageSequence = Sequence([icon])

    images = single_frames(SMALL, change=change)
    (series,) = find_series(write(images, tmp_path), FlairRules(min_slices=1)).flair
    assert series.problem == ""
    assert series.shape == SMALL.shape
