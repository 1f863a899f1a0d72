"""The parts of a scan that have come, while others are still to come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from gliaflow_proto import MAX_MESSAGE_BYTES, GradedMessage, ProtocolError, Scan, decode, expect
from gliaflow_proto.geometry import MAX_VOXELS
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import OtherBundle

MAX_MASKS = MAX_VOXELS  # pixels of a scan's masks: at the end, all that have tumour are in memory, several times
MAX_LOGIT = 1e6
TEXT_BYTES = 2**20  # room for what a part has besides tensors: its warnings are the most, 32 of 4,096 characters


@dataclass
class Gathering:
    """A scan that waits for its other parts.

    Deliveries are kept compressed, since thousands may be open, and decoded again at the end.
    """

    scan: Scan
    count: int
    frame: tuple[object, ...]  # what all its parts must have in common
    since: float  # when the last part came, by the assembler's clock
    parts: dict[int, Delivery] = field(default_factory=dict)
    slices: dict[int, int] = field(default_factory=dict)  # the part of each slice
    with_tumour: set[int] = field(default_factory=set)  # the parts that have some
    bytes: int = 0  # of the deliveries

    @classmethod
    def of(cls, part: GradedMessage, now: float) -> Gathering:
        """An empty one for the scan of this part."""
        return cls(part.scan, part.part[1], _frame(part), now)

    def check(self, part: GradedMessage) -> None:
        """Raise ProtocolError if a part does not belong to the other parts, or makes the scan too large."""
        if self.frame != _frame(part):
            raise ProtocolError("geometry, part: differ from those of other parts of this scan")
        if any(self.slices.get(z, part.part[0]) != part.part[0] for z in part.geometry.slices):
            raise ProtocolError("geometry.slices: another part of this scan has one of them too")
        total = len(self.slices.keys() | set(part.geometry.slices)) * math.prod(part.geometry.size)
        if total > MAX_MASKS:
            raise ProtocolError(f"geometry.slices: the masks of this scan have over {MAX_MASKS} pixels")

    def add(self, part: GradedMessage, delivery: Delivery, now: float) -> list[Delivery]:
        """Take a part; returns its earlier copy, if there is one."""
        copy = self.parts.get(part.part[0])
        self.parts[part.part[0]] = delivery
        self.bytes += len(delivery.body) - (len(copy.body) if copy else 0)
        self.slices |= dict.fromkeys(part.geometry.slices, part.part[0])
        (self.with_tumour.add if part.mask.any() else self.with_tumour.discard)(part.part[0])
        self.since = now
        return [copy] if copy else []

    @property
    def attempt(self) -> int:
        return self.scan.attempt

    @property
    def held(self) -> list[Delivery]:
        return list(self.parts.values())

    @property
    def missing(self) -> list[int]:
        return [index for index in range(self.count) if index not in self.parts]

    def graded(self) -> Iterator[GradedMessage]:
        """The parts in order, decoded one by one. One without tumour has masks of one pixel, and no logits."""
        for index in sorted(self.parts):
            part = expect(decode(self.parts[index].body, contents=index in self.with_tumour), GradedMessage)
            yield part if index in self.with_tumour else replace(part, mask=part.mask[:, :1, :1])


class PartOfBundle:
    """What each part must be by itself."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._size = bundle.id, tuple(bundle.manifest.input.size)
        self._slices = bundle.slices_per_part(MAX_MESSAGE_BYTES)
        self._bytes = self._slices * (math.prod(self._size) + 8) + TEXT_BYTES

    def check(self, part: GradedMessage, size: int, stage: str) -> None:
        """Check a part by itself. ``size``: of its message, in bytes.

        Raises
        ------
        OtherBundle: it is graded with another bundle. Its answer would be a mixture of both.
        ProtocolError: it does not have the tensors of a part of this bundle, or it is too large to be kept.
        """
        if part.bundle != self._bundle:
            raise OtherBundle("grades", part.bundle, stage, self._bundle)
        slices = len(part.geometry.slices)
        if slices > self._slices or tuple(part.geometry.size) != self._size:
            raise ProtocolError(
                f"geometry.slices, geometry.size: {slices} of {part.geometry.size}, but a part of this bundle has at "
                f"most {self._slices} of {list(self._size)}"
            )
        if size > self._bytes:
            raise ProtocolError(f"a message of {size} bytes is over the limit of {self._bytes} on a graded part")
        if part.logit.shape != (slices,) or part.mask.shape != (slices, *part.geometry.size):
            raise ProtocolError(f"tensors: {part.logit.shape} logits and {part.mask.shape} masks for {slices} slices")
        if not (np.abs(part.logit) <= MAX_LOGIT).all():  # also if it is NaN
            raise ProtocolError(f"tensors.logit: not finite, or beyond ±{MAX_LOGIT:g}")
        if part.mask.max(initial=0) > 1:
            raise ProtocolError("tensors.mask: expected 0 and 1")


def _frame(part: GradedMessage) -> tuple[object, ...]:
    """The number of parts and the grids, which are the same in all parts of a scan."""
    g = part.geometry
    return part.part[1], *g.affine, *g.shape, *g.orientation, *g.origin, *g.step
