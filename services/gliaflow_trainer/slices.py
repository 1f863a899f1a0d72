"""The slices of a cohort on disk, cut by the preprocessor that serves, each with its mask on the same grid.

The folder has three files for each scan: ``<id>.image.npy`` float16 [n, C, H, W] (an earlier version's [n, H, W] has
one sequence), ``<id>.mask.npy`` uint8 [n, H, W] and ``<id>.json`` (patient, label, geometry, digests of the files),
which is written last: a scan without it was interrupted, and is cut again. A scan that cannot be used has
``<id>.refused``: why, and the digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import Case, PluginError, Volume
from gliaflow_preprocessor.masks import place_mask, read_mask
from gliaflow_preprocessor.preprocessor import Preprocessor, answered_without
from gliaflow_proto import (
    CLASSES,
    Geometry,
    Scan,
    ScanMessage,
    SequenceSource,
    SlicesMessage,
    Source,
    expect,
    message_id,
)
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_runtime.files import allow_open_files, write_whole
from numpy.typing import NDArray
from rich.progress import Progress

from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.sequences import lacking, report_missing, why_not_used
from gliaflow_trainer.stream import stream

COMPARED_VOXELS = 64


@dataclass(frozen=True)
class CutScan:
    """One scan: ``image`` [n, C, H, W] float16 (air 0, head about 1) and ``mask`` [n, H, W] uint8 are memory maps.

    C is the number of sequences; the FLAIR is the first. A sequence that the scan lacks is 0 everywhere.
    ``voxels`` is the digest of ``flair``: two scans with the same voxels have the same digest. ``tumour`` is that of
    the tumour's labels in the mask's file; "" if there are few, which two patients may share (``COMPARED_VOXELS``).
    ``mask_file`` is that of the mask's whole file.
    """

    id: str
    case: str
    patient: str
    label: str | None
    geometry: Geometry
    image: NDArray[np.float16]
    mask: NDArray[np.uint8]
    voxels: str
    tumour: str = ""
    mask_file: str = ""

    @property
    def flair(self) -> NDArray[np.float16]:
        """The FLAIR's slices [n, H, W]."""
        return self.image[:, 0]

    def messages(self, per_part: int) -> Iterator[SlicesMessage]:
        """The messages that the preprocessor sent for this scan."""
        count = -(-len(self.image) // per_part)
        for index in range(count):
            some = slice(index * per_part, (index + 1) * per_part)
            yield SlicesMessage(
                id=message_id(self.id, index, "slices"),
                scan=Scan(id=self.id, name=self.case, patient=self.patient, label=self.label),
                part=[index, count],
                geometry=replace(self.geometry, slices=self.geometry.slices[some]),
                image=np.asarray(self.image[some]),
            )


class Slices:
    """The slices of several scans by number: ``images[i]`` [C, H, W] and ``masks[i]`` [H, W], of ``patients[i]``."""

    def __init__(self, scans: Sequence[CutScan]) -> None:
        self.images = [plane for scan in scans for plane in scan.image]
        self.masks = [plane for scan in scans for plane in scan.mask]
        self.patients = np.repeat([scan.patient for scan in scans], [len(scan.image) for scan in scans])

    def of(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """The numbers of these patients' slices."""
        return np.flatnonzero(np.isin(self.patients, list(patients)))


@dataclass(frozen=True)
class CutResult:
    """What became of a case: ``scan`` with its slices in memory, or the ``reason`` why it cannot be used.

    ``doubts`` are about files that are used. ``files`` has the digests of scan, mask and other sequences, "" for one
    without data.
    """

    case: Case
    files: Mapping[str, str]
    scan: CutScan | None = None
    reason: str = ""
    doubts: Sequence[str] = ()


def cut_cohort(cases: Iterable[Case], profile: Profile, work: Path, bar: Progress) -> list[CutScan]:
    """Cut every case with a mask, into ``work / "slices"``. Cases that cannot be used are named and left out.

    Raises
    ------
    PluginError: no case can be used, or files changed since an earlier run cut them.
    """
    scans = cut_cases([case for case in cases if case.mask is not None], profile, work, bar)
    if not scans:
        raise PluginError("no scan with a mask can be used")
    return scans


def cut_cases(
    usable: Sequence[Case], profile: Profile, work: Path, bar: Progress, run: Path | None = None
) -> list[CutScan]:
    """``cut_cohort``, also of cases without a mask; it may be that none can be used.

    Parameters
    ----------
    run: the folder to remove if files changed. Default: ``work``.
    """
    folder = work / "slices"
    if changed := changed_files(usable, folder, profile.input.channels):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise PluginError(
            f"{run or work}: has slices of files that changed since they were cut: {', '.join(changed[:3])}{more}; "
            "remove it, or name another --out"
        )
    spec = profile.input
    report_missing(usable, spec, bar)
    row = bar.add_task("slices", total=len(usable))

    def answered(result: CutResult) -> None:
        bar.advance(row)
        if result.reason and result.reason != why_not_used(result.case, spec):  # that was said of all together
            bar.console.print(f"passed over  {result.reason}", style="yellow", soft_wrap=True)
        for doubt in result.doubts:
            bar.console.print(f"doubtful  {doubt}", style="yellow", soft_wrap=True)

    scans = cut(usable, blank_bundle(profile, work / "blank"), folder, answered)
    bar.remove_task(row)
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


def cut(cases: Sequence[Case], bundle: Bundle, folder: Path, answered: Callable[[CutResult], None]) -> list[CutScan]:
    """Keep the slices of every case in ``folder``. Cases that cannot be used are left out.

    Cases that an earlier run cut or refused are not cut again, so an interrupted run resumes.

    Parameters
    ----------
    bundle: has the size and spacing of slices.
    answered: called with the result of each case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = []
    for case in cases:
        known = _record(folder, case)
        if known is None:
            new.append(case)
        else:
            answered(CutResult(case, known["files"], reason=known.get("reason", "")))
    for result in cut_each(new, bundle):
        _keep(folder, result)
        answered(result)
    return kept_scans(folder)


def cut_each(cases: Iterable[Case], bundle: Bundle) -> Iterator[CutResult]:
    """Send each case's scan through the preprocessor, and judge its mask. A case without a mask has one of zeros."""
    stage = Preprocessor(bundle, MemoryBroker(), [])
    for case in cases:
        yield _cut(case, stage, bundle.manifest.input)


def _cut(case: Case, stage: Preprocessor, spec: InputSpec) -> CutResult:
    read = {name: _read(volume) for name, volume in files_of(case, spec.channels).items()}
    files = {name: _digest(content) for name, (content, _) in read.items()}
    if reason := why_not_used(case, spec):
        return CutResult(case, files, reason=reason)
    if faults := [fault for _, fault in read.values() if fault]:
        return CutResult(case, files, reason=faults[0])
    (data, _), (mask_data, _) = read["scan"], read["mask"]
    if data and data == mask_data:
        return CutResult(case, files, reason=f"mask {case.mask}: it is the scan itself")
    about = Scan(id=message_id(case.id), name=case.id, patient=case.patient, label=case.label)
    message = ScanMessage(
        id=message_id(about.id, "scan"),
        scan=about,
        source=Source(data=data),
        channel=case.channel,
        sequences={
            name: SequenceSource(source=Source(data=read[name][0]), channel=file.channel)
            for name, file in case.sequences.items()
            if name in read
        },
    )
    parts: list[SlicesMessage] = []
    reasons: list[str | None] = []
    stream(
        [message],
        stage,
        lambda results: parts.extend(expect(each, SlicesMessage) for each in results),
        lambda _, reason: reasons.append(reason),
    )
    if reasons[0] is not None:
        return CutResult(case, files, reason=f"{case.scan}: {reasons[0]}")
    slices = [z for part in parts for z in part.geometry.slices]
    geometry = replace(parts[0].geometry, slices=slices, forms=None)
    image = np.concatenate([part.image for part in parts])
    flair = image[:, 0]
    known = set(map(answered_without, lacking(case, spec)))  # counted and said of all scans together
    doubts = [f"{case.scan}: {warning}" for warning in parts[0].warnings if warning not in known]
    mask = np.zeros(flair.shape, np.uint8)
    tumour = ""
    if case.mask is not None:
        try:
            labels, affine = read_mask(mask_data)
            mask, about_mask = place_mask(labels, affine, geometry, flair)
            tumour = _tumour_digest(labels)
            doubts += [f"mask {case.mask}: {doubt}" for doubt in about_mask]
        except ValueError as error:
            return CutResult(case, files, reason=f"mask {case.mask}: {error}")
    voxels = hashlib.sha256(flair.tobytes()).hexdigest()
    digests = voxels, tumour, files["mask"]
    scan = CutScan(about.id, case.id, case.patient, case.label, geometry, image, mask, *digests)
    return CutResult(case, files, scan, doubts=doubts)


def files_of(case: Case, channels: Collection[str]) -> dict[str, Volume | None]:
    """The volumes of a case that a bundle of these sequences uses: ``scan`` (the FLAIR), ``mask``, and the others."""
    others = {name: file.volume for name, file in case.sequences.items() if name in channels}
    return {"scan": case.scan, "mask": case.mask, **others}


def changed_files(cases: Iterable[Case], folder: Path, channels: Collection[str] = ()) -> list[str]:
    """The files of these cases whose content is not that of the files which were cut into ``folder``."""
    changed = []
    for case in cases:
        known = _record(folder, case)
        if known is None:
            continue
        for name, volume in files_of(case, channels).items():
            data, fault = _read(volume)
            if _digest(data) != known["files"].get(name, ""):
                changed.append(fault or str(volume))
    return changed


def kept_scans(folder: Path) -> list[CutScan]:
    """The scans in ``folder``, in the order of their ids."""
    allow_open_files()  # a memory map keeps its file open
    return [_load(folder, path.stem) for path in sorted(folder.glob("*.json"))]


def _read(volume: Volume | None) -> tuple[bytes, str]:
    """The volume's data, and why it cannot be read, with its name."""
    try:
        return volume.read() if volume is not None else b"", ""
    except (OSError, ValueError) as error:
        return b"", str(error) if str(volume) in str(error) else f"{volume}: {error}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _tumour_digest(labels: NDArray[np.uint8]) -> str:
    """The digest of the labels in the smallest box around the tumour."""
    if np.count_nonzero(labels) < COMPARED_VOXELS:
        return ""
    inside = [np.flatnonzero(labels.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = labels[tuple(slice(where[0], where[-1] + 1) for where in inside)]
    return hashlib.sha256(repr(box.shape).encode() + box.tobytes()).hexdigest()


def _record(folder: Path, case: Case) -> dict[str, Any] | None:
    """What an earlier run wrote about a case; None if it did not finish it."""
    for ending in (".json", ".refused"):
        path = folder / (message_id(case.id) + ending)
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return None


def _keep(folder: Path, result: CutResult) -> None:
    stem, scan = folder / message_id(result.case.id), result.scan
    if scan is None:
        write_whole(
            stem.with_suffix(".refused"),
            json.dumps({"case": result.case.id, "reason": result.reason, "files": result.files}),
        )
        return
    np.save(stem.with_suffix(".image.npy"), scan.image)
    np.save(stem.with_suffix(".mask.npy"), scan.mask)
    about = {
        "case": scan.case,
        "patient": scan.patient,
        "label": scan.label,
        "geometry": asdict(scan.geometry),
        "voxels": scan.voxels,
        "tumour": scan.tumour,
        "files": result.files,
    }
    write_whole(stem.with_suffix(".json"), json.dumps(about))


def _load(folder: Path, scan_id: str) -> CutScan:
    about: dict[str, Any] = json.loads((folder / f"{scan_id}.json").read_text(encoding="utf-8"))
    image = np.load(folder / f"{scan_id}.image.npy", mmap_mode="r")
    image = image if image.ndim == 4 else image[:, None]
    mask = np.load(folder / f"{scan_id}.mask.npy", mmap_mode="r")
    geometry = Geometry(**about["geometry"])
    # slices of an older version have no digest of the tumour
    digests = about["voxels"], about.get("tumour", ""), about["files"]["mask"]
    return CutScan(scan_id, about["case"], about["patient"], about["label"], geometry, image, mask, *digests)
