"""Which scans the store removes to make room for others: the oldest of those that have ended."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gliaflow_console.stored_scan import StoredScan
from gliaflow_console.uploads import Upload

DISK_FULL = "the disk of the console's folder is full: make room on that disk, or delete scans here"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # of an OSError


class StoreFull(Exception):
    """There is no room for an upload. The text gives the reason and the remedy."""


def over_count(scans: Sequence[StoredScan], most: int, *, own: int = 0, others: int = 0) -> list[str]:
    """The ids of the scans to remove so that so many more fit: ``own`` ones, and ``others`` of other clients.

    The kind with more scans loses its oldest. So each kind keeps at least half of the places, if it needs them.
    Scans in work stay.

    Parameters
    ----------
    scans: all scans, the oldest first.
    most: how many may be kept.

    Raises
    ------
    StoreFull: there is no place for the own ones.
    """
    excess = len(scans) + own + others - most
    if excess <= 0:
        return []
    ended = {kind: [scan.id for scan in scans if scan.ended and scan.own == kind] for kind in (True, False)}
    if own > most:
        raise StoreFull(
            f"{own} scans are more than the {most} that the console keeps: upload fewer at once, or raise "
            "GLIAFLOW_CONSOLE_SCANS"
        )
    if own and excess > len(ended[True]) + len(ended[False]):
        raise StoreFull(
            f"the console keeps at most {most} scans, and with {own} more, too many wait for an answer: wait, "
            "upload fewer at once, or raise GLIAFLOW_CONSOLE_SCANS"
        )
    count = {True: own, False: others}
    for scan in scans:
        count[scan.own] += 1
    removed: list[str] = []
    while len(removed) < excess and (ended[True] or ended[False]):
        kind = bool(ended[True]) and (not ended[False] or count[True] > count[False])
        removed.append(ended[kind].pop(0))
        count[kind] -= 1
    return removed


@dataclass(frozen=True)
class Room:
    """The bytes that the store would have, how many of them belong to the upload that grows, and the bounds.

    ``gib``: how many GiB may be kept. ``free``: the bytes that the disk would still have; negative: it lacks some.
    """

    size: int
    upload: int
    gib: float
    free: int


def over_size(scans: Sequence[StoredScan], uploads: Mapping[str, Upload], room: Room) -> list[str]:
    """The ids of the scans to remove so that there is room.

    An upload's files are deleted with the last of its scans, so only uploads of which all scans have ended are removed.

    Parameters
    ----------
    scans: all scans, the oldest first.
    uploads: those of the own scans, by id.

    Raises
    ------
    StoreFull: not so many bytes can be freed.
    """
    most = int(room.gib * 2**30)
    excess, lacking = room.size - most, -room.free
    by_upload: dict[Upload, list[StoredScan]] = {}
    for scan in scans:
        if scan.id in uploads:
            by_upload.setdefault(uploads[scan.id], []).append(scan)
    removed: list[str] = []
    for upload, its_scans in by_upload.items():
        if max(excess, lacking) > 0 and all(scan.ended for scan in its_scans):
            excess, lacking = excess - upload.size, lacking - upload.size
            removed += [scan.id for scan in its_scans]
    bound = f"the console keeps at most {room.gib:g} GiB of scans"
    if room.upload > most:
        raise StoreFull(f"{bound}, this upload is larger: upload fewer files at once, or raise GLIAFLOW_CONSOLE_GIB")
    if excess > 0:
        raise StoreFull(
            f"{bound}, and scans in work and other uploads need the room: wait until they are answered, delete some, "
            "or raise GLIAFLOW_CONSOLE_GIB"
        )
    if lacking > 0:
        raise StoreFull(DISK_FULL)
    return removed
