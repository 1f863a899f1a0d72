"""Stops before anything is fitted, if one patient's data may be on both sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from gliaflow_phantoms.cohort import made_by
from gliaflow_plugins.cohorts.leaks import same_headers, same_masks, same_voxels
from gliaflow_plugins.cohorts.patient_names import patient_key
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_runtime.bundle.load import Bundle
from rich.progress import Progress

from gliaflow_trainer.slices import CutScan


def refuse_leaks(leaks: Sequence[str], allow: bool, bar: Progress, remedy: str = "fix the cohort") -> None:
    """Print the leaks, if they are allowed.

    Raises
    ------
    PluginError: there are leaks, and they are not allowed. The error has a note for each.
    """
    if leaks and not allow:
        error = PluginError(f"the same patient's data may be in several parts of the split; {remedy}, or give --allow")
        for leak in leaks:
            error.add_note(f"  leak: {leak}")
        raise error
    for leak in leaks:
        bar.console.print(f"leak      {leak} (allowed)", style="yellow", soft_wrap=True)


def learned_from(bundles: Iterable[Path | None], folder: Path) -> list[str]:
    """The leaks by networks that learned from the phantoms in ``folder``, of each bundle that gives one."""
    phantoms = made_by(folder).get("made_by", {})
    return [
        f"{bundle} learned from phantoms of seed {seen.get('seed')}, as these are: make some with another "
        "--seed, or give another bundle"
        for bundle in bundles
        if bundle is not None and phantoms
        for seen in Bundle(bundle).phantoms
        if all(seen.get(key) == phantoms.get(key) for key in ("drawing", "seed"))
    ]


def refuse_copies(scans: Sequence[CutScan], allow: bool, bar: Progress) -> list[str]:
    """The leaks by scans with the same voxels, if they are allowed; see ``refuse_leaks``. Equal masks are printed."""
    leaks, problems = same_voxels((scan.voxels, scan.patient, scan.case) for scan in scans)
    for problem in problems + same_masks((scan.tumour, scan.patient, scan.case) for scan in scans):
        bar.console.print(f"problem   {problem}", style="yellow", soft_wrap=True)
    refuse_leaks(leaks, allow, bar)
    return leaks


Further = tuple[Sequence[Case], Sequence[CutScan]]
"""Cases, and the scans that were cut of them."""


def refuse_known(further: Further, cohort: Further, allow: bool, bar: Progress, flag: str) -> list[str]:
    """The leaks by scans of ``flag`` that are of the cohort's patients, if they are allowed; see ``refuse_leaks``.

    They are compared by voxels, by name, and by what DICOM headers say.
    """
    voxels = {scan.voxels: scan.case for scan in cohort[1]}
    names = {patient_key(scan.patient): scan.patient for scan in cohort[1] if patient_key(scan.patient)}
    leaks = []
    for scan in further[1]:
        key = patient_key(scan.patient)
        if scan.voxels in voxels:
            leaks.append(f"the scan {scan.case!r} of {flag} has the voxels of {voxels[scan.voxels]!r}")
        elif key.isdigit() and key in names and flag == "--source":  # two cohorts that count their patients
            bar.console.print(
                f"problem   the patient {scan.patient!r} of {flag} has the number of one of the cohort",
                style="yellow",
                soft_wrap=True,
            )
        elif known := names.get(key):
            leaks.append(f"the scan {scan.case!r} of {flag} is of a patient with the name of {known!r}")
    alone = {leak for cases, _ in (cohort, further) for leak in same_headers(cases)}
    leaks += [leak for leak in same_headers([*cohort[0], *further[0]]) if leak not in alone]
    refuse_leaks(leaks, allow, bar, f"take these scans out of the folder of {flag}")
    return leaks
