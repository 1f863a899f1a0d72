"""DICOM series of MR images, written from a volume: single-frame, Enhanced, and compressed.

``CANARY`` is in the headers that identify the patient. It must appear in no file name, log, metric or message.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, MRImageStorage

CANARY = "CANARYNAME^PATIENT"
LPS = np.diag([-1.0, -1, 1, 1])  # DICOM's x and y run to the left and back, NIfTI's to the right and front
AXIAL = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 100], [0, 0, 5, -60], [0, 0, 0, 1]])  # 1 × 1 × 5 mm


def head(shape: tuple[int, int, int] = (160, 176, 24), seed: int = 0) -> NDArray[np.int16]:
    """A head with a bright lesion [I, J, K]: columns, rows, slices. It can be graded."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    rng = np.random.default_rng(seed)
    voxels = (i**2 + j**2 + k**2 < 0.8) * rng.normal(300, 15, shape)
    voxels += 200.0 * ((i - 0.3) ** 2 + (j + 0.2) ** 2 + k**2 < 0.04)
    return np.clip(voxels, 0, None).astype(np.int16)


def uid(*parts: object) -> str:
    """The same UID for the same parts."""
    from uuid import NAMESPACE_OID, uuid5

    return f"2.25.{uuid5(NAMESPACE_OID, '/'.join(map(str, parts))).int}"


def single_frames(
    voxels: NDArray[Any],
    affine: NDArray[Any] = AXIAL,
    *,
    series: str = "flair",
    study: str = "study",
    patient: str = "P1",
    change: Callable[[FileDataset, int], None] = lambda image, number: None,
) -> list[FileDataset]:
    """A dataset for each slice of ``voxels`` [I, J, K], in the order of K.

    Parameters
    ----------
    affine: of the NIfTI file with the same voxels (voxel to RAS mm).
    series, study, patient: names from which the UIDs are made.
    change: called with each dataset and its slice number, to change it.
    """
    lps = LPS @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = lps[:3, :3] / steps
    images = []
    for number in range(voxels.shape[2]):
        image = _image(MRImageStorage, series, study, patient, number)
        image.ImageOrientationPatient = [f"{value:.10f}"[:16] for value in (*cosines[:, 0], *cosines[:, 1])]
        image.ImagePositionPatient = [f"{value:.10f}"[:16] for value in (lps @ [0, 0, number, 1])[:3]]
        image.PixelSpacing = [f"{steps[1]:.10g}", f"{steps[0]:.10g}"]  # rows first
        image.SliceThickness = f"{steps[2]:.10g}"
        image.SpacingBetweenSlices = f"{steps[2]:.10g}"
        image.InstanceNumber = number + 1
        _set_pixels(image, voxels[:, :, number].T)
        change(image, number)
        images.append(image)
    return images


def enhanced(
    voxels: NDArray[Any],
    affine: NDArray[Any] = AXIAL,
    *,
    series: str = "flair",
    study: str = "study",
    patient: str = "P1",
    change: Callable[[FileDataset], None] = lambda image: None,
) -> FileDataset:
    """One Enhanced MR image with all slices of ``voxels`` [I, J, K] as frames. Arguments as of ``single_frames``."""
    image = _image(EnhancedMRImageStorage, series, study, patient, 0)
    singles = single_frames(voxels, affine, series=series, study=study, patient=patient)
    first = singles[0]
    for keyword in (
        "EchoTime",
        "InversionTime",
        "RepetitionTime",
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
    ):
        if keyword in image:
            delattr(image, keyword)
    image.NumberOfFrames = len(singles)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(
        PixelSpacing=first.PixelSpacing,
        SliceThickness=first.SliceThickness,
        SpacingBetweenSlices=first.SpacingBetweenSlices,
    )
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.MREchoSequence = _item(EffectiveEchoTime=100.0)
    shared.MRTimingAndRelatedParametersSequence = _item(RepetitionTime=9000.0, FlipAngle=150.0, EchoTrainLength=20)
    shared.MRModifierSequence = _item(InversionRecovery="YES", InversionTimes=[2500.0])
    shared.PixelValueTransformationSequence = _item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number, single in enumerate(singles):
        frame = Dataset()
        frame.PlanePositionSequence = _item(ImagePositionPatient=single.ImagePositionPatient)
        frame.FrameContentSequence = _item(
            StackID="1", InStackPositionNumber=number + 1, DimensionIndexValues=[1, number + 1]
        )
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    _set_pixels(image, voxels.transpose(2, 1, 0))
    change(image)
    return image


def write(images: list[FileDataset], folder: Path, ending: str = ".dcm") -> list[Path]:
    """Write each dataset as ``IM0001<ending>``, …; returns the paths in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(images, 1):
        path = folder / f"IM{number:04}{ending}"
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_flair(folder: Path, voxels: NDArray[Any] | None = None, **options: Any) -> list[Path]:
    """``write`` a FLAIR series of single frames."""
    return write(single_frames(head() if voxels is None else voxels, **options), folder)


def big_endian(image: FileDataset) -> FileDataset:
    """The same image in Explicit VR Big Endian."""
    image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    image._read_little, image._read_implicit = False, False
    return image


def as_nifti(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = AXIAL) -> Path:
    """The NIfTI file of the same voxels."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def has_program(name: str) -> bool:
    """Whether a peer (``storescu``, ``dciodvfy``, …) is installed."""
    return shutil.which(name) is not None


def _item(**values: Any) -> Sequence:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Sequence([item])


def _image(sop_class: str, series: str, study: str, patient: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(study, series, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName, image.PatientID = f"{CANARY}", f"ID-{CANARY}-{patient}"
    image.PatientBirthDate, image.PatientSex = "19700101", "O"
    image.InstitutionName = image.ReferringPhysicianName = image.OperatorsName = CANARY
    image.StudyInstanceUID, image.SeriesInstanceUID = uid(study), uid(study, series)
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = uid(study, "frame"), ""
    image.StudyID, image.AccessionNumber = "1", f"ACC{CANARY}"[:16]
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20200102"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "101112"
    image.Modality, image.Manufacturer, image.SeriesNumber = "MR", "gliaflow tests", 4
    image.SeriesDescription = image.ProtocolName = series
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = ["SE", "IR"], "SK", ""
    image.MRAcquisitionType, image.EchoTime, image.InversionTime, image.RepetitionTime = "2D", 100, 2500, 9000
    image.EchoTrainLength = 20
    return image


def _set_pixels(image: FileDataset, pixels: NDArray[Any]) -> None:
    """``pixels`` [rows, columns] or [frames, rows, columns], of 16 bits."""
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    image.PixelData = np.ascontiguousarray(pixels).astype(f"<{pixels.dtype.kind}2").tobytes()
    image["PixelData"].VR = "OW"
