"""The answer to one scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lz4.block
import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import NO_TUMOUR, PredictionMessage
from gliaflow_proto.geometry import Forms
from gliaflow_runtime.files import whole_file
from isal import isal_zlib  # packs a mask ten times as fast as zlib, and smaller
from numpy.typing import NDArray

from gliaflow.scans import Input

QUATERN = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")  # as in Forms
SROW = ("srow_x", "srow_y", "srow_z")
FEW = 64  # up to one in so many voxels is few: a voxel that is moved takes 34 bytes meanwhile


@dataclass(frozen=True)
class PackedMask:
    """A mask, compressed: a thousand answers in a list take megabytes, not gigabytes."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str
    affine: tuple[float, ...]
    forms: Forms | None = None

    @classmethod
    def of(cls, message: PredictionMessage) -> PackedMask:
        """The mask of a prediction."""
        mask = np.ascontiguousarray(message.mask)
        return cls(lz4.block.compress(mask), mask.shape, mask.dtype.str, tuple(message.affine), message.forms)

    @classmethod
    def of_image(cls, image: Any) -> PackedMask:
        """The mask of a nibabel image that ``image`` gave, placed by its affine alone."""
        mask = np.ascontiguousarray(image.dataobj)
        return cls(lz4.block.compress(mask), mask.shape, mask.dtype.str, tuple(image.affine.ravel().tolist()))

    def array(self) -> NDArray[Any]:
        """The voxels, in the scan's own order of axes."""
        return np.frombuffer(lz4.block.decompress(self.data), self.dtype).reshape(self.shape)

    def image(self) -> Any:
        """A nibabel image on the scan's own grid. Its header states the place in the same fields as the scan's does."""
        mask = _in_file_order(self.array())
        image = nib.Nifti1Image(mask, np.reshape(self.affine, (4, 4)))
        image.header.set_xyzt_units("mm")
        if self.forms is None:
            return image
        _copy_forms(self.forms, image.header)
        image = nib.Nifti1Image(mask, image.header.get_best_affine())  # given a header, it would change what it doubts
        _copy_forms(self.forms, image.header)
        return image


def _in_file_order(mask: NDArray[Any]) -> NDArray[Any]:
    """The mask with its first axis fastest, as in files. If few voxels are tumour, only they are moved."""
    if np.count_nonzero(mask) > mask.size // FEW:
        return np.asfortranarray(mask)
    at = np.flatnonzero(mask != 0)
    ordered = np.zeros(mask.shape, mask.dtype, order="F")
    ordered[np.unravel_index(at, mask.shape)] = mask.ravel()[at]
    return ordered


def _copy_forms(forms: Forms, header: Any) -> None:
    """Set the fields of a NIfTI header that state its place."""
    header["pixdim"][:4] = forms.pixdim
    header["xyzt_units"], header["qform_code"], header["sform_code"] = forms.units, forms.qform_code, forms.sform_code
    for name, value in zip(QUATERN, forms.quatern, strict=True):
        header[name] = value
    for name, row in zip(SROW, np.reshape(forms.srow, (3, 4)), strict=True):
        header[name] = row


@dataclass(frozen=True)
class Answer:
    """The answer to one scan, or the reason why there is none. A notebook shows a picture of its mask.

    Parameters
    ----------
    scan: the scan's name, from the file's name; unique within the submission.
    patient: the patient, from the file's name or the cohort.
    source: the scan's path or URI.
    status: ``ok``; ``no tumour``, then there is no grade and no probability; or ``failed`` with a ``reason``, then the
        fields below are None.
    grade: HGG or LGG.
    p_hgg: the probability of HGG.
    tumour_ml: the mask's volume.
    slices, tumour_slices: the slices that went through the U-Net, and those in which it found tumour.
    bundle: the model bundle that answered.
    trained_on: what that bundle was trained on: ``phantoms`` (drawings of scans, so its answers say nothing about a
        patient), ``patients``, or nothing if the bundle does not say it.
    slice_p_hgg: of each slice with tumour its number, from 0 at the feet (of the scan in canonical axes, RAS+), and the
        probability of HGG in it. The logit of ``p_hgg`` is the mean of theirs. Empty if the stages are of an earlier
        version.
    seconds: the scan's own time: to its answer, from the answer before it or, if that is later, from its sending. The
        sum over a submission is the time that the submission took.
    reason: why there is no answer.
    warnings: doubts about the answer.
    """

    scan: str
    patient: str
    source: str
    status: Literal["ok", "no tumour", "failed"]
    grade: str | None = None
    p_hgg: float | None = None
    tumour_ml: float | None = None
    slices: int | None = None
    tumour_slices: int | None = None
    bundle: str | None = None
    trained_on: str = ""
    slice_p_hgg: tuple[tuple[int, float], ...] = ()
    seconds: float | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    _input: Input | None = field(default=None, repr=False, compare=False)
    _mask: PackedMask | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_prediction(cls, item: Input, message: PredictionMessage, seconds: float) -> Answer:
        """The answer that a prediction message gives."""
        graded = message.status != NO_TUMOUR
        return cls(
            scan=item.name,
            patient=item.patient,
            source=item.source,
            status="ok" if graded else NO_TUMOUR,
            grade=message.grade if graded else None,
            p_hgg=message.p_hgg if graded else None,
            tumour_ml=message.tumour_ml,
            slices=message.slices,
            tumour_slices=message.tumour_slices,
            bundle=message.bundle,
            trained_on=message.trained_on,
            slice_p_hgg=tuple(zip(message.slice_numbers, message.slice_p_hgg, strict=True)),
            seconds=seconds,
            _input=item,
            warnings=(*item.warnings, *message.warnings),
            _mask=PackedMask.of(message),
        )

    @classmethod
    def failed(cls, item: Input, reason: str, seconds: float | None = None) -> Answer:
        """The answer of a scan that could not be worked on."""
        return cls(
            item.name,
            item.patient,
            item.source,
            "failed",
            seconds=seconds,
            reason=reason,
            warnings=item.warnings,
            _input=item,
        )

    @property
    def mask(self) -> Any:
        """The tumour mask on the scan's own grid: a nibabel image, uint8, 1 in the tumour. None if the scan failed."""
        return self._mask.image() if self._mask else None

    @property
    def id(self) -> str:
        """The id with which the scan's ``Input`` came; empty: it had none."""
        return self._input.id if self._input else ""

    @property
    def packed_mask(self) -> PackedMask | None:
        """The mask, compressed."""
        return self._mask

    def _repr_png_(self) -> bytes | None:
        """For notebooks: a picture. None, so that the text is shown, if the scan failed or matplotlib is missing."""
        if self._mask is None:
            return None
        try:
            from gliaflow.picture import draw

            return draw(self)
        except ModuleNotFoundError:
            return None


def write_image(path: Path, image: Any) -> None:
    """Write a nibabel image as ``.nii.gz``, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(as_gzip(image))


def as_gzip(image: Any) -> bytes:
    """The bytes of a nibabel image's ``.nii.gz``. The same image gives the same bytes."""
    return isal_zlib.compress(image.to_bytes(), 1, wbits=31)
