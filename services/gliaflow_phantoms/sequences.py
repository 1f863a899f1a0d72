"""How bright each tissue is on each sequence, as a share of the brightness of white matter.

A level is drawn for each patient: uniform in one of the ranges of the table, each as likely. The ranges are wide: to a
network that is trained on phantoms, a real scanner is one more draw (Billot et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Levels = Mapping[str, float]
Ranges = Mapping[str, Sequence[tuple[float, float]]]

FLAIR: Ranges = {
    "grey": [(1.15, 1.45)],
    "nuclei": [(0.2, 1.3)],  # the deep grey matter: as a share of the cortex's contrast to white matter
    "cerebellum": [(-0.15, 0.15)],  # added
    "csf": [(0.05, 0.45)],
    "gliosis": [(0.2, 0.9)],  # added
    "fat": [(1.2, 4.5)] * 6 + [(0.5, 1.2)],
    "muscle": [(0.4, 1.0)],
    "gland": [(0.5, 2.2)],  # and tongue, nodes
    "bone": [(0.03, 0.3)],
    "eye": [(0.15, 0.7)],
    "tumour": [(1.3, 2.2)] * 7 + [(1.12, 1.3)],
    "rim": [(0.65, 1.15)],  # as a share of the tumour's level
    "core": [(0.1, 0.9)],
}
T1: Ranges = {
    "grey": [(0.6, 0.85)],
    "nuclei": [(0.4, 1.0)],
    "cerebellum": [(-0.1, 0.1)],
    "csf": [(0.12, 0.35)],
    "gliosis": [(-0.25, -0.05)],
    "fat": [(1.3, 2.6)],
    "muscle": [(0.45, 0.8)],
    "gland": [(0.5, 1.2)],
    "bone": [(0.03, 0.25)],
    "eye": [(0.15, 0.4)],
    "tumour": [(0.5, 0.95)],
    "rim": [(0.85, 1.15)],
    "core": [(0.2, 0.6)],
}
T1CE: Ranges = {**T1, "rim": [(1.6, 3.5)]}
"""After contrast, of an enhancing tumour: the rim around its core is bright."""
T2: Ranges = {
    "grey": [(1.15, 1.6)],
    "nuclei": [(0.2, 1.2)],
    "cerebellum": [(-0.15, 0.15)],
    "csf": [(2.0, 3.4)],
    "gliosis": [(0.2, 0.8)],
    "fat": [(1.0, 2.6)],
    "muscle": [(0.25, 0.6)],
    "gland": [(0.6, 2.4)],
    "bone": [(0.03, 0.3)],
    "eye": [(2.0, 3.2)],
    "tumour": [(1.4, 2.6)],
    "rim": [(0.6, 1.0)],
    "core": [(1.6, 3.2)],
}
RANGES = {"flair": FLAIR, "t1": T1, "t1ce": T1CE, "t2": T2}
PATCH: Ranges = {
    "flair": [(1.05, 1.35)] * 4 + [(0.4, 1.05)] + [(1.3, 2.4)] * 4,
    "t1": [(0.45, 1.0)],
    "t1ce": [(0.45, 1.0)] * 4 + [(1.0, 1.8)],
    "t2": [(1.1, 2.8)],
}
"""Parts of a tumour that are brighter or darker than the rest, by sequence."""


def draw_levels(ranges: Ranges, rng: np.random.Generator) -> dict[str, float]:
    """A level for each tissue of ``ranges``."""
    return {tissue: draw_level(spans, rng) for tissue, spans in ranges.items()}


def draw_level(spans: Sequence[tuple[float, float]], rng: np.random.Generator) -> float:
    return float(rng.uniform(*spans[int(rng.integers(len(spans)))]))
