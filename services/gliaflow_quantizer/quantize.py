"""``gliaflow quantize``: a bundle becomes another whose U-Net is int8, and that is checked on scans of its own.

The other networks are copied. What changes in the answers is measured on phantoms that nothing was calibrated on, and
on patients of the cohort, if one is given, that were left out of the calibration. If the mean Dice falls too far, no
bundle is written, nor if nothing could be checked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.contracts import Case, Cohort
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.version import installed
from gliaflow_trainer.leaks import refuse_leaks
from gliaflow_trainer.slices import CutScan, cut_each
from numpy.typing import NDArray
from rich.progress import Progress

from gliaflow_quantizer.check import Pipeline, compare, figures
from gliaflow_quantizer.int8 import METHOD, quantized, read_unet
from gliaflow_quantizer.phantom_cases import CALIBRATION, CHECK, phantom_cases

UNET = "unet.onnx"
PHANTOMS, COHORT = "phantoms", "the cohort"
MOST_FALL = 0.01  # of the mean Dice
LEAST_DICE = 0.1  # with less, a U-Net finds nothing, and cannot fall
CALIBRATION_SCANS, CALIBRATION_SLICES = 8, 8  # scans, and slices of each, evenly from the lowest to the highest


@dataclass(frozen=True)
class QuantizeRequest:
    """Which bundle, and how it is made int8.

    Parameters
    ----------
    out: the folder to write the new bundle to.
    cohort: has the scans to calibrate on, masked or not; None: phantoms.
    scans: how many phantoms to check on, and how many patients of the cohort.
    allow: write the bundle although the check objects, or the cohort has leaks; the manifest notes both.
    """

    bundle: Bundle
    out: Path
    cohort: Cohort | None = None
    scans: int = 8
    seed: int = 0
    allow: bool = False


@dataclass
class _Calibration:
    """The slices from which the ranges are taken; once they are read, how many they were, and of which scans.

    ``seen`` has the scans' names by the digest of their voxels.
    """

    scans: Iterator[CutScan]
    counts: dict[str, int] = field(default_factory=lambda: {"scans": 0, "slices": 0})
    seen: dict[str, str] = field(default_factory=dict)

    def images(self) -> Iterator[NDArray[np.float32]]:
        for scan in self.scans:
            numbers = np.unique(np.linspace(0, len(scan.image) - 1, CALIBRATION_SLICES).round().astype(int))
            self.counts["scans"] += 1
            self.counts["slices"] += len(numbers)
            self.seen[scan.voxels] = scan.case
            for number in numbers:
                yield scan.image[number, None].astype(np.float32)


def quantize(request: QuantizeRequest, bar: Progress) -> Bundle:
    """Write the bundle to ``request.out``, whole or not at all, and return it.

    Raises
    ------
    BundleError: ``out`` exists or cannot be made, the bundle lacks a network, is int8 already, or the check objects.
    PluginError: the cohort has leaks.
    UsageError: no scan of the cohort can be used.
    """
    source, out = request.bundle, request.out
    if os.path.lexists(out):
        raise BundleError(f"--out: {out} exists already: name another folder, or delete it")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise BundleError(f"--out: no folder can be made in {above}: name another one")
    if UNET not in source.manifest.files:
        raise BundleError(f"{source.folder}: has no U-Net ({UNET}): name a bundle that `gliaflow train` wrote")
    if request.cohort is not None:
        refuse_leaks(request.cohort.leaks, request.allow, bar)
    before, model = Pipeline(source), read_unet(source)
    known, left = _split(request)
    calibration = _Calibration(_cut(bar, "calibrating", source, known, CALIBRATION_SCANS))
    images = calibration.images()
    if (first := next(images, None)) is None:
        raise UsageError("--calibrate: no scan of the cohort can be used: see `gliaflow cohort COHORT --check`")
    int8 = quantized(model, chain([first], images))
    with tempfile.TemporaryDirectory(prefix="gliaflow-") as work:
        folder = Path(work, "bundle")
        folder.mkdir()
        for name in source.manifest.files:
            if name.endswith(".onnx") and name != UNET:  # weights to fine-tune would not be those of this U-Net
                (folder / name).write_bytes(source.read(name))
        (folder / UNET).write_bytes(int8)
        manifest = source.manifest.model_dump(mode="json", exclude={"schema_", "files"})
        manifest["name"] = f"{source.manifest.name[:59]}-int8"
        manifest["quantization"] = record = {
            "source": source.id,
            "source_sha256": source.sha256,
            "method": METHOD,
            "calibration": {
                "from": request.cohort.layout if request.cohort else "phantoms",
                **calibration.counts,
                "seed": request.seed,
                **({"leaks": len(request.cohort.leaks)} if request.cohort else {}),
            },
            "source_metrics": manifest["metrics"],
            "source_versions": manifest["versions"],
        }
        manifest["metrics"] = {}
        manifest["versions"] = dict(each.split(" ") for each in installed("gliaflow", "onnx", "onnxruntime", "numpy"))
        pipelines = before, Pipeline(write_manifest(folder, manifest))
        changes = {}
        for name, cases in left.items():
            scans = _others(_cut(bar, f"checking on {name}", source, cases, request.scans), calibration.seen, bar)
            if compared := [compare(pipelines, scan) for scan in islice(scans, request.scans)]:
                changes[name] = figures(compared)
            elif name == COHORT:
                record["cohort_unchecked"] = _why_unchecked(request.cohort, cases)
        record["changes"], record["objections"] = changes, [*objections(changes)]
        if record["objections"] and not request.allow:
            raise BundleError(
                f"{source.folder}: no bundle was written: {'; '.join(record['objections'])}. Calibrate on scans like "
                "yours (--calibrate COHORT), keep the bundle in fp32, or accept it (--allow)"
            )
        write_manifest(folder, manifest)
        _place(folder, out)
    return Bundle(out)


def _place(folder: Path, out: Path) -> None:
    """Copy the folder, which may be on another disk, to ``out``, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        shutil.copytree(folder, Path(beside, "bundle")).rename(out)


def _split(request: QuantizeRequest) -> tuple[Iterable[Case], dict[str, Iterable[Case]]]:
    """The cases to calibrate on, and those to check on.

    Of a cohort, one scan of each of at most half of the patients calibrates, and others with a mask are for the check.
    """
    channels = request.bundle.manifest.input.channels
    checks: dict[str, Iterable[Case]] = {PHANTOMS: phantom_cases(request.scans, request.seed, CHECK, channels)}
    if request.cohort is None:
        return phantom_cases(CALIBRATION_SCANS, request.seed, CALIBRATION, channels), checks
    one = [*{case.patient: case for case in request.cohort.cases}.values()]
    order = np.random.default_rng(request.seed).permutation(len(one))
    shuffled, known = [one[n] for n in order], min(CALIBRATION_SCANS, -(-len(one) // 2))
    left = [case for case in shuffled[known:] if case.mask is not None]
    return [replace(case, mask=None) for case in shuffled[:known]], checks | {COHORT: left}


def _why_unchecked(cohort: Cohort | None, left: Iterable[Case]) -> str:
    """Why no patient of the cohort was checked on; ``left``: the cases with masks that did not calibrate."""
    count = len({case.patient for case in cohort.cases}) if cohort is not None else 0
    if count == 1:
        return "its only patient calibrated"
    if not [*left]:
        return f"of its {count} patients, none that did not calibrate has a mask"
    return "of its patients with masks that did not calibrate, none could be used"


def _cut(bar: Progress, title: str, bundle: Bundle, cases: Iterable[Case], total: int) -> Iterator[CutScan]:
    """The slices of each case that can be used, with a row of the bar; the others are named."""
    row = bar.add_task(title, total=total)
    try:
        for result in cut_each(cases, bundle):
            if result.scan is None:
                bar.console.print(f"passed over  {result.reason}", style="yellow", soft_wrap=True)
            else:
                yield result.scan
            bar.advance(row)
    finally:  # the reader may have enough before the last
        bar.remove_task(row)


def _others(scans: Iterable[CutScan], seen: dict[str, str], bar: Progress) -> Iterator[CutScan]:
    """The scans that are no copies of those in ``seen``, names by the digest of voxels, or of each other."""
    for scan in scans:
        if name := seen.get(scan.voxels):
            bar.console.print(f"passed over  {scan.case}: the same voxels as {name}", style="yellow", soft_wrap=True)
            continue
        seen[scan.voxels] = scan.case
        yield scan


def objections(changes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What speaks against a bundle whose answers changed so. ``changes``: ``check.figures`` by PHANTOMS, COHORT.

    A U-Net that was trained on patients may find nothing in phantoms. If it was checked on a cohort, that is enough.
    """
    if not changes:
        yield "no scan could be checked, so nobody knows how its answers change"
    for name, made in changes.items():
        before, after = made["dice"]["before"], made["dice"]["after"]
        if before < LEAST_DICE:
            if name == COHORT or COHORT not in changes:
                yield f"on {name} the mean Dice is {before:.3f} in fp32: so low that its change says nothing"
        elif round(before - after, 4) > MOST_FALL:
            yield f"on {name} the mean Dice falls from {before:.3f} to {after:.3f}, by more than {MOST_FALL}"
