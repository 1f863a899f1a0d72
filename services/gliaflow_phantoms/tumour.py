"""The glioma of a phantom patient: where it has grown, and how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from gliaflow_proto import CLASSES
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from gliaflow_phantoms.anatomy import Head
from gliaflow_phantoms.sequences import Levels
from gliaflow_phantoms.shapes import Coordinates, Field, along_axes, inside, mix

AMBIGUOUS = 0.15  # share of patients whose looks do not depend on their grade
MEDIAN_ML, SPREAD = 90.0, 0.9  # log-normal volume, the same for both grades
TEMPORAL = 0.25  # so many tumours more are in a temporal lobe than its volume gives
FAR = np.float32(9)  # a level that no tumour reaches
COARSE_MM = 3.0  # the growth is computed on every so many mm
WALL = 8.0  # the front takes so much longer through what is no brain


class Tumour:
    """Volume and place do not depend on the grade. It decides the aggressiveness, and that the looks.

    An aggressive tumour has a rougher outline, pushes more, is less uniform, and has more often a core with a rim.

    ``labels`` uint8 (BraTS: 1 core, 2 oedema or uniform tumour, 4 rim). ``enhancing``: contrast medium shows a rim.
    """

    rim: Field
    core: Field

    def __init__(self, head: Head, grade: str, rng: np.random.Generator) -> None:
        self.head, self.rng, grid = head, rng, head.grid
        volume = float(np.exp(np.clip(rng.normal(np.log(MEDIAN_ML), SPREAD), np.log(6), np.log(350))))
        self.radius = float((volume * 3000 / (4 * np.pi)) ** (1 / 3))
        if rng.random() < AMBIGUOUS:
            a = float(rng.beta(3, 3))
        else:
            a = float(rng.beta(12, 2) if grade == CLASSES[0] else rng.beta(2, 12))
        centre = _place(head, self.radius, rng)
        self.offset = np.meshgrid(
            *(x - np.float32(c) for x, c in zip(grid.axes, centre, strict=True)), indexing="ij", sparse=True
        )
        rho = _grown(head, centre, rng) / np.float32(self.radius)
        for spacing, roughness in [
            (max(14, self.radius * 0.8), 0.06 + 0.06 * a),
            (9, rng.uniform(0.03, 0.12) + 0.08 * a),
            (5, rng.uniform(0.02, 0.08)),
        ]:
            rho += np.float32(roughness) * grid.field(spacing, rng)
        rho[(head.brain > -0.5) | (head.cerebellum < 1) | (head.ventricle < 0.5)] = FAR
        voxels = max(8, int(volume / grid.voxel_ml))
        level = np.float32(min(np.partition(rho.ravel(), voxels)[voxels], 4))
        self.distance = (rho - level) * np.float32(self.radius)  # mm, about
        self.push = (1 + rng.uniform(0, 3) + 5 * a) * min(1.0, self.radius / 20)
        self.swelling = inside((rho - np.float32(1.1)) * np.float32(self.radius), 8) * np.float32(0.3 + 0.6 * a)
        self._draw(a)

    def displaced(self, p: Coordinates) -> Coordinates:
        """Mass effect: anatomy is sampled nearer to the tumour's centre, so that it appears pushed away."""
        x, y, z = self.offset
        r2 = x**2 + y**2 + z**2
        factor = np.float32(self.push) * np.exp(-r2 / np.float32(2 * (1.3 * self.radius) ** 2)) / np.sqrt(r2 + 25)
        return p[0] - factor * x, p[1] - factor * y, p[2] - factor * z

    def paint(self, image: Field, levels: Levels, patches: Sequence[float]) -> Field:
        """The tumour in ``image``, which ``levels`` painted. ``patches``: the level of each of its patches."""
        lesion = np.float32(levels["tumour"]) * self.texture
        for share, level in zip(self.patches, patches, strict=True):
            lesion = mix(lesion, np.float32(level), share)
        for share, level in ((self.rim, levels["tumour"] * levels["rim"]), (self.core, levels["core"])):
            lesion = mix(lesion, np.float32(level) * (1 + np.float32(0.1) * self.pattern), share)
        # What is below shows through: gyri, and the fluid in the sulci.
        smooth = ndimage.gaussian_filter(image, [5 / side for side in self.head.grid.spacing])
        lesion *= (image / np.maximum(smooth, 0.2)).clip(0.4, 1.6) ** self.through[0]
        fluid = np.abs(image / np.float32(levels["csf"]) - 1) < 0.5
        return mix(image, np.where(fluid, mix(image, lesion, self.through[1]), lesion), self.alpha)

    def _draw(self, a: float) -> None:
        """The parts of a tumour of aggressiveness ``a``, each as its share of a voxel: patches, rim and core."""
        rng, grid, radius = self.rng, self.head.grid, np.float32(self.radius)
        mask = self.distance < 0
        self.alpha = inside(self.distance - np.float32(rng.uniform(0, 0.7)), 0.8 + (3.5 - 3 * a) * rng.uniform())
        self.pattern = grid.field(rng.uniform(5, 14), rng) + np.float32(0.5) * self.head.fine
        self.texture = 1 + np.float32(0.03 + rng.uniform(0, 0.03) + 0.2 * a * rng.uniform(0.6, 1.2)) * self.pattern
        self.through = np.float32(rng.uniform(0.2, 1.0)), np.float32(rng.uniform(0.3, 0.95))
        # Parts are as bright as the brain, or darker or brighter than the rest, or fade to the edge: most in aggressive
        # tumours.
        self.patches = []
        for _ in range(int(rng.binomial(4, 0.1 + 0.6 * a))):
            bump = grid.field(max(9, self.radius * rng.uniform(0.4, 1)), rng) - np.float32(rng.uniform(0.3, 1.3))
            self.patches.append(inside(-8 * bump, rng.uniform(2, 10)))
        if rng.random() < 0.15:
            edge = np.clip(1 + self.distance / np.float32(rng.uniform(0.2, 0.6) * self.radius), 0, 1)
            self.patches.append(edge * np.float32(rng.uniform(0.3, 1)))
        self.labels = np.where(mask, 2, 0).astype(np.uint8)
        self.rim = self.core = np.zeros((1, 1, 1), np.float32)
        # The core is off the middle and has a ragged outline. Most aggressive tumours have a dark core inside a thick
        # rim; a few slow ones have a smooth cyst.
        self.enhancing = bool(rng.random() < 1 / (1 + np.exp(-10 * (a - 0.5))))
        if self.enhancing or rng.random() < 0.08:
            x, y, z = (
                o - np.float32(c) for o, c in zip(self.offset, rng.normal(0, 0.25, 3) * self.radius, strict=True)
            )
            inner = np.sqrt(x**2 + y**2 + z**2) / radius
            inner += np.float32(0.7) * np.maximum(self.distance / radius + np.float32(0.3), 0)
            inner += np.float32(0.08 + 0.15 * a) * grid.field(max(8, self.radius * 0.5), rng)
            inner -= np.float32(np.cbrt(rng.uniform(0.25, 0.7) if self.enhancing else rng.uniform(0.1, 0.6)))
            thick = np.float32(rng.uniform(2.5, 7)) * (1 + np.float32(0.5) * self.pattern) if self.enhancing else 1
            self.rim = inside(inner * radius, 1.2) * mask
            self.core = inside(inner * radius + thick, 1.5 if self.enhancing else 3) * self.rim
            if self.enhancing:
                self.labels[mask & (self.rim > 0.5)] = 4
            self.labels[mask & (self.core > 0.5)] = 1


def _place(head: Head, radius: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A point of the grid (mm) deep enough in a hemisphere, and far enough from the ends of the scan."""
    z = head.grid.axes[2]
    depth = np.where((head.cerebellum > 4) & (head.ventricle > 2) & (np.abs(head.p[0]) > 6), -head.brain, 0)
    depth[:, :, (z < z[0] + 12) | (z > z[-1] - 12)] = 0
    least = min(0.5 * radius, rng.uniform(3, 14), 0.8 * float(depth.max()))
    fit = (depth > least) & (depth < max(rng.choice([18, 60]), least + 2))
    temporal = fit & (np.abs(head.p[0]) > 18) & (head.p[1] > -35) & (head.p[2] < 0)
    if rng.random() < TEMPORAL and temporal.any():
        fit = temporal
    i, j, k = np.unravel_index(int(rng.choice(np.flatnonzero(fit))), fit.shape)
    return float(head.grid.axes[0][i]), float(head.grid.axes[1][j]), float(z[k])


def _grown(head: Head, centre: tuple[float, float, float], rng: np.random.Generator) -> Field:
    """When a front that starts at ``centre`` reaches each voxel: in mm of a way through white matter.

    The front of a tumour that spreads and multiplies (Swanson et al. 2000) moves at a speed that depends on the tissue;
    so its arrival is a shortest path (Konukoglu et al. 2010). It is slower in grey matter, and hardly crosses fluid, or
    the midline except in the callosum.
    """
    grid = head.grid
    every = [max(1, round(COARSE_MM / side)) for side in grid.spacing]
    some = tuple(slice(None, None, step) for step in every)
    p = [axis[some] for axis in head.p]
    slow = 1 + np.float32(rng.uniform(0, 1.6)) * (1 - head.white[some])
    slow += np.float32(rng.uniform(1, 5)) * head.csf[some]
    slow *= np.exp(np.float32(rng.uniform(0.05, 0.35)) * grid.field(20, rng)[some])
    slow += np.float32(WALL) * ((head.ventricle[some] < 0.5) | (head.brain[some] > -0.5))
    callosum = (np.abs(p[1]) < 35) & (np.abs(p[2] - 22) < 8)
    slow += np.where(callosum, np.float32(rng.uniform(0, 3)), np.float32(WALL)) * (np.abs(p[0]) < 2.5)
    start = [int(np.argmin(np.abs(axis[::step] - c))) for axis, step, c in zip(grid.axes, every, centre, strict=True)]
    arrival = _arrival(
        slow, (start[0], start[1], start[2]), [e * side for e, side in zip(every, grid.spacing, strict=True)]
    )
    return along_axes(arrival, [np.arange(n) / step for n, step in zip(grid.shape, every, strict=True)])


def _arrival(slow: Field, start: tuple[int, int, int], sides: list[float]) -> Field:
    """The time of the quickest path from the voxel ``start`` to each voxel, over the 26 neighbours of each.

    Parameters
    ----------
    slow: the time for a mm, at each voxel.
    sides: of a voxel, mm.
    """
    number = np.arange(slow.size, dtype=np.int32).reshape(slow.shape)
    rows, columns, times = [], [], []
    for step in product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0):
            continue  # the graph is undirected: half of the neighbours
        here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(step, slow.shape, strict=True))
        there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(step, slow.shape, strict=True))
        mm = np.float32(np.linalg.norm(np.multiply(step, sides)))
        rows.append(number[here].ravel())
        columns.append(number[there].ravel())
        times.append(((slow[here] + slow[there]) * (mm / 2)).ravel())
    graph = csr_array((np.concatenate(times), (np.concatenate(rows), np.concatenate(columns))), (slow.size, slow.size))
    longest = 130.0
    time = dijkstra(graph, directed=False, indices=int(number[start]), limit=longest)
    return np.asarray(np.minimum(time, longest).reshape(slow.shape), np.float32)
