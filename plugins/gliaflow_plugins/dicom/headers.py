"""The header of one DICOM file: everything before its pixel data.

The file is untrusted. The number and the bytes of all reads are limited before they happen, so lengths, counts and
nesting that a header states cannot take more memory or time than the limits allow.
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom.charset import decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import TEXT_VR_DELIMS

from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_plugins.regular_files import open_regular

MAX_HEADER_BYTES = 2**25
MAX_READS = 2**21  # of a header: about two for each element
MAX_VALUE_BYTES = 2**12  # of a value that is used; a header may have larger ones
PIXELS = 0x7FE0  # the group of Float, Double Float and Pixel Data (PS3.6)
PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}

logging.getLogger("pydicom").disabled = True  # its messages quote values of headers
_WARNINGS = threading.RLock()


class OverLimit(ValueError):
    """A header is larger than gliaflow reads."""


class OtherFile(ValueError):
    """The file is no part of a series of images."""


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data are: ``tag``, ``vr``, ``start`` of the value and its ``length`` (UNDEFINED: compressed).

    ``start`` counts from the start of the file, in a deflated file from the start of what is inflated.
    """

    tag: int
    vr: str
    start: int
    length: int


@dataclass(frozen=True)
class Header:
    """The elements before the pixel data, the file meta information, the transfer syntax, and ``pixels`` if any.

    ``size``: of the file in bytes.
    """

    fields: Fields
    meta: Dataset
    syntax: str
    pixels: PixelElement | None
    size: int

    @property
    def little_endian(self) -> bool:
        return self.syntax != ExplicitVRBigEndian

    def meta_text(self, keyword: str) -> str:
        """A value of the file meta information."""
        return Fields(self.meta, Budget()).text(keyword)

    @property
    def deflated(self) -> bool:
        return self.syntax == DeflatedExplicitVRLittleEndian


class Limited:
    """A binary file of which only so many reads and bytes are read. All headers are read through it."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file, self._budget = file, budget
        self.seek, self.tell, self.name = file.seek, file.tell, ""

    def read(self, count: int) -> bytes:
        self._budget.take(count)
        return self._file.read(count)


class Budget:
    """How much of one header may still be read."""

    def __init__(self) -> None:
        self.reads, self.bytes = MAX_READS, MAX_HEADER_BYTES

    def take(self, count: int) -> None:
        self.reads -= 1
        self.bytes -= count
        if self.reads < 0 or self.bytes < 0 or count < 0:
            raise OverLimit(f"its header is over the limit of {MAX_HEADER_BYTES} bytes or {MAX_READS} fields")


class Fields:
    """The values of a header, or of one item of a sequence in it, by keyword. Every one is checked when it is used."""

    def __init__(self, dataset: Dataset, budget: Budget) -> None:
        self.dataset, self._budget = dataset, budget
        self._elements = cast(dict[int, Any], dataset._dict)  # much faster than the dataset, which converts each tag
        self._items: dict[str, list[Fields]] = {}

    def __contains__(self, keyword: str) -> bool:
        return _known(keyword)[0] in self._elements

    def _element(self, keyword: str) -> tuple[Any, str]:
        tag, vr = _known(keyword)
        element = self._elements.get(tag)
        if isinstance(element, RawDataElement):
            if len(element.value or b"") > MAX_VALUE_BYTES and vr != "SQ":
                raise ValueError(f"{keyword}: over the limit of {MAX_VALUE_BYTES} bytes")
            vr = element.VR if element.VR in BINARY and vr in BINARY else vr
        return element, vr

    def text(self, keyword: str) -> str:
        """The value as it is in the file; empty: there is none. For identifiers and codes, which are ASCII."""
        element, _ = self._element(keyword)
        value = getattr(element, "value", None) or b""
        return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value)

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The values of an element that may have several."""
        return tuple(part.strip(" \0") for part in self.text(keyword).split("\\"))

    def words(self, keyword: str) -> str:
        """The value in the header's character set. Call it inside ``quiet``."""
        value = getattr(self._element(keyword)[0], "value", None)
        encodings = self.dataset.original_character_set or "iso8859"
        return _decoded(value, encodings if isinstance(encodings, str) else tuple(encodings)) if value else ""

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """The values as numbers; empty: there is none. Raises ValueError if they are not numbers."""
        element, vr = self._element(keyword)
        value = getattr(element, "value", None)
        if not value:
            return ()
        try:
            if not isinstance(value, bytes):
                raise ValueError
            if vr in BINARY:
                order = "<" if element.is_little_endian else ">"
                return struct.unpack(f"{order}{len(value) // struct.calcsize(BINARY[vr])}{BINARY[vr]}", value)
            text = value.decode("latin-1").strip(" \0")
            return tuple(float(part.strip(" \0")) for part in text.split("\\")) if text else ()
        except (ValueError, struct.error):
            raise ValueError(f"{keyword}: not a list of numbers") from None

    def number(self, keyword: str) -> float | None:
        """The first of ``numbers``."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def whole(self, keyword: str) -> int | None:
        """The first of ``numbers``, which must be an integer."""
        number = self.number(keyword)
        if number is None:
            return None
        if not (abs(number) < 2**53 and number == int(number)):  # also NaN
            raise ValueError(f"{keyword}: not a whole number")
        return int(number)

    def items(self, keyword: str) -> list[Fields]:
        """The items of a sequence."""
        if keyword not in self._items:
            self._items[keyword] = [Fields(item, self._budget) for item in self._sequence(keyword)]
        return self._items[keyword]

    def _sequence(self, keyword: str) -> Iterable[Dataset]:
        element, _ = self._element(keyword)
        if not isinstance(element, RawDataElement):
            return element.value if element is not None else ()
        value = element.value or b""
        source = cast(BinaryIO, Limited(cast(BinaryIO, BytesIO(value)), self._budget))
        encoding = self.dataset.original_character_set or "iso8859"
        with _parsing():
            return read_sequence(source, element.is_implicit_VR, element.is_little_endian, len(value), encoding)


@lru_cache(1024)
def _decoded(value: bytes | str, encodings: str | tuple[str, ...]) -> str:
    names = [encodings] if isinstance(encodings, str) else encodings
    with _parsing():
        text = decode_bytes(value, names, TEXT_VR_DELIMS) if isinstance(value, bytes) else str(value)
    return " ".join(text.replace("\0", " ").split())


@cache
def _known(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag, dictionary_VR(tag)


@contextmanager
def _parsing() -> Iterator[None]:
    """Errors of pydicom become ValueErrors that do not quote the header's values."""
    try:
        yield
    except OverLimit:
        raise
    except RecursionError:
        raise ValueError("damaged (its sequences are nested too deep)") from None
    except Exception as error:  # pydicom raises many types for a damaged file
        raise ValueError(f"damaged ({type(error).__name__})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Inside it, the warnings of pydicom about a header do not appear: they quote its values. One thread at a time."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM does, with or without the preamble of PS3.10."""
    try:
        with open_regular(path) as file:
            return _start(file.read(132)) is not None
    except OSError:
        return False


def read_header(path: Path, keywords: Iterable[str] = ()) -> Header:
    """The header of one file. Call it inside ``quiet``.

    Parameters
    ----------
    keywords: the elements to keep; nothing: all.

    Raises
    ------
    OSError: the file cannot be opened. ValueError: it is not DICOM, or is damaged, or over a limit.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return _read(file, size, [_known(keyword)[0] for keyword in keywords])


def full_dataset(path: Path) -> FileDataset:
    """The whole header of one file as a pydicom dataset. Call it inside ``quiet``. Raises as ``read_header``."""
    header = read_header(path)
    with _parsing():
        meta = FileMetaDataset()
        meta.update({element.tag: element for element in header.meta})
        return FileDataset(
            str(path),
            header.fields.dataset,
            file_meta=meta,
            is_implicit_VR=header.syntax == ImplicitVRLittleEndian,
            is_little_endian=header.little_endian,
        )


def inflate(file: BinaryIO, start: int, limit: int) -> bytes:
    """At most ``limit`` bytes of what is deflated from ``start`` of the file on."""
    file.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, size = [], 0
    while size < limit and not inflater.eof:
        block = inflater.unconsumed_tail or file.read(2**16)
        if not block:
            break
        with _parsing():
            parts.append(inflater.decompress(block, limit - size))
        size += len(parts[-1])
    return b"".join(parts)


def dataset_start(file: BinaryIO, budget: Budget | None = None) -> tuple[Dataset, int]:
    """The file meta information, and where the dataset begins."""
    start = _start(file.read(132))
    if start is None:
        raise OtherFile("not a DICOM file")
    file.seek(start)
    if file.read(2) != b"\2\0":
        return Dataset(), start
    file.seek(start)
    source = cast(BinaryIO, Limited(file, budget or Budget()))
    with _parsing():
        meta = read_dataset(source, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return meta, file.tell()


def _read(file: BinaryIO, size: int, tags: list[int]) -> Header:
    budget = Budget()
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes, over the limit of {MAX_FILE_BYTES}")
    meta, start = dataset_start(file, budget)
    syntax = Fields(meta, budget).text("TransferSyntaxUID")
    source: BinaryIO = file
    if syntax == DeflatedExplicitVRLittleEndian:
        source, start = BytesIO(inflate(file, start, MAX_HEADER_BYTES)), 0
    source.seek(start)
    first = source.read(6)
    implicit = not (first[4:].isalpha() and first[4:].isupper())
    if not syntax:  # not valid, but written
        big = first[:1] == b"\0"
        syntax = ExplicitVRBigEndian if big else ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    source.seek(start)
    pixels: list[PixelElement] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag >> 16 == PIXELS and tag & 0xFFFF in (0x08, 0x09, 0x10):
            pixels.append(PixelElement(int(tag), vr or "OW", source.tell(), length))
            return True
        return False

    with _parsing():
        dataset = read_dataset(
            cast(BinaryIO, Limited(source, budget)),
            implicit,
            syntax != ExplicitVRBigEndian,
            stop_when=at_pixels,
            specific_tags=cast(Any, tags),
        )
    return Header(Fields(dataset, budget), meta, str(syntax), pixels[0] if pixels else None, size)


def _start(head: bytes) -> int | None:
    """Where the first element is; None: the file is not DICOM.

    Without the preamble, the first element must be in group 2 or 8, with a value representation or a short length.
    """
    if head[128:132] == b"DICM":
        return 132
    group, explicit = head[:2], head[4:6].isalpha() and head[4:6].isupper()
    if len(head) < 16 or head[2:4] in (b"\xff\xff",):
        return None
    if group in (b"\2\0", b"\0\x08"):
        return 0 if explicit else None
    if group == b"\x08\0" and head[3] == 0:
        return 0 if explicit or int.from_bytes(head[4:8], "little") <= 256 else None
    return None
