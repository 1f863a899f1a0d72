"""How often the preprocessor warns that a scan is not like those of the bundle's training.

    python bench/typical.py FOLDER [--bundle BUNDLE]

FOLDER has scans that are FLAIR (``*_flair.nii.gz``) and scans that are not (``*_t1ce.nii.gz``, ``*_t1.nii.gz``,
``*_t2.nii.gz``), in any depth. From each tenth FLAIR, the script also makes scans of other kinds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from gliaflow_phantoms.phantom import make_patient
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_preprocessor.slices import UnusableScan, prepare
from gliaflow_preprocessor.typical import doubt
from gliaflow_proto import CLASSES
from gliaflow_runtime.bundle.load import load_bundle
from numpy.typing import NDArray
from scipy import ndimage

Volume = NDArray[Any]
KINDS = ("flair", "t1ce", "t1", "t2")
PHANTOMS = 60


def scans(folder: Path) -> Iterator[tuple[str, Volume, Volume]]:
    """Kind, volume and affine of each scan."""
    for kind in KINDS:
        for number, path in enumerate(sorted(folder.rglob(f"*_{kind}.nii.gz"))):
            volume, affine = read_nifti(path.read_bytes())
            yield kind, volume, affine
            if kind == "flair" and number % 10 == 0:
                for name, made in others(volume.astype(np.float32), affine, np.random.default_rng(number)):
                    yield name, made, affine
    for number in range(PHANTOMS):
        phantom = make_patient(CLASSES[number % 2], np.random.default_rng([2025, number]))
        yield "phantoms not trained on", phantom.flair, phantom.affine


def others(flair: Volume, affine: Volume, rng: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    shape, mm = flair.shape, nib.affines.voxel_sizes(affine)
    head = ndimage.binary_closing(flair > 0.12 * np.percentile(flair, 99.5), iterations=2)
    head = ndimage.binary_fill_holes(head)
    depth = ndimage.distance_transform_edt(head, sampling=mm)
    yield "noise: uniform", rng.integers(0, 500, shape)
    yield "noise: normal", rng.normal(0, 100, shape)
    yield "noise: Rician, in a head", head * np.hypot(rng.normal(50, 50, shape), rng.normal(0, 50, shape))
    yield "inverted FLAIR, air too", flair.max() - flair
    yield "label map", np.digitize(flair, np.percentile(flair[head], [20, 50, 80])) * head
    yield "ball", (depth > 5) * 300.0
    hounsfield = np.select([depth > 10, depth > 4, head], [33.0, 1000.0, -60.0], -1000.0)
    yield "CT (simulated)", ndimage.gaussian_filter(hounsfield, 0.5 / mm) + rng.normal(0, 6, shape)
    yield "the voxels in random order", rng.permutation(flair.ravel()).reshape(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, help="default: the demonstration bundle")
    options = parser.parse_args()
    if not any(options.folder.rglob("*_flair.nii.gz")):
        print(f"skipped: no *_flair.nii.gz under {options.folder}")
        return
    bundle = load_bundle(options.bundle)
    manifest = bundle.manifest
    seen, warned = Counter[str](), Counter[str]()
    for kind, volume, affine in scans(options.folder):
        seen[kind] += 1
        try:
            warned[kind] += bool(doubt(prepare(volume, affine, manifest.input).image, manifest.input, manifest.typical))
        except UnusableScan:
            warned[kind] += 1
    print(f"{bundle.id}: {manifest.typical}")
    for kind, number in seen.items():
        print(f"{kind:28} a warning (or refused) for {warned[kind]:3} of {number:3}")


if __name__ == "__main__":
    main()
