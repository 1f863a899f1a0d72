"""What speaks against a series: problems, for which it is refused, and doubts, for which it gets a warning."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from gliaflow_plugins.dicom.geometry import arrange, listed
from gliaflow_plugins.dicom.images import DicomImage, DicomSlice
from gliaflow_plugins.nifti_bytes import check_size

ECHO_SPREAD = 1.1  # the longest echo time of a volume, relative to the shortest


def arranged(images: Sequence[DicomImage], slices: Sequence[DicomSlice]) -> tuple[tuple[DicomSlice, ...], str]:
    """The slices in order, and why they make no volume (empty: they do). ``images``: of the whole series."""
    problem = _damaged(images) or _two_of(images) or _unplaced(images) or _incomplete(images) or _two_echoes(slices)
    if not slices:
        return (), problem
    ordered, irregular = arrange(slices)
    if problem or irregular:
        return ordered, problem or irregular
    try:
        rows, columns = ordered[0].shape
        check_size((columns, rows, len(ordered)))
    except ValueError as error:
        return ordered, str(error)
    return ordered, ""


def warnings_of(images: Sequence[DicomImage]) -> list[str]:
    """Doubts about the images of a series."""
    warnings = []
    names = image_names(images)
    if lossy := [names[image.path] for image in images if image.lossy]:
        warnings.append(f"lossy compression: {listed(lossy)} do not have the scanner's own values")
    if derived := [image for image in images if image.image_type[0] == "DERIVED"]:
        warnings.append(f"ImageType of {names[derived[0].path]} is DERIVED: made from other images (a reformat, say)")
    if hole := _hole(images):
        warnings.append(hole)
    counts = {image.in_acquisition for image in images if image.in_acquisition}
    if len(counts) == 1 and (count := counts.pop()) > sum(len(image.slices) for image in images):
        warnings.append(f"ImagesInAcquisition is {count}, but there are {len(images)} images: slices may be missing")
    return warnings


def image_names(images: Sequence[DicomImage]) -> dict[Path, str]:
    """The name of each file in messages, by its path."""
    paths = [image.path for image in images]
    count = Counter(path.name for path in paths)
    return {path: f"{path.parent.name}/{path.name}" if count[path.name] > 1 else path.name for path in paths}


def _damaged(images: Sequence[DicomImage]) -> str:
    names = image_names(images)
    files: dict[str, list[str]] = defaultdict(list)
    for image in images:
        if image.problem:
            files[image.problem].append(names[image.path])
    return "; ".join(f"{listed(group)}: {problem}" for problem, group in files.items())


def _two_of(images: Sequence[DicomImage]) -> str:
    """Two patients in a series, or two images with one identifier."""
    names = image_names(images)
    seen: dict[str, DicomImage] = {}
    for image in images:
        if image.patient != images[0].patient:
            return (
                f"{names[images[0].path]} and {names[image.path]} have different PatientIDs in one series; "
                "keep the images of one patient"
            )
        if other := seen.get(image.sop_uid):
            return f"{names[other.path]} and {names[image.path]} have one SOPInstanceUID but differ; keep the right one"
        seen[image.sop_uid] = image
    return ""


def _unplaced(images: Sequence[DicomImage]) -> str:
    names = image_names(images)
    if without := [names[image.path] for image in images if not image.frame_of_reference]:
        return (
            f"FrameOfReferenceUID is missing in {listed(without)}, so the positions belong to no frame of reference; "
            "export the series again from the archive"
        )
    first = images[0]
    if others := [names[image.path] for image in images if image.frame_of_reference != first.frame_of_reference]:
        return (
            f"FrameOfReferenceUID: {listed(others)} and {names[first.path]} differ: the patient was moved between them;"
            " keep the images of one"
        )
    return ""


def _incomplete(images: Sequence[DicomImage]) -> str:
    """The missing parts of a concatenation, which is one image in several files."""
    parts: dict[str, set[int]] = defaultdict(set)
    totals: dict[str, int] = {}
    for image in images:
        if image.part:
            uid, number, total = image.part
            parts[uid].add(number)
            totals[uid] = max(total, totals.get(uid, 0), number)
    for uid, numbers in parts.items():
        missing = totals[uid] - len(numbers)
        if missing > 0:
            first = next(image for image in images if image.part and image.part[0] == uid)
            return f"{missing} of {totals[uid]} files of a concatenation are missing beside {first.path.name}; add them"
    return ""


def _two_echoes(slices: Sequence[DicomSlice]) -> str:
    """Slices of different echoes, which differ in contrast, at different places. Small differences are usual."""
    files: dict[float, list[str]] = defaultdict(list)
    for each in slices:
        if each.echo_ms:
            files[each.echo_ms].append(each.path.name)
    if not files or max(files) <= ECHO_SPREAD * min(files):
        return ""
    listing = "; ".join(f"{echo:g} ms in {listed(list(dict.fromkeys(files[echo])))}" for echo in sorted(files)[:4])
    return f"EchoTime differs between slices: {listing}; keep the images of one echo"


def _hole(images: Sequence[DicomImage]) -> str:
    """The first hole in the instance numbers."""
    names = image_names(images)
    numbered = sorted(
        (each.instance, names[image.path])
        for image in images
        for each in image.slices[:1]
        if each.instance is not None and len(image.slices) == 1
    )
    steps = [(b[0] - a[0], a, b) for a, b in pairwise(numbered)]
    usual = min((step for step, _, _ in steps if step), default=1)
    for step, (before, first), (after, second) in steps:
        if step > usual:
            return f"InstanceNumber jumps from {before} to {after} between {first} and {second}: images may be missing"
    return ""
