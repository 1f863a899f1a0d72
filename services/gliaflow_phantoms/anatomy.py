"""The head of a phantom patient without a tumour: where each tissue is.

The brain is the average one of ``atlas``, bent at three scales, with wider or narrower sulci and ventricles. What is
outside it is drawn with simple shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.spatial.transform import Rotation

from gliaflow_phantoms.atlas import atlas
from gliaflow_phantoms.sequences import Levels
from gliaflow_phantoms.shapes import Coordinates, Field, Grid, capsule, ellipsoid, inside, mix, smooth_min


@dataclass(frozen=True)
class Brain:
    """The tissues of each voxel.

    ``grey`` is a share of the tissue; ``nuclei`` and ``cerebellum`` say how much of it is deep, and in the cerebellum.
    ``fluid`` is a share of the voxel. ``gliosis`` is added brightness, perhaps below 0. ``texture`` changes the
    brightness of all, and ``flow`` that of the fluid.
    """

    grey: Field
    nuclei: Field
    cerebellum: Field
    gliosis: Field
    fluid: Field
    texture: Field
    flow: Field

    def paint(self, levels: Levels) -> Field:
        """The brightness of brain and CSF. White matter is about 1."""
        contrast = levels["grey"] - 1
        grey = np.float32(1 + contrast) + np.float32(contrast * (levels["nuclei"] - 1)) * self.nuclei
        tissue = 1 + self.grey * (grey - 1) + np.float32(levels["gliosis"]) * self.gliosis
        tissue *= 1 + np.float32(levels["cerebellum"]) * self.cerebellum + self.texture
        return mix(tissue, np.float32(levels["csf"]) * self.flow * (1 + 3 * self.texture), self.fluid)


class Head:
    """The place of each tissue. ``p``: the voxels in the head's own coordinates (mm, RAS), bent and tilted.

    ``brain``, ``ventricle`` and ``cerebellum`` are signed distances in mm, negative inside; ``white`` and ``csf`` are
    shares of a voxel.
    """

    def __init__(self, grid: Grid, rng: np.random.Generator) -> None:
        self.grid, self.rng = grid, rng
        size = rng.normal(1, 0.05, 3).clip(0.87, 1.13)
        tilt = Rotation.from_euler("xyz", rng.normal(0, [8, 4, 6]).clip(-18, 18), degrees=True).as_matrix()
        x, y, z = (
            a - s for a, s in zip(np.meshgrid(*grid.axes, indexing="ij", sparse=True), rng.normal(0, 3, 3), strict=True)
        )
        bends = [(45.0, rng.uniform(0.5, 3.5)), (18.0, rng.uniform(0.5, 2.2)), (9.0, rng.uniform(0.0, 1.0))]
        bent = []
        for row in tilt / size[:, None]:
            along = (row[0] * x + row[1] * y + row[2] * z).astype(np.float32)
            bent.append(along + sum(np.float32(by) * grid.field(spacing, rng) for spacing, by in bends))
        self.p: Coordinates = (bent[0], bent[1], bent[2])
        self.brain, skull, self.ventricle, self.white, self.csf = atlas().at(
            self.p, "brain", "skull", "ventricle", "white", "csf"
        )
        self.intracranial = skull - np.float32(rng.uniform(0, 4))
        m = (np.abs(self.p[0]), *self.p[1:])
        self.cerebellum = np.minimum(
            ellipsoid(m, (21, -50, -38), (35, 34, 27)), capsule(self.p, (0, -14, -12), (0, -28, -95), 16)
        )
        self.texture = grid.field(rng.uniform(3, 7), rng)
        self.fine = grid.field(3, rng)

    def brain_at(self, p: Coordinates, swelling: Field) -> Brain:
        """The brain at points ``p``, which a tumour has pushed aside. ``swelling`` (0–1) closes the sulci."""
        rng, grid = self.rng, self.grid
        grey, white, csf, ventricles, brain = atlas().at(p, "grey", "white", "csf", "ventricle", "brain")
        # The average of many brains is blurred. A power sharpens it.
        power = np.float32(rng.uniform(1, 3))
        sulci = np.exp(np.float32(rng.uniform(-0.3, 1.5)) + np.float32(0.5) * grid.field(25, rng))
        grey, white, csf = (np.maximum(share, 1e-4) ** power for share in (grey, white, csf * sulci))
        fluid = csf / (grey + white + csf)
        m = (np.abs(p[0]), *p[1:])
        nuclei = np.minimum(ellipsoid(m, (22, 4, 0), (14, 24, 15)), ellipsoid(m, (11, -16, 3), (11, 15, 11)))
        ventricles = ventricles - np.float32(rng.uniform(-1.5, 3))
        # Bright on FLAIR without being tumour: caps and bands along the ventricles, a few spots in the white matter;
        # and, broad, faint and symmetric, the white matter behind the trigones, the insulae, the septum, the cingulate
        # gyri, the amygdalae.
        gliosis = np.zeros(brain.shape, np.float32)
        if rng.random() < 0.75:
            caps = np.exp(-(((m[0] - 12) / 9) ** 2) - ((np.abs(p[1] + 6) - 42) / 9) ** 2)
            fade = np.exp(-np.maximum(ventricles, 0) / np.float32(rng.uniform(1.5, 5)))
            gliosis += (caps + np.float32(rng.uniform(0, 0.6))) * fade
        if rng.random() < 0.4:
            spots = grid.field(rng.uniform(5, 9), rng) > rng.uniform(2.4, 3.2)
            gliosis += np.float32(rng.uniform(0.4, 1)) * (spots & (white > grey))
        behind = np.exp(-(((m[0] - 26) / 10) ** 2) - ((p[1] + 38) / 18) ** 2 - ((p[2] - 14) / 14) ** 2)
        insula = np.exp(-(((m[0] - 40) / 4) ** 2) - ((p[1] - 2) / 16) ** 2 - ((p[2] - 4) / 12) ** 2)
        septum = np.exp(-((m[0] / 3) ** 2) - ((p[1] + 4) / 30) ** 2 - ((p[2] - 15) / 9) ** 2)
        cingulate = np.exp(-((m[0] / 9) ** 2) - ((p[1] - 40) / 16) ** 2 - ((p[2] - 18) / 22) ** 2)
        amygdala = np.exp(-(((m[0] - 23) / 9) ** 2) - ((p[1] - 8) / 16) ** 2 - ((p[2] + 22) / 9) ** 2)
        for place in (behind, insula, septum, cingulate, amygdala):
            gliosis += np.float32(rng.uniform(-0.2, 0.6)) * place
        texture = np.float32(rng.uniform(0.01, 0.06)) * self.texture + np.float32(rng.uniform(0, 0.05)) * self.fine
        texture += np.float32(rng.uniform(0, 0.05)) * grid.field(30, rng)
        return Brain(
            grey=np.asarray(grey / (grey + white), np.float32),
            nuclei=inside(nuclei, 4),
            cerebellum=inside(self.cerebellum, 4),
            gliosis=gliosis,
            fluid=reduce(np.maximum, [fluid * (1 - swelling), inside(ventricles, 1), 1 - inside(brain, 1)]),
            texture=texture,
            flow=1 + np.float32(rng.uniform(0, 1)) * np.maximum(grid.field(25, rng), 0),
        )

    def outside(self) -> dict[str, Field]:
        """Skull, scalp, face and neck: the share of each tissue in each voxel, the rest being air."""
        rng, grid, p = self.rng, self.grid, self.p
        skull = np.float32(rng.uniform(3, 8)) + np.float32(rng.uniform(0.5, 1.5)) * grid.field(40, rng)
        scalp = np.maximum(np.float32(rng.uniform(3, 9)) + np.float32(rng.uniform(0.5, 2.5)) * grid.field(35, rng), 1.5)
        # Towards the vertex, a thick slice cuts scalp and skull lengthwise. They merge into a broad grey or white ring,
        # which must not be mistaken for a tumour.
        vertex = np.float32(rng.uniform(0, 1)) * ((p[2] - 42) / 35).clip(0, 1)
        scalp = scalp * (1 + np.float32(rng.uniform(0, 1.5)) * vertex)
        m = (np.abs(p[0]), *p[1:])
        face = smooth_min(ellipsoid(p, (0, 34, -66), (60, 58, 72)), ellipsoid(p, (0, 92, -66), (15, 20, 26)), 10)
        neck = capsule(p, (0, -22, -60), (0, -30, -170), rng.uniform(48, 62))
        bone = self.intracranial - skull
        head = smooth_min(smooth_min(bone - scalp, face, 10), neck, 15)
        fade = 1 - np.float32(rng.uniform(0, 0.75)) * ((p[2] - 30) / 45).clip(0, 1)  # far from the coil
        clump = grid.field(rng.uniform(9, 16), rng) + np.float32(0.5) * grid.field(6, rng)
        fat, hard = (clump > 0.5).astype(np.float32), (clump < -0.9).astype(np.float32)  # hard: bone, air cells, teeth
        gland = inside(np.float32(rng.uniform(0.3, 1.8)) - grid.field(rng.uniform(12, 30), rng), 0.5)
        skin = head > -scalp
        fat[skin], hard[skin] = (fade * (1 + np.float32(0.1) * grid.field(14, rng)))[skin], 0
        socket = ellipsoid(m, (33, 70, -34), (20, 22, 18)) < 0
        fat[socket], hard[socket] = float(rng.uniform(0.6, 1.3)), 0
        sinus = np.minimum(ellipsoid(m, (12, 62, -58), (16, 26, 26)), ellipsoid(p, (0, 78, -12), (20, 9, 14)))
        empty = (sinus < 0) & (clump > -0.8)
        fat[empty], hard[empty] = 0, 0.3
        marrow = np.float32(rng.uniform(0.1, 1.2)) * inside(np.abs(bone + skull / 2) - skull / 5, 1)
        table = inside(bone, 1)
        fat, hard = mix(fat, mix(marrow, fade, vertex), table), mix(hard, (1 - marrow.clip(0, 1)) * (1 - vertex), table)
        eye = inside(ellipsoid(m, (33, 76, -34), (12, 12.5, 12)), 1) * (1 - table)
        soft = (1 - fat - hard).clip(0, 1) * (1 - table)
        soft[skin | socket | empty] = 0
        within = inside(head, 1)
        shares = {
            "fat": fat * (1 - eye),
            "bone": hard * (1 - eye),
            "muscle": soft * (1 - gland) * (1 - eye),
            "gland": soft * gland * (1 - eye),
            "eye": eye,
        }
        return {tissue: share * within for tissue, share in shares.items()}
