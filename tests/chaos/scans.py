"""The scans to stream: small and all different, some of them too large for a message, some broken."""

from __future__ import annotations

import random
from pathlib import Path

import nibabel as nib
import numpy as np
from sample_scans import BROKEN

SHAPES = ((40, 48, 12), (36, 40, 20), (36, 40, 40))  # one, two and three parts of at most 16 slices
LARGE = (256, 256, 13)  # as float64 over 6 MiB, the limit of a scan in a message


def make(folder: Path, count: int, seed: int) -> list[Path]:
    """Write ``count`` scans that differ in every voxel. One of 20 is broken, one of 30 is sent in chunks."""
    folder.mkdir(parents=True)
    broken = random.Random(seed).sample(sorted(BROKEN), len(BROKEN))
    paths = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        if number % 20 == 7:
            name = broken[number // 20 % len(broken)]
            path = folder / f"{number:03d}-{name}"
            path.write_bytes(BROKEN[name][0]())
        elif number % 30 == 11:
            path = folder / f"{number:03d}-large.nii"
            nib.save(nib.Nifti1Image(_head(LARGE, rng).astype(np.float64), np.diag([0.8, 0.8, 6, 1])), path)
        else:
            path = folder / f"{number:03d}.nii.gz"
            head = _head(SHAPES[number % len(SHAPES)], rng)
            nib.save(nib.Nifti1Image(head.astype(np.int16), np.diag([5.0, 5, 4, 1])), path)
        paths.append(path)
    return paths


def _head(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid head with a bright lesion somewhere."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = (i**2 + j**2 + k**2 < 0.8) * rng.normal(300, 15, shape)
    a, b, c = rng.uniform(-0.35, 0.35, 3)
    return head + rng.uniform(100, 400) * ((i - a) ** 2 + (j - b) ** 2 + (k - c) ** 2 < rng.uniform(0.03, 0.1))
