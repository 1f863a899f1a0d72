"""The headers of NRRD and MetaImage files. A header may name any file as the home of its voxels.

ITK would open that file, so it never reads a header of the sender: it reads a private copy, whose header has only the
fields that are known here, and whose voxels come from the file itself or from one file beside it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_plugins.regular_files import beside, open_regular

HEADER_BYTES = 2**20
FIELD_CHARACTERS = 4096
DATA = "data"  # the file of the voxels in the private copy
NRRD_END = re.compile(rb"\n\r?\n")
NRRD_FIELDS = re.compile(
    "axis(maxs|mins)|blocksize|centerings|centers|dimension|encoding|endian|kinds|measurementframe|sizes|"
    "space(|dimension|directions|origin)|spacings|thicknesses|type|(byte|line)skip"
)
NRRD_TEXT = re.compile("content|labels|(old)?(max|min)|number|(sample|space|)units")  # ITK does not need them
META_FIELDS = re.compile(
    "AnatomicalOrientation|BinaryData(ByteOrderMSB)?|CenterOfRotation|CompressedData|DimSize|DistanceUnits|"
    "Element(ByteOrderMSB|NumberOfChannels|Size|Spacing|ToIntensityFunction(Offset|Slope)|Type)|HeaderSize|NDims|"
    "Object(SubType|Type)|Offset|Orientation|Origin|Position|Rotation|TransformMatrix"
)
META_ORIENTED = ("TransformMatrix", "Orientation", "Rotation")
LAYERS = re.compile(r"Segment\d+_Layer:=[1-9]")


@dataclass(frozen=True)
class ItkHeader:
    """``lines``: the known fields. ``data``: the file of the voxels; empty: they are in the same file, from ``start``.

    ``oriented``: whether the header states the orientation.
    """

    lines: list[str]
    data: str
    start: int
    oriented: bool


def private_copy(path: Path, folder: Path) -> tuple[Path, bool]:
    """Copy the image into an empty folder for ITK. Returns the copy's header file, and whether it states orientation.

    Raises
    ------
    ValueError: the header is not valid, or names anything but one file beside it.
    FileNotFoundError: that file is missing.
    """
    nrrd = path.suffix.casefold() in (".nrrd", ".nhdr")
    with open_regular(path) as file:
        header = (_nrrd if nrrd else _meta)(file.read(HEADER_BYTES))
        if header.data:
            with _open_beside(path, header.data) as data:
                _copy(data, folder / DATA)
        else:
            file.seek(header.start)
            _copy(file, folder / DATA)
    copy = folder / ("copy.nhdr" if nrrd else "copy.mhd")
    copy.write_bytes(os.fsencode("\n".join(header.lines) + "\n"))
    return copy, header.oriented


def _nrrd(block: bytes) -> ItkHeader:
    end = NRRD_END.search(block)
    if end is None and len(block) == HEADER_BYTES:
        raise ValueError(f"its header has no end in the first {HEADER_BYTES} bytes")
    magic, *lines = os.fsdecode(block[: end.start()] if end else block).split("\n")
    if not re.fullmatch(r"NRRD\d{4}\r?", magic):
        raise ValueError("damaged or cut short, or not a NRRD file")
    data, fields = "", {}
    for line in lines:
        is_text = line.startswith("#") or ":=" in line.partition(": ")[0]  # a comment, or a key of the user
        if LAYERS.match(line):
            raise ValueError(
                "a segmentation of several layers (3D Slicer); export it as one label map (Export to files, .nii.gz)"
            )
        if is_text or not line.strip():
            continue
        name, _, value = (part.strip() for part in line.partition(":"))
        field = re.sub(r"[\s_-]", "", name).casefold()
        if NRRD_TEXT.fullmatch(field):
            continue
        if field == "datafile":
            if data:
                raise ValueError("its header names two data files")
            data = _plain_name(value)
        elif field in fields or not NRRD_FIELDS.fullmatch(field):
            raise ValueError(f"its header has the field {name[:40]!r}, which is not known or is there twice")
        elif field.endswith("skip") and not re.fullmatch(r"-1|\d{1,9}", value):
            raise ValueError(f"{name}: {value[:40]!r} is not a number from -1 to 999999999")
        else:
            fields[field] = _checked(f"{name}: {value}")
    text = [magic.strip(), *fields.values(), f"data file: {DATA}"]
    return ItkHeader(text, data, end.end() if end else len(block), "space" in fields)


def _meta(block: bytes) -> ItkHeader:
    fields: dict[str, str] = {}
    start = 0
    for raw in block.split(b"\n"):
        start += len(raw) + 1
        line = os.fsdecode(raw).strip()
        name, _, value = (part.strip() for part in line.replace(":", "=", ":" in line.partition("=")[0]).partition("="))
        if name.casefold() == "elementdatafile":
            data = "" if value.casefold() == "local" else _plain_name(value)
            if not data and fields.pop("HeaderSize", "0").rpartition(" ")[2] not in ("0", "-1"):
                raise ValueError("HeaderSize: must be 0 if the voxels are in the same file")
            text = [*fields.values(), f"ElementDataFile = {DATA}"]
            return ItkHeader(text, data, start, any(field in fields for field in META_ORIENTED))
        if name in fields:
            raise ValueError(f"its header has the field {name} twice")
        if META_FIELDS.fullmatch(name):
            fields[name] = _checked(f"{name} = {value}")
    raise ValueError(f"damaged or cut short, or not a MetaImage file: no ElementDataFile in its first {start} bytes")


def _checked(line: str) -> str:
    if len(line) > FIELD_CHARACTERS or not line.replace("\t", " ").isprintable():
        raise ValueError(f"its header has a field that is too long or has control characters: {line[:40]!r}")
    return line


def _plain_name(name: str) -> str:
    """The name of one file in the same folder: no folders, no list of files, no pattern of names."""
    plain = name not in ("", ".", "..") and not re.search(r"[/\\%\x00-\x1f]", name)
    if not plain or name.split()[0].casefold() == "list":
        raise ValueError(f"its data file must be one file beside it, not {name!r}")
    return name


def _open_beside(path: Path, name: str) -> BinaryIO:
    try:
        return open_regular(beside(path, name))
    except FileNotFoundError:
        raise FileNotFoundError(f"its data file, {name}, is missing: put it beside it") from None


def _copy(source: BinaryIO, target: Path) -> None:
    with target.open("xb") as file:
        while chunk := source.read(2**20):
            if file.tell() + len(chunk) > MAX_FILE_BYTES:
                raise ValueError(f"its voxels are over the limit of {MAX_FILE_BYTES} bytes")
            file.write(chunk)
