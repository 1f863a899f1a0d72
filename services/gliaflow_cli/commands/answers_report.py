"""The page of ``gliaflow submit --report``, and of ``gliaflow demo``, which adds the truth and feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow.picture import MaskedScan
from gliaflow.scans import Input
from gliaflow_client.out_folder import OutFolder, Target
from gliaflow_client.summary import ON_PHANTOMS, counts, is_on_phantoms, true_grades
from gliaflow_client.table import ScanRow
from gliaflow_pages.drawing import INSTALL, has_matplotlib
from gliaflow_pages.pages import render_page
from gliaflow_pages.slices import Slice, feature_maps, slice_pictures
from gliaflow_plugins.nibabel_alone import nib
from numpy.typing import NDArray

from gliaflow_cli.terminal import progress_bar

MAX_PICTURES = 200  # about 70 kB each; a page with more is slow
NO_PICTURES = f"no picture, for lack of matplotlib: {INSTALL}"


@dataclass(frozen=True)
class Shown:
    """A scan with its answer and one slice.

    Parameters
    ----------
    slice: None if there is no picture. where: the slice's number, or why there is no picture.
    dice: of the whole mask, where the true mask is known.
    """

    row: ScanRow
    slice: Slice | None
    where: str
    dice: float | None = None

    @classmethod
    def of(cls, row: ScanRow, item: Input | None, out: Path, truth: Path | None = None) -> Shown:
        """Read the scan, its mask from ``out`` and the true mask, and choose the slice with most tumour."""
        scan = MaskedScan.of(item, _load(out / row.mask) if row.mask else None)
        if scan is None:
            return cls(row, None, "no picture: the scan cannot be read")
        true = None if truth is None else np.asarray(nib.as_closest_canonical(_load(truth)).dataobj) > 0
        z = scan.fullest(true)
        where = f"slice {z} (0 to {scan.mask.shape[2] - 1})"
        where += "; the scan cannot be read" if scan.voxels is None else ""
        dice = None if true is None else 2 * int((scan.mask & true).sum()) / max(1, int(scan.mask.sum() + true.sum()))
        return cls(row, scan.slice(z, true), where, dice)


@dataclass(frozen=True)
class DemoParts:
    """What only the demo has. ``real``: by class, the features [C, H, W] of one slice; ``synthetic``: [n, C, H, W].

    ``metrics``: those of the bundle's manifest.
    """

    real: Mapping[str, NDArray[Any]]
    synthetic: Mapping[str, NDArray[Any]]
    metrics: Mapping[str, Mapping[str, Any]]


def write_report(folder: OutFolder, targets: Sequence[Target]) -> Path:
    """Write ``report.html`` about all rows of the folder. ``targets`` are the scans just submitted."""
    items = {target.scan: target.item for target in targets}
    shown = []
    with progress_bar() as bar:
        for number, row in enumerate(bar.track(list(folder.rows.values()), description="reading scans for the report")):
            if number < MAX_PICTURES:
                shown.append(Shown.of(row, items.get(row.scan) or folder.recorded_input(row.scan), folder.path))
            else:
                shown.append(Shown(row, None, ""))
    page = answers_page(shown)
    return folder.path / folder.save("", "report", ".html", lambda part: part.write_text(page, encoding="utf-8"))


def answers_page(scans: Sequence[Shown], demo: DemoParts | None = None) -> str:
    """The page of these scans, as HTML. Only the first MAX_PICTURES of them have pictures; none without matplotlib."""
    if not has_matplotlib():
        scans = [replace(scan, slice=None, where=NO_PICTURES) for scan in scans]
        demo = None if demo is None else replace(demo, synthetic={})
    rows = [scan.row for scan in scans]
    tiles = scans[:MAX_PICTURES]
    pictures = iter(slice_pictures([scan.slice for scan in tiles if scan.slice is not None]))
    parts: dict[str, object] = {}
    if demo is not None:
        answered = [scan.dice for scan in scans if scan.dice is not None and scan.row.status != "failed"]
        parts = {
            "dice": np.mean(answered) if answered else None,
            "metrics": demo.metrics,
            "no_maps": "No synthetic features were made." if has_matplotlib() else NO_PICTURES,
            "maps": {
                label: feature_maps(demo.real[label][None], made[:2])
                for label, made in demo.synthetic.items()
                if label in demo.real
            },
            "channels": {label: len(features) for label, features in demo.real.items()},
        }
    return render_page(
        "gliaflow_cli.commands",
        "answers.html" if demo is None else "demo.html",
        title="gliaflow answers" if demo is None else "gliaflow demo",
        scans=scans,
        counts=counts(rows),
        true_grades=true_grades(rows),
        on_phantoms=ON_PHANTOMS if is_on_phantoms(rows) else "",
        bundles=sorted({row.bundle for row in rows if row.bundle}),
        with_true=any(row.true_grade for row in rows),
        with_dice=demo is not None,
        tiles=[(scan, None if scan.slice is None else next(pictures)) for scan in tiles],
        **parts,
    )


def _load(path: Path) -> Any | None:
    try:
        image: Any = nib.load(path)
        np.asarray(image.dataobj)
        return image
    except Exception:  # nibabel raises many kinds for a broken file
        return None
