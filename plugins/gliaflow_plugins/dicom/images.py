"""What one DICOM file states about its series, and about the place and the values of each slice in it.

A single-frame image has one slice. Each frame of an Enhanced or Legacy Converted Enhanced MR image is a slice: it
has its own item of PerFrameFunctionalGroupsSequence and shares SharedFunctionalGroupsSequence (PS3.3, C.7.6.16).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydicom.uid import (
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
)

from gliaflow_plugins.dicom.compression import ENCAPSULATED, NATIVE, is_lossy
from gliaflow_plugins.dicom.headers import PIXEL_DATA, Fields, Header, OtherFile, read_header
from gliaflow_plugins.nifti_bytes import MAX_SIDE

MR_CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
MAX_FRAMES = 2**14
MAX_POSITION_MM = 1e5
SPACING_MM = (0.1, 100.0)  # of pixels and slices; the preprocessor has the same limits
COSINE_TOLERANCE = 0.001
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
PIXEL_FORMAT = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "NumberOfFrames"),
)
KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber"),
    *("SeriesDescription", "ProtocolName", "ImageType", "PatientID", "FrameOfReferenceUID", "Modality"),
    *("ScanningSequence", "InversionTime", "EchoTime", "AcquisitionContrast", "ImagesInAcquisition"),
    *("RepetitionTime", "ContrastBolusAgent", "ContrastBolusAgentSequence"),
    *("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber"),
    *("TemporalPositionIdentifier", *PLACE, "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "LossyImageCompression", *PIXEL_FORMAT),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
NO_AGENT = ("", "no", "none", "n", "n/a", "na", "nein", "ohne", "without", "without contrast", "no contrast", "0")
Triple = tuple[float, float, float]
Value = TypeVar("Value")


@dataclass(frozen=True)
class DicomSlice:
    """One slice: where its pixels are, and where they are in the patient (mm, LPS; PS3.3, C.7.6.2.1.1).

    Parameters
    ----------
    frame: the number of the frame in the file, from 0.
    row, column: the direction cosines along a row, and along a column.
    spacing: mm between the centres of two rows, and of two columns.
    step: mm to the next slice, as the header states it; None: it does not.
    time: the temporal position; None: the header states none.
    """

    path: Path
    frame: int
    sop_uid: str
    position: Triple
    row: Triple
    column: Triple
    spacing: tuple[float, float]
    step: float | None
    shape: tuple[int, int]
    slope: float
    intercept: float
    echo_ms: float | None
    time: int | None
    instance: int | None


@dataclass(frozen=True)
class DicomImage:
    """One file.

    Parameters
    ----------
    patient: is only compared, and never shown.
    contrast: FLUID_ATTENUATED in an Enhanced image of FLAIR, T1 or T2 in one of these.
    agent: whether it states a contrast agent.
    pulses: ScanningSequence: SE, IR, GR, EP. repetition_ms: the repetition time.
    inversion: whether an inversion pulse was used. inversion_ms: its time.
    in_acquisition: how many images belong to the acquisition. part: of a concatenation, its UID, number and total.
    problem: why its slices cannot be used.
    """

    path: Path
    study: str
    series: str
    sop_uid: str
    sop_class: str
    patient: str
    frame_of_reference: str
    number: int | None
    description: str
    image_type: tuple[str, ...]
    contrast: str
    agent: bool
    pulses: tuple[str, ...]
    repetition_ms: float | None
    inversion: bool
    inversion_ms: float | None
    lossy: bool
    in_acquisition: int | None
    part: tuple[str, int, int] | None
    slices: tuple[DicomSlice, ...]
    problem: str

    @property
    def is_mr(self) -> bool:
        return self.sop_class in MR_CLASSES

    @property
    def is_multi_frame(self) -> bool:
        return self.is_mr and self.sop_class != MRImageStorage


class Frame:
    """The values of one slice: of a single-frame image, or of one frame in its functional groups."""

    def __init__(self, fields: Fields, groups: tuple[Fields, ...] = ()) -> None:
        self.fields, self._groups = fields, groups

    def find(self, keyword: str, macro: str) -> Fields:
        """Where the keyword is: in the macro of the frame or of all frames, among converted attributes, or outside."""
        for name in (macro, *UNASSIGNED):
            for group in self._groups:
                items = group.items(name)
                if items and keyword in items[0]:
                    return items[0]
        return self.fields


UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")


def read_image(path: Path) -> DicomImage:
    """What the file states. Call it inside ``quiet``.

    Raises
    ------
    OSError: it cannot be opened. OtherFile: it is no part of a series. ValueError: it is damaged.
    """
    header = read_header(path, KEYWORDS)
    fields = header.fields
    stated = header.meta_text("MediaStorageSOPClassUID")
    if stated == MediaStorageDirectoryStorage:
        raise OtherFile("a DICOMDIR, which lists the files of a disc")
    uids = [fields.text(keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    for keyword, uid in zip(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), uids, strict=True):
        if not uid or len(uid) > 64 or not set(uid) <= set("0123456789."):
            kind = ValueError if stated in ("", *MR_CLASSES) else OtherFile
            raise kind(f"{keyword} is {'not a UID' if uid else 'missing'}: damaged, or not an image")
    sop_class = fields.text("SOPClassUID") or stated
    slices: tuple[DicomSlice, ...] = ()
    problem = ""
    first = Frame(fields)
    if sop_class in MR_CLASSES:
        try:
            frames = _frames(fields) if sop_class != MRImageStorage else [first]
            first = frames[0]
            slices = tuple(_slice(path, frame, number, uids[2]) for number, frame in enumerate(frames))
            check_pixels(header)
        except ValueError as error:
            problem = str(error)
    inversion, inversion_ms = _optional(lambda: _inversion(first)) or (False, None)
    texts = dict.fromkeys(filter(None, (fields.words("SeriesDescription"), fields.words("ProtocolName"))))
    return DicomImage(
        path=path,
        study=uids[0],
        series=uids[1],
        sop_uid=uids[2],
        sop_class=sop_class,
        patient=fields.text("PatientID"),
        frame_of_reference=fields.text("FrameOfReferenceUID"),
        number=_optional(lambda: fields.whole("SeriesNumber")),
        description=" / ".join(text[:64] for text in texts),
        image_type=fields.texts("ImageType"),
        contrast=first.find("AcquisitionContrast", "MRImageFrameTypeSequence").text("AcquisitionContrast"),
        agent=_optional(lambda: _agent(fields)) or False,
        pulses=fields.texts("ScanningSequence"),
        repetition_ms=_optional(lambda: _repetition(first)),
        inversion=inversion,
        inversion_ms=inversion_ms,
        lossy=is_lossy(header.syntax, fields.text("LossyImageCompression")),
        in_acquisition=_optional(lambda: fields.whole("ImagesInAcquisition")),
        part=_optional(lambda: _part(fields)),
        slices=slices,
        problem=problem,
    )


def _optional(read: Callable[[], Value]) -> Value | None:
    """A value that is good to have, and no reason to refuse the file."""
    try:
        return read()
    except ValueError:
        return None


def _frames(fields: Fields) -> list[Frame]:
    count = fields.whole("NumberOfFrames") or 1
    if not 1 <= count <= MAX_FRAMES:
        raise ValueError(f"NumberOfFrames: {count}; the limit is {MAX_FRAMES}")
    each, shared = fields.items("PerFrameFunctionalGroupsSequence"), fields.items("SharedFunctionalGroupsSequence")
    if len(each) != count:
        raise ValueError(f"NumberOfFrames: {count}, but PerFrameFunctionalGroupsSequence has {len(each)} items")
    return [Frame(fields, (item, *shared[:1])) for item in each]


def _slice(path: Path, frame: Frame, number: int, sop_uid: str) -> DicomSlice:
    position = _numbers(frame, "ImagePositionPatient", "PlanePositionSequence", 3)
    cosines = _numbers(frame, "ImageOrientationPatient", "PlaneOrientationSequence", 6)
    spacing = _numbers(frame, "PixelSpacing", "PixelMeasuresSequence", 2)
    row, column = cosines[:3], cosines[3:]
    if max(map(abs, position)) > MAX_POSITION_MM:
        raise ValueError(f"ImagePositionPatient: over {MAX_POSITION_MM:g} mm")
    squares = (math.fsum(a * a for a in row), math.fsum(a * a for a in column))
    product = math.fsum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(squares[0] - 1), abs(squares[1] - 1), abs(product)) > COSINE_TOLERANCE:
        raise ValueError("ImageOrientationPatient: not two directions at right angles")
    if not all(SPACING_MM[0] <= side <= SPACING_MM[1] for side in spacing):
        raise ValueError(
            f"PixelSpacing: {spacing[0]:g} × {spacing[1]:g}; it must be {SPACING_MM[0]}–{SPACING_MM[1]:g} mm"
        )
    slope, intercept = _rescale(frame)
    return DicomSlice(
        path=path,
        frame=number,
        sop_uid=sop_uid,
        position=(position[0], position[1], position[2]),
        row=(row[0], row[1], row[2]),
        column=(column[0], column[1], column[2]),
        spacing=(spacing[0], spacing[1]),
        step=_step(frame),
        shape=(frame.fields.whole("Rows") or 0, frame.fields.whole("Columns") or 0),
        slope=slope,
        intercept=intercept,
        echo_ms=_echo(frame),
        time=_time(frame),
        instance=_optional(lambda: frame.fields.whole("InstanceNumber")),
    )


def _numbers(frame: Frame, keyword: str, macro: str, count: int) -> tuple[float, ...]:
    numbers = frame.find(keyword, macro).numbers(keyword)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{keyword}: {'missing' if not numbers else f'not {count} finite numbers'}")
    return numbers


def _rescale(frame: Frame) -> tuple[float, float]:
    macro = "PixelValueTransformationSequence"
    slope = frame.find("RescaleSlope", macro).number("RescaleSlope")
    intercept = frame.find("RescaleIntercept", macro).number("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if not (math.isfinite(slope) and slope and math.isfinite(intercept)):
        raise ValueError(f"RescaleSlope, RescaleIntercept: {slope:g}, {intercept:g}; not finite, or a slope of 0")
    return slope, intercept


def _step(frame: Frame) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        step = _optional(lambda: frame.find(keyword, "PixelMeasuresSequence").number(keyword))  # noqa: B023
        if step is not None and SPACING_MM[0] <= step <= SPACING_MM[1]:
            return step
    return None


def _echo(frame: Frame) -> float | None:
    """In milliseconds."""
    for keyword in ("EffectiveEchoTime", "EchoTime"):
        echo = _optional(lambda: frame.find(keyword, "MREchoSequence").number(keyword))  # noqa: B023
        if echo is not None and math.isfinite(echo):
            return round(echo, 2)
    return None


def _time(frame: Frame) -> int | None:
    for keyword in ("TemporalPositionIndex", "TemporalPositionIdentifier"):
        time = _optional(lambda: frame.find(keyword, "FrameContentSequence").whole(keyword))  # noqa: B023
        if time is not None:
            return time
    return None


def _agent(fields: Fields) -> bool:
    """Whether a contrast agent is stated: also by the sequence of an Enhanced image (PS3.3, C.7.6.4b)."""
    agent = fields.text("ContrastBolusAgent").casefold().strip(" .-_")
    return agent not in NO_AGENT or bool(fields.items("ContrastBolusAgentSequence"))


def _repetition(frame: Frame) -> float | None:
    time = frame.find("RepetitionTime", "MRTimingAndRelatedParametersSequence").number("RepetitionTime")
    return time if time is not None and math.isfinite(time) and time > 0 else None


def _inversion(frame: Frame) -> tuple[bool, float | None]:
    times = [
        *frame.find("InversionTimes", "MRModifierSequence").numbers("InversionTimes"),
        *frame.find("InversionTime", "MRModifierSequence").numbers("InversionTime"),
    ]
    pulse = frame.find("InversionRecovery", "MRModifierSequence").text("InversionRecovery") == "YES"
    sequence = frame.find("ScanningSequence", "MRModifierSequence").texts("ScanningSequence")
    return pulse or "IR" in sequence, times[0] if times and math.isfinite(times[0]) else None


def _part(fields: Fields) -> tuple[str, int, int] | None:
    uid, number, total = fields.text("ConcatenationUID"), *map(fields.whole, CONCATENATION)
    return (uid, number, total or 0) if uid and number is not None else None


CONCATENATION = ("InConcatenationNumber", "InConcatenationTotalNumber")


def check_pixels(header: Header) -> None:
    """Raise ValueError if these are no grey pixels of a format that gliaflow reads, or if they are cut short."""
    fields, pixels = header.fields, header.pixels
    photometric = fields.text("PhotometricInterpretation")
    if fields.whole("SamplesPerPixel") not in (None, 1) or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise ValueError("a colour image, not a scan")
    if photometric == "MONOCHROME1":
        raise ValueError("PhotometricInterpretation is MONOCHROME1: low values are bright; convert it to MONOCHROME2")
    if fields.items("ModalityLUTSequence"):
        raise ValueError("its values need a table (ModalityLUTSequence), which gliaflow does not read")
    rows, columns = fields.whole("Rows") or 0, fields.whole("Columns") or 0
    if pixels is None:
        raise ValueError("cut short, or without pixel data")
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise ValueError(f"Rows, Columns: {rows}, {columns}; each must be 1–{MAX_SIDE}")
    if pixels.tag != PIXEL_DATA:
        raise ValueError("its pixels are floating-point numbers, which gliaflow does not read")
    if header.syntax not in NATIVE | ENCAPSULATED:
        known = header.syntax if len(header.syntax) <= 64 and set(header.syntax) <= set("0123456789.") else "not a UID"
        raise ValueError(f"TransferSyntaxUID: {known}; gliaflow does not read this compression: decompress it")
    allocated, stored = fields.whole("BitsAllocated"), fields.whole("BitsStored")
    if allocated not in (8, 16, 32) or not 1 <= (stored or allocated) <= allocated:
        raise ValueError(f"BitsAllocated, BitsStored: {allocated}, {stored}; gliaflow reads 8, 16 and 32 bits")
    if header.syntax in NATIVE:
        needed = rows * columns * allocated // 8 * (fields.whole("NumberOfFrames") or 1)
        left = header.size - pixels.start if not header.deflated else needed
        if min(pixels.length, left) < needed:
            raise ValueError(f"cut short: {min(pixels.length, left)} of {needed} bytes of pixel data")
