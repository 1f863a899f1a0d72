"""The slices of a cohort on disk, cut by the preprocessor that serves, each with its mask on the same grid.

The folder has three files for each scan: ``<id>.image.npy`` float16 [n, H, W], ``<id>.mask.npy`` uint8 [n, H, W] and
``<id>.json`` (patient, label, geometry), which is written last: a scan without it was interrupted, and is cut again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.slices import prepare_mask
from gliaflow_proto import (
    CLASSES,
    Geometry,
    Message,
    Scan,
    ScanMessage,
    SlicesMessage,
    Source,
    expect,
    message_id,
)
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.files import write_whole
from gliaflow_runtime.stage import InvalidInput
from numpy.typing import NDArray
from rich.progress import Progress

from gliaflow_trainer.profiles import Profile
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
        """The messages that the preprocessor sent for this scan."""
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
    """The slices of several scans by number: ``images[i]`` and ``masks[i]`` are planes [H, W], of ``patients[i]``."""

    def __init__(self, scans: Sequence[CutScan]) -> None:
        self.images = [plane for scan in scans for plane in scan.image]
        self.masks = [plane for scan in scans for plane in scan.mask]
        self.patients = np.repeat([scan.patient for scan in scans], [len(scan.image) for scan in scans])

    def of(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """The numbers of these patients' slices."""
        return np.flatnonzero(np.isin(self.patients, list(patients)))


def cut_cohort(cases: Iterable[Case], profile: Profile, work: Path, bar: Progress) -> list[CutScan]:
    """Cut every case with a mask, into ``work / "slices"``. Cases that cannot be used are named and left out."""
    usable = [case for case in cases if case.mask is not None]
    row = bar.add_task("slices", total=len(usable))

    def answered(case: Case, reason: str | None) -> None:
        bar.advance(row)
        if reason is not None:
            bar.console.print(f"passed over  {reason}", style="yellow", soft_wrap=True)

    scans = cut(usable, blank_bundle(profile, work / "blank"), work / "slices", answered)
    bar.remove_task(row)
    if not scans:
        raise PluginError("no scan with a mask could be read")
    return scans


def blank_bundle(profile: Profile, folder: Path) -> Bundle:
    """A bundle without networks: the preprocessor needs no more."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = profile.input.size
    manifest: dict[str, Any] = {
        "name": "blank",
        "notice": "No networks.",
        "input": profile.input.model_dump(),
        "classes": list(CLASSES),
        "taps": {"enc5": [16 * profile.width, rows // 16, columns // 16]},
        "tap": "enc5",
        "generator": "",
    }
    return write_manifest(folder, manifest | {key: {} for key in ("generators", "training", "metrics", "versions")})


def cut(
    cases: Sequence[Case], bundle: Bundle, folder: Path, answered: Callable[[Case, str | None], None]
) -> list[CutScan]:
    """Send every case with a mask through the preprocessor and keep the slices in ``folder``.

    Scans that are there already are not cut again, so an interrupted run resumes. Cases that cannot be used are left
    out.

    Parameters
    ----------
    bundle: has the size and spacing of slices.
    answered: called with each case, and the reason if it cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_id = {message_id(case.id): case for case in cases if case.mask is not None}
    have = {path.stem for path in folder.glob("*.json")}

    def messages() -> Iterator[Message]:
        for scan_id, case in by_id.items():
            if scan_id in have:
                answered(case, None)
                continue
            try:
                source = Source(data=case.scan.read())
            except (OSError, ValueError) as error:
                answered(case, f"{case.scan}: {error}" if str(case.scan) not in str(error) else str(error))
                continue
            scan = Scan(id=scan_id, name=case.id, patient=case.patient, label=case.label)
            yield ScanMessage(id=message_id(scan_id, "scan"), scan=scan, source=source, channel=case.channel)

    def record(parts: list[Message]) -> None:
        _record(folder, [expect(part, SlicesMessage) for part in parts], by_id[parts[0].scan.id])

    def done(scan_id: str, reason: str | None) -> None:
        case = by_id[scan_id]
        answered(case, reason and f"{case.scan}: {reason}")

    stream(messages(), Preprocessor(bundle, MemoryBroker(), []), record, done)
    return kept_scans(folder)


def kept_scans(folder: Path) -> list[CutScan]:
    """The scans in ``folder``, in the order of their ids."""
    return [_load(folder, path.stem) for path in sorted(folder.glob("*.json"))]


def _record(folder: Path, parts: Sequence[SlicesMessage], case: Case) -> None:
    """Write a scan's slices, and its mask resampled onto their grid. Raises InvalidInput: the mask cannot be used."""
    geometry = asdict(parts[0].geometry) | {"slices": [z for part in parts for z in part.geometry.slices]}
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
            f"mask {case.mask}: its affine puts it up to {apart:.3g} voxels away from its scan; resample it onto "
            "the scan's grid, or repair its header"
        )
    planes = prepare_mask(mask, Geometry(**geometry))
    image = np.concatenate([part.image[:, 0] for part in parts])
    stem = folder / parts[0].scan.id
    np.save(stem.with_suffix(".image.npy"), image)
    np.save(stem.with_suffix(".mask.npy"), planes)
    about = {"case": case.id, "patient": case.patient, "label": case.label, "geometry": geometry}
    write_whole(stem.with_suffix(".json"), json.dumps(about))


def _voxels_apart(mask: NDArray[np.float64], scan: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """The largest distance, in the scan's voxels, between the places that two affines give a corner of the grid."""
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    corners = np.c_[corners, np.ones(8)].T
    return float(np.abs(np.linalg.solve(scan, mask @ corners) - corners).max())


def _load(folder: Path, scan_id: str) -> CutScan:
    about: dict[str, Any] = json.loads((folder / f"{scan_id}.json").read_text(encoding="utf-8"))
    image = np.load(folder / f"{scan_id}.image.npy", mmap_mode="r")
    mask = np.load(folder / f"{scan_id}.mask.npy", mmap_mode="r")
    geometry = Geometry(**about["geometry"])
    return CutScan(scan_id, about["case"], about["patient"], about["label"], geometry, image, mask)
