"""The slices of a cohort on disk, as the preprocessor gives them, each with its mask on the same grid.

A folder with three files a scan: ``<key>.image.npy`` float16 [n, H, W], ``<key>.mask.npy`` uint8 [n, H, W] and
``<key>.json`` (who, and the geometry), which is written last: a scan without one was cut off, and is cut again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import Case
from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.slices import prepare_mask
from gliaflow_proto import Geometry, Message, Queue, Scan, ScanMessage, SlicesMessage, Source, expect, message_id
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage
from numpy.typing import NDArray

from gliaflow_trainer.stream import stream


@dataclass(frozen=True)
class CutScan:
    """One scan: ``image`` [n, H, W] float16 (air 0, head about 1) and ``mask`` [n, H, W] uint8 are memory maps."""

    id: str
    case: str
    patient: str
    label: str | None
    geometry: Geometry
    image: NDArray[np.float16]
    mask: NDArray[np.uint8]

    def messages(self, per_part: int) -> Iterator[SlicesMessage]:
        """The messages that the preprocessor sent of it."""
        count = -(-len(self.image) // per_part)
        for index in range(count):
            some = slice(index * per_part, (index + 1) * per_part)
            yield SlicesMessage(
                id=message_id(self.id, index, "slices"),
                scan=Scan(id=self.id, name=self.case, patient=self.patient, label=self.label),
                part=[index, count],
                geometry=Geometry(**{**asdict(self.geometry), "slices": self.geometry.slices[some]}),
                image=np.asarray(self.image[some])[:, None],
            )


class Slices:
    """The slices of several scans, numbered through: ``images[i]`` and ``masks[i]`` are planes [H, W].

    ``scan`` [N] is the index into ``scans``, ``patients`` [N] the patient and ``z`` [N] the canonical slice number.
    """

    def __init__(self, scans: Sequence[CutScan]) -> None:
        self.scans = list(scans)
        self.images: list[NDArray[np.float16]] = [plane for scan in scans for plane in scan.image]
        self.masks: list[NDArray[np.uint8]] = [plane for scan in scans for plane in scan.mask]
        self.scan: NDArray[np.int64] = np.repeat(np.arange(len(scans)), [len(scan.image) for scan in scans])
        self.patients: NDArray[np.str_] = np.array([scan.patient for scan in scans], dtype=np.str_)[self.scan]
        self.z: NDArray[np.int64] = np.array([z for scan in scans for z in scan.geometry.slices], dtype=np.int64)

    def of(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """The numbers of these patients' slices."""
        return np.flatnonzero(np.isin(self.patients, list(patients)))


def cut(
    cases: Sequence[Case], bundle: Bundle, folder: Path, answered: Callable[[Case, str | None], None]
) -> list[CutScan]:
    """Send every case with a mask through the preprocessor and keep what comes out in ``folder``.

    What lies there already is not cut again, so that an interrupted run goes on. Cases that cannot be used are told
    through ``answered`` (the reason; None: it went well) and left out.

    Parameters
    ----------
    bundle: gives the size and spacing of slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_id = {message_id(case.id): case for case in cases if case.mask is not None}
    have = {path.stem for path in folder.glob("*.json")}
    recorder = _SliceRecorder(folder, by_id)
    passing = folder / "passing"  # scans on their way, whatever they came as
    passing.mkdir(exist_ok=True)

    def messages() -> Iterator[Message]:
        for scan_id, case in by_id.items():
            if scan_id in have:
                answered(case, None)
                continue
            file = passing / f"{scan_id}.nii"
            try:
                file.write_bytes(case.scan.read())
            except (OSError, ValueError) as error:
                answered(case, f"{case.scan}: {error}" if str(case.scan) not in str(error) else str(error))
                continue
            scan = Scan(id=scan_id, name=case.id, patient=case.patient, label=case.label)
            source = Source(uri=file.resolve().as_uri())
            yield ScanMessage(id=message_id(scan_id, "scan"), scan=scan, source=source, channel=case.channel)

    def done(scan_id: str, reason: str | None) -> None:
        (passing / f"{scan_id}.nii").unlink(missing_ok=True)
        case = by_id[scan_id]
        answered(case, reason and f"{case.scan}: {reason}")

    stream(messages(), [lambda broker: Preprocessor(bundle, broker, [str(passing)])], recorder, done)
    shutil.rmtree(passing, ignore_errors=True)  # a kill may have left scans in it; so may another process
    return kept_scans(folder)


def kept_scans(folder: Path) -> list[CutScan]:
    """The scans in ``folder``, in the order of their ids."""
    return [_load(folder, path.stem) for path in sorted(folder.glob("*.json"))]


class _SliceRecorder(Stage):
    """Keeps the parts of a scan until all are there, lays its mask on their grid, and writes both."""

    name = "slice recorder"
    queue = Queue("gliaflow.slice-recorder", ("slices",))

    def __init__(self, folder: Path, cases: dict[str, Case]) -> None:
        self._folder, self._cases = folder, cases
        self._parts: dict[str, dict[int, SlicesMessage]] = {}

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        part = expect(message, SlicesMessage)
        parts = self._parts.setdefault(part.scan.id, {})
        parts[part.part[0]] = part
        if len(parts) == part.part[1]:
            self._write(self._parts.pop(part.scan.id), self._cases[part.scan.id])
        return Outcome()

    def _write(self, parts: dict[int, SlicesMessage], case: Case) -> None:
        geometry = asdict(parts[0].geometry)
        geometry["slices"] = [z for index in sorted(parts) for z in parts[index].geometry.slices]
        assert case.mask is not None
        try:
            mask, affine = read_nifti(case.mask.read())
        except (NiftiError, OSError, ValueError) as error:
            raise InvalidInput(f"mask {case.mask}: {error}") from None
        if list(mask.shape) != geometry["shape"]:
            raise InvalidInput(f"mask {case.mask}: shape {mask.shape}, but its scan has {tuple(geometry['shape'])}")
        apart = _voxels_apart(affine, np.array(geometry["affine"]).reshape(4, 4), mask.shape)
        if apart > 0.5:
            raise InvalidInput(
                f"mask {case.mask}: by its affine it lies up to {apart:.3g} voxels beside its scan; resample it onto "
                "the scan's grid, or repair its header"
            )
        planes = prepare_mask(mask, Geometry(**geometry))
        image = np.concatenate([parts[index].image[:, 0] for index in sorted(parts)])
        stem = self._folder / parts[0].scan.id
        np.save(stem.with_suffix(".image.npy"), image)
        np.save(stem.with_suffix(".mask.npy"), planes)
        about = {"case": case.id, "patient": case.patient, "label": case.label, "geometry": geometry}
        part = stem.with_suffix(".part")
        part.write_text(json.dumps(about), encoding="utf-8")
        part.replace(stem.with_suffix(".json"))


def _voxels_apart(mask: NDArray[np.float64], scan: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """How far, in the scan's voxels, two affines take a corner of the grid apart."""
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    corners = np.c_[corners, np.ones(8)].T
    return float(np.abs(np.linalg.solve(scan, mask @ corners) - corners).max())


def _load(folder: Path, scan_id: str) -> CutScan:
    about: dict[str, Any] = json.loads((folder / f"{scan_id}.json").read_text(encoding="utf-8"))
    image = np.load(folder / f"{scan_id}.image.npy", mmap_mode="r")
    mask = np.load(folder / f"{scan_id}.mask.npy", mmap_mode="r")
    geometry = Geometry(**about["geometry"])
    return CutScan(scan_id, about["case"], about["patient"], about["label"], geometry, image, mask)
