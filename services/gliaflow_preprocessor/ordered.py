"""A volume's voxels in ascending order, without sorting them: a few percentiles of nine million voxels cost one count.

Voxels are counted by 16 bits: those of a short integer are its value, and the upper ones of a float32 stand for a range
of values. Such a range is counted by its lower 16 bits once a voxel in it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
Values = NDArray[np.float32]
At = Callable[[Ranks], Values]
"""Gives the numbers with some ranks, of numbers in ascending order; the lowest has rank 0."""

BLOCK = 2**18  # voxels that are counted at a time, so that they stay in the processor's cache


class Ordered:
    """The voxels of a volume by rank, as float32.

    Parameters
    ----------
    volume: finite numbers in any shape: integers of 8 or 16 bits, float16 or float32, in the machine's byte order.
    """

    def __init__(self, volume: NDArray[Any]) -> None:
        self.size = volume.size
        self._bits = volume.ravel(order="K").view(f"u{volume.itemsize}")
        self._is_float = volume.dtype == np.float32
        self._ranges: dict[int, tuple[Values, Ranks]] = {}
        self._upper = self._bits
        if self._is_float:
            self._upper = np.empty(self.size, np.uint16)
            for block in self._blocks():
                np.right_shift(self._bits[block], 16, out=self._upper[block], casting="unsafe")
        counts = _count(self._upper[block] for block in self._blocks())
        keys = np.flatnonzero(counts)
        if self._is_float:  # a negative number with more bits is lower
            bits = keys.astype(np.uint32) << 16 | np.where(keys < 2**15, 0, 2**16 - 1).astype(np.uint32)
            lowest = bits.view(np.float32)
        else:
            lowest = keys.astype(self._bits.dtype).view(volume.dtype).astype(np.float32)
        order = lowest.argsort()
        self._lowest, self._keys, self._counts = lowest[order], keys[order], counts[keys[order]]  # of each range
        self._before = self._counts.cumsum() - self._counts

    def __call__(self, ranks: Ranks) -> Values:
        """The voxels with these ranks."""
        found = []
        for rank in ranks:
            number = int(np.searchsorted(self._before, rank, "right")) - 1
            values, upto = self._inside(number)
            found.append(values[np.searchsorted(upto, rank - self._before[number], "right")])
        return np.array(found, np.float32)

    def count(self, where: Callable[[Values], NDArray[np.bool_]]) -> int:
        """How many voxels satisfy a condition. If a value satisfies it, all lower values must, too."""
        number = int(np.count_nonzero(where(self._lowest))) - 1
        if number < 0:
            return 0
        values, upto = self._inside(number)
        inside = int(np.count_nonzero(where(values)))
        return int(self._before[number] + (upto[inside - 1] if inside else 0))

    def without(self, start: int, stop: int) -> At:
        """The voxels by rank, without those with a rank from ``start`` to ``stop``."""
        return lambda ranks: self(ranks + (stop - start) * (ranks >= start))

    def _inside(self, number: int) -> tuple[Values, Ranks]:
        """The ascending values in a range, and how many of its voxels are up to each of them."""
        if number not in self._ranges:
            self._ranges[number] = self._count_range(number)
        return self._ranges[number]

    def _count_range(self, number: int) -> tuple[Values, Ranks]:
        if not self._is_float:
            return self._lowest[number, None], self._counts[number, None]
        key = int(self._keys[number])
        first = self._bits[np.argmax(self._upper == key), None]
        if sum(np.count_nonzero(self._bits[block] == first) for block in self._blocks()) == self._counts[number]:
            return first.view(np.float32), self._counts[number, None]  # often, of a background
        counts = _count(self._bits[block][self._upper[block] == key] & (2**16 - 1) for block in self._blocks())
        lower = np.flatnonzero(counts)[:: 1 if key < 2**15 else -1]
        return (lower.astype(np.uint32) | np.uint32(key << 16)).view(np.float32), counts[lower].cumsum()

    def _blocks(self) -> Iterator[slice]:
        return (slice(start, start + BLOCK) for start in range(0, self.size, BLOCK))


def with_copies(at: At, value: np.float32, rank: int, copies: int) -> At:
    """The numbers of ``at`` and ``copies`` of a value, of which the first has this rank."""

    def find(ranks: Ranks) -> Values:
        is_copy = (ranks >= rank) & (ranks < rank + copies)
        return np.where(is_copy, value, at(np.where(is_copy, 0, ranks - copies * (ranks >= rank))))

    return find


def percentiles(at: At, size: int, shares: Sequence[float]) -> NDArray[np.float64]:
    """The percentiles of ``size`` numbers, exactly those of ``numpy.percentile``."""
    place = np.asarray(shares) / 100 * (size - 1)
    rank = np.floor(place).astype(np.int64)
    low, high = at(rank), at(np.minimum(rank + 1, size - 1))
    share, gap = place - rank, high - low
    return np.where(share < 0.5, low + gap * share, high - gap * (1 - share))


def _count(blocks: Iterator[NDArray[Any]]) -> Ranks:
    """How many numbers of all blocks have each value from 0 to 2¹⁶ - 1."""
    counts = np.zeros(2**16, np.int64)
    for block in blocks:
        some = np.bincount(block)
        counts[: len(some)] += some
    return counts
