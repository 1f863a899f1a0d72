"""Dice of a bundle's masks against manual masks: ``<id>_flair.nii.gz`` beside ``<id>_seg.nii.gz``.

    python bench/dice.py FOLDER [--bundle BUNDLE]

Every scan passes the whole pipeline (``gliaflow submit`` on ``memory://``), with the other sequences that the bundle
reads, as found beside it. Each Dice is over all voxels of a scan, on the scan's own grid. The interval is a bootstrap
over scans. Scans that fail are counted, and have no Dice.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np


def dice(mask: Path, truth: Path) -> float:
    a, b = (np.asarray(nib.load(path).dataobj) > 0 for path in (mask, truth))
    return 2 * float((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, help="default: the demonstration bundle")
    options = parser.parse_args()
    scans = sorted(options.folder.rglob("*_flair.nii.gz"))
    if not scans:
        print(f"skipped: no *_flair.nii.gz under {options.folder}")
        return
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        command = [sys.executable, "-m", "gliaflow_cli", "submit", *map(str, scans), "--out", str(out)]
        done = subprocess.run([*command, *(["--bundle", str(options.bundle)] if options.bundle else [])])
        if done.returncode > 1:  # 1: a scan failed
            sys.exit(done.returncode)
        with (out / "predictions.csv").open() as file:
            rows = {row["scan"]: row for row in csv.DictReader(file)}
        scores = []
        for scan in scans:
            stem = scan.name.removesuffix(".nii.gz")
            if rows[stem]["status"] == "failed":
                continue
            truth = scan.with_name(scan.name.replace("_flair", "_seg"))
            truth = truth if truth.exists() else scan.with_name(scan.name.replace("_flair", "_seg_fused"))
            scores.append(dice(out / f"{stem}_seg.nii.gz", truth))
            print(f"{stem:32} Dice {scores[-1]:.3f}   {float(rows[stem]['tumour_ml']):7.1f} ml")
    if failed := len(scans) - len(scores):
        print(f"{failed} of {len(scans)} scans failed")
    if not scores:
        sys.exit(1)
    rng = np.random.default_rng(0)
    means = [np.mean(rng.choice(scores, len(scores))) for _ in range(5000)]
    low, high = np.percentile(means, [2.5, 97.5])
    quartiles = np.percentile(scores, [25, 50, 75])
    bundle = next(row["bundle"] for row in rows.values() if row["bundle"])
    print(f"{bundle}: {len(scores)} scans, mean Dice {np.mean(scores):.3f} (95 % interval {low:.3f}–{high:.3f})")
    print(f"quartiles {' '.join(f'{q:.3f}' for q in quartiles)}; below 0.1: {sum(s < 0.1 for s in scores)}")


if __name__ == "__main__":
    main()
