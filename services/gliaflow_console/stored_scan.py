"""A scan as the console shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from gliaflow.answer import Answer, PackedMask
from gliaflow.scans import Input
from gliaflow_client.table import ScanRow
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import NO_TUMOUR, FailureMessage, PredictionMessage
from gliaflow_runtime.visible import visible
from numpy.typing import NDArray

Status = Literal["queued", "working", "ok", "no tumour", "failed"]
ENDED = ("ok", NO_TUMOUR, "failed")
MAX_TEXT = 500  # of another client's name or warning


@dataclass(frozen=True)
class ScanGrid:
    """A scan's grid in canonical axes (RAS+), and where its tumour is.

    ``shape``: voxels along x, y and z. ``spacing``: their sides in mm. ``slice_ml``: the number of each slice with
    tumour, from 0 at the feet, and the volume of the tumour in it; None: not known, since the mask was not unpacked.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    slice_ml: tuple[tuple[int, float], ...] | None

    @classmethod
    def of(cls, mask: NDArray[np.uint8], affine: Sequence[float]) -> Self:
        """The grid of a mask. ``affine``: 16 numbers, from the stored voxels to mm."""
        matrix = np.reshape(affine, (4, 4))
        image = nib.as_closest_canonical(nib.Nifti1Image(mask, matrix))
        counts = np.count_nonzero(np.asanyarray(image.dataobj), axis=(0, 1))
        voxel_ml = float(abs(np.linalg.det(matrix[:3, :3]))) / 1000
        volumes = tuple((int(z), round(float(counts[z]) * voxel_ml, 4)) for z in np.flatnonzero(counts))
        spacing = tuple(round(float(side), 4) for side in nib.affines.voxel_sizes(image.affine))
        return cls(tuple(image.shape), spacing, volumes)

    @classmethod
    def outline(cls, shape: Sequence[int], affine: Sequence[float]) -> Self:
        """The grid of a mask of this shape, which is not unpacked."""
        matrix = np.reshape(affine, (4, 4))
        axes = np.argsort(nib.io_orientation(matrix)[:, 0])  # of the stored voxels, in the order x, y, z
        sides = nib.affines.voxel_sizes(matrix)
        return cls(tuple(shape[axis] for axis in axes), tuple(round(float(sides[axis]), 4) for axis in axes), None)


@dataclass(frozen=True)
class StoredScan:
    """A scan and, once it has ended, its answer, with the fields of ``gliaflow.answer.Answer``.

    Parameters
    ----------
    id: its id in messages and in the console's URLs: 32 hexadecimal digits.
    own: the scan was sent through the console, so its image is there.
    created: seconds since 1970.
    progress: the share of its parts that are graded, ``graded_parts``; None: not known.
    dicom, series: it is a DICOM series; its SeriesInstanceUID.
    relative: its path in what was uploaded, which ``submit`` writes into the column ``source``.
    grid: of a scan with a mask.
    drawn: the class, HGG or LGG, with which the console drew this phantom; empty: it is no phantom of this console.
    sequences: the other sequences of the study that are sent with it.
    """

    id: str
    name: str
    patient: str
    own: bool
    created: float
    status: Status = "queued"
    progress: float | None = None
    grade: str | None = None
    p_hgg: float | None = None
    tumour_ml: float | None = None
    slices: int | None = None
    tumour_slices: int | None = None
    slice_p_hgg: tuple[tuple[int, float], ...] = ()
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    reason: str = ""
    bundle: str | None = None
    trained_on: str = ""
    dicom: bool = False
    series: str = ""
    relative: str = ""
    grid: ScanGrid | None = None
    drawn: str = ""
    sequences: tuple[str, ...] = ()
    graded_parts: frozenset[int] = frozenset()

    @classmethod
    def of(cls, item: Input, created: float, drawn: str = "") -> Self:
        """A queued scan of the console's own."""
        return cls(
            item.id,
            item.name,
            item.patient,
            own=True,
            created=created,
            warnings=item.warnings,
            dicom=item.series != "",
            series=item.series,
            relative=item.relative,
            drawn=drawn,
            sequences=tuple(item.sequences),
        )

    @classmethod
    def observed(cls, id: str, message: PredictionMessage | FailureMessage, created: float) -> Self:
        """Another client's scan, by its answer."""
        scan = cls(id, _short(message.scan.name), _short(message.scan.patient), own=False, created=created)
        scan = replace(scan, warnings=tuple(map(_short, message.warnings)))
        if isinstance(message, FailureMessage):
            return replace(scan, status="failed", reason=_short(f"{message.stage}: {message.reason}"))
        graded = message.status != NO_TUMOUR
        return replace(
            scan,
            status="ok" if graded else NO_TUMOUR,
            grade=_short(message.grade) if graded else None,
            p_hgg=round(message.p_hgg, 6) if graded else None,
            tumour_ml=round(message.tumour_ml, 3),
            slices=message.slices,
            tumour_slices=message.tumour_slices,
            slice_p_hgg=tuple(zip(message.slice_numbers, message.slice_p_hgg, strict=True)),
            bundle=_short(message.bundle),
            trained_on=_short(message.trained_on),
            grid=ScanGrid.outline(message.mask.shape, message.affine),
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The scan from the fields that ``written`` gave. Raises TypeError, KeyError or ValueError: they are not."""
        grid = values["grid"]
        pairs: dict[str, Any] = {"slice_p_hgg": _pairs(values["slice_p_hgg"])}
        pairs |= {name: tuple(values.get(name, ())) for name in ("warnings", "sequences")}
        if grid is not None:
            grid = ScanGrid(tuple(grid["shape"]), tuple(grid["spacing"]), _pairs(grid["slice_ml"]))
        scan = cls(**{**values, **pairs, "grid": grid})
        if scan.status not in ENDED:
            raise ValueError("status: not that of an answered scan")
        return scan

    def written(self) -> dict[str, Any]:
        """The fields of an ended scan, for a JSON file."""
        values = asdict(self)
        del values["graded_parts"], values["progress"]
        return values

    @property
    def ended(self) -> bool:
        """Whether it has its answer or has failed."""
        return self.status in ENDED

    def answered(self, answer: Answer, row: ScanRow) -> Self:
        """The scan with its answer. ``row``: what is written of it into the table, with all warnings."""
        mask = answer.packed_mask if row.mask else None
        ok = row.status != "failed"
        return replace(
            self,
            status=cast(Status, row.status),
            progress=None,
            graded_parts=frozenset(),
            grade=row.grade or None,
            p_hgg=row.p_hgg,
            tumour_ml=row.tumour_ml,
            slices=row.slices,
            tumour_slices=answer.tumour_slices if ok else None,
            slice_p_hgg=answer.slice_p_hgg if ok else (),
            seconds=row.seconds,
            warnings=row.warnings,
            reason=row.error,
            bundle=row.bundle or None,
            trained_on=row.trained_on,
            grid=ScanGrid.of(mask.array(), mask.affine) if mask else None,
        )

    def answer(self, item: Input, mask: Any) -> Answer:
        """The answer again, of an ended scan with a mask. ``mask``: a nibabel image."""
        return Answer(
            scan=self.name,
            patient=self.patient,
            source=item.source,
            status="ok" if self.grade else NO_TUMOUR,
            grade=self.grade,
            p_hgg=self.p_hgg,
            tumour_ml=self.tumour_ml,
            slices=self.slices,
            tumour_slices=self.tumour_slices,
            bundle=self.bundle,
            trained_on=self.trained_on,
            slice_p_hgg=self.slice_p_hgg,
            seconds=self.seconds,
            warnings=self.warnings,
            _input=item,
            _mask=PackedMask.of_image(mask),
        )

    def not_stored(self, error: Exception, answer: Answer) -> Self:
        """The scan as failed, since its answer could not be written. The reason has the remedy."""
        if answer.status == "failed":  # its own reason says more
            return self.answered(answer, ScanRow.of(answer))
        why = f"({type(error).__name__}): send the scan again"
        if isinstance(error, OSError):
            why = f"({error.strerror or type(error).__name__}): make room on the console's disk, then send it again"
        answer = Answer.failed(self.without_file(), f"the answer cannot be stored {why}")
        return self.answered(answer, ScanRow.of(answer))

    def without_file(self) -> Input:
        """The input of the scan, when its file cannot be found."""
        return Input(Path(self.relative), self.name, self.patient, relative=self.relative, warnings=self.warnings)

    def table_row(self) -> ScanRow:
        """The scan as a row of ``predictions.csv``."""
        return ScanRow(
            scan=self.name,
            patient=self.patient,
            grade=self.grade or "",
            p_hgg=self.p_hgg,
            tumour_ml=self.tumour_ml,
            slices=self.slices,
            status=self.status,
            error=self.reason,
            warnings=self.warnings,
            bundle=self.bundle or "",
            trained_on=self.trained_on,
            seconds=self.seconds,
        )

    def row(self) -> dict[str, Any]:
        """The scan in the API's lists (docs/console-api.md)."""
        return {
            "id": self.id,
            "name": self.name,
            "patient": self.patient,
            "own": self.own,
            "created": self.created,
            "status": self.status,
            "progress": self.progress,
            "grade": self.grade,
            "p_hgg": self.p_hgg,
            "tumour_ml": self.tumour_ml,
            "slices": self.slices,
            "tumour_slices": self.tumour_slices,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "reason": self.reason,
            "bundle": self.bundle,
            "trained_on": self.trained_on,
            "dicom": self.dicom,
            "drawn": self.drawn,
            "sequences": list(self.sequences),
        }


def _pairs(values: Any) -> tuple[tuple[int, float], ...]:
    return tuple((int(number), float(value)) for number, value in values)


def _short(text: str) -> str:
    """Another client's text: MAX_TEXT characters of it, of which none hides or reverses others."""
    text = visible(text[: MAX_TEXT + 1])
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
