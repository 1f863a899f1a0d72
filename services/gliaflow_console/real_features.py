"""Real features to compare synthetic ones with: those of the tumour slices of the console's own scans.

A scan's class is the grade that the console drew it with (a phantom), or else the grade that the bundle gave, which
nobody has verified. So the distances here are not those of ``gliaflow evaluate``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from gliaflow_evaluation.generator_quality import DISTANCES, NEAREST, distances, pool
from gliaflow_runtime.errors import UsageError
from numpy.typing import NDArray

from gliaflow_console.maps import strongest_slice
from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan

NEEDED_PATIENTS, MOST_SCANS = 6, 12
SLICES = 8  # of a scan, at most: more of the same tumour say little
KEPT = 100  # scans whose pooled features are kept

Floats = NDArray[np.float32]


class RealFeatures:
    """Features of the scans in the store that this console's bundle has answered, and whose image is there."""

    def __init__(self, networks: Networks, store: ScanStore) -> None:
        self._networks, self._store = networks, store
        self._pooled: OrderedDict[str, Floats] = OrderedDict()

    def example(self, grade: str) -> tuple[StoredScan, int, NDArray[np.float16]] | None:
        """A scan of this class, its slice that says most for it, and the features [C, H, W] of that slice.

        The newest phantom that was drawn with this grade, or else the newest scan whose true grade is not known.
        """
        scans = sorted(self._scans(grade), key=lambda each: not each.drawn)  # stable: the newest stay first
        for scan in scans[:MOST_SCANS]:
            number = strongest_slice(scan, grade)
            try:
                return scan, number, self._features(scan, [number])[0]
            except UsageError:  # its file has gone meanwhile, or is too large for this process
                continue
        return None

    def distances(self, grade: str, synthetic: NDArray[Any]) -> tuple[list[dict[str, Any]], str]:
        """The distances of synthetic features [n, C, H, W] to real ones, with their floor, and a text.

        The scans are split by patient into two halves. The floor is the distance between the halves. The list is empty
        where there are too few scans; the text says so, or what was compared.
        """
        by_patient: dict[str, list[Floats]] = {}
        scans, drawn = 0, 0
        for scan in self._scans(grade)[:MOST_SCANS]:
            try:
                pooled = self._pool(scan)
            except UsageError:  # as in ``example``
                continue
            by_patient.setdefault(scan.patient or scan.id, []).append(pooled)
            scans, drawn = scans + 1, drawn + bool(scan.drawn)
        if len(by_patient) < NEEDED_PATIENTS:
            return [], (
                f"Distances need scans of at least {NEEDED_PATIENTS} patients with {grade} that were sent through this "
                f"page and answered by this console's bundle; there are {len(by_patient)}. Send more scans or phantoms."
            )
        patients = [np.concatenate(parts) for parts in by_patient.values()]
        halves, made = (np.concatenate(patients[0::2]), np.concatenate(patients[1::2])), pool(synthetic)
        counts = [len(side) for side in (*halves, made)]
        if min(counts) <= NEAREST:
            return [], f"Distances need more than {NEAREST} samples on each side; there are {counts}."
        both = [_compare(*sides, made) for sides in (halves, halves[::-1])]
        rows = [
            {
                "name": entry.title,
                "description": entry.description,
                **{side: float(np.mean([values[name][side] for values in both])) for side in ("synthetic", "floor")},
                "higher_is_better": entry.higher_is_better,
            }
            for name, entry in DISTANCES.items()
        ]
        classes = [f"{drawn} of the scans are phantoms that were drawn as {grade}"] if drawn else []
        if scans > drawn:
            classes += [f"{scans - drawn} of them have the grade that this bundle gave, which nobody has verified"]
        return rows, (
            f"Real: {counts[0] + counts[1]} slices with tumour of {scans} scans of {len(patients)} patients in this "
            f"console, in two halves by patient. {' and '.join(classes)}. Each half is "
            f"compared with {counts[2]} synthetic features and, for the floor, with the other half. With so few scans "
            "the figures are rough. They are not those of `gliaflow evaluate`, which compares with the patients that "
            "the generator learned from."
        )

    def _scans(self, grade: str) -> list[StoredScan]:
        """The scans of a class, the newest first."""
        bundle = self._networks.bundle.id
        return [
            scan
            for scan in self._store.newest(len(self._store))
            if scan.own and scan.bundle == bundle and scan.slice_p_hgg and (scan.drawn or scan.grade) == grade
        ]

    def _features(self, scan: StoredScan, numbers: list[int]) -> NDArray[np.float16]:
        """The features of slices, cropped if the bundle crops: as the classifier and the generators see them."""
        networks = self._networks
        slices = networks.slices(self._store, scan)
        rows = np.flatnonzero(np.isin(slices.geometry.slices, numbers))
        if not rows.size:
            raise UsageError("the preprocessor made other slices of this scan when it was answered")
        manifest = networks.bundle.manifest
        return networks.features(slices, rows, manifest.tap, cropped=manifest.cropped)

    def _pool(self, scan: StoredScan) -> Floats:
        """The pooled features of slices with tumour, evenly spaced."""
        if scan.id not in self._pooled:
            numbers = [number for number, _ in scan.slice_p_hgg]
            taken = np.unique(np.linspace(0, len(numbers) - 1, SLICES).round().astype(int))
            self._pooled[scan.id] = pool(self._features(scan, [numbers[index] for index in taken]))
            if len(self._pooled) > KEPT:
                self._pooled.popitem(last=False)
        return self._pooled[scan.id]


def _compare(reference: Floats, other: Floats, synthetic: Floats) -> dict[str, dict[str, float | None]]:
    """The distances of synthetic samples to the reference, and as the floor those of other real samples."""
    # the other real samples count for the space too: in half of so few, some channels have no spread to divide by
    real = np.concatenate([reference, other]), np.repeat([0, 1], [len(reference), len(other)])
    held_out, made = ((side, np.zeros(len(side), np.int64)) for side in (other, synthetic))
    return distances(real, held_out, made, [""])[""]
