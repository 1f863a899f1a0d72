"""The header of a source series, made fit for new objects.

Headers come from many scanners and de-identification tools, and some break DICOM's rules. The new objects must not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

from gliaflow_plugins.dicom.series import DicomSeries
from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

UTF8 = "ISO_IR 192"
ASCII = {"", "ISO_IR 6", "ISO 2022 IR 6"}
LATIN_1 = ("latin_1",)
DELIMITERS = set(b"^=\\\r\n\t\f")  # after one, the first character set applies again (PS3.5, 6.1.2.5.3)
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
UID = re.compile(r"[0-9.]{1,64}")
PATIENT = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientIdentityRemoved", "DeidentificationMethod"),
)
STUDY = (
    *("StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientAge", "Manufacturer", "ManufacturerModelName", "PositionReferenceIndicator"),
)
EMPTY_ALLOWED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)  # type 2: the attribute must be there; the others are left out instead
LISTS = ("DeidentificationMethod",)  # may have several values
IDENTIFIERS = ("PatientID", "PatientName", "AccessionNumber")  # archives match them, so they are kept at any length
DESCRIPTIONS = ("StudyDescription", "Manufacturer", "ManufacturerModelName")  # may be cut
LONGEST = 64  # bytes: DICOM counts characters, but programs that count bytes refuse more
VALUES = {"PatientSex": ("", "M", "F", "O"), "PatientIdentityRemoved": ("", "YES", "NO")}
UNDECODED = "\ufffd"  # what a byte becomes that is not in the character set
TIME = r"(?:(?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?)?"
TEXT = r"[^\\\x00-\x1f\x7f-\x9f]"
GROUP = r"[^\\=\x00-\x1f\x7f-\x9f]{0,64}"  # of a name, in one script
RULES = {
    "DA": re.compile(r"(?:\d{8})?", re.ASCII),
    "TM": re.compile(TIME, re.ASCII),
    "AS": re.compile(r"(?:\d{3}[DWMY])?", re.ASCII),
    "CS": re.compile(r"[A-Z0-9_ ]{0,16}"),
    "SH": re.compile(TEXT + "{0,16}"),
    "LO": re.compile(TEXT + "{0,64}"),
    "PN": re.compile(f"{GROUP}(?:={GROUP}){{0,2}}"),
}
REPAIRS: dict[str, Callable[[str], str]] = {
    "DA": lambda text: text.replace(".", "").replace("-", ""),  # 1970.01.01, from before DICOM 3
    "TM": lambda text: text.replace(":", ""),
    "CS": str.upper,
}


def patient_and_study(series: DicomSeries, headers: list[Dataset]) -> tuple[Dataset, tuple[str, ...]]:
    """Patient, study and frame of reference of a series, in UTF-8, and warnings, which name fields but no values.

    Values that break DICOM's rules are left empty. UIDs and identifiers are kept, even if they are too long:
    an archive files an object by them.

    Raises
    ------
    ValueError: a UID is missing or cannot be written; PatientID has several values; or the files of the series name
        different patients or studies.
    """
    source, first = headers[0], series.paths[0]
    for keyword in ("PatientID", "PatientName", *UIDS):
        for path, header in zip(series.paths, headers, strict=True):
            if text_of(header, keyword) != text_of(source, keyword):
                raise ValueError(
                    f"{path}: its {keyword} differs from that of {first}, in the same series: "
                    "send the series again from its archive"
                )
    target = Dataset()
    target.SpecificCharacterSet = UTF8
    for keyword in UIDS:
        setattr(target, keyword, checked_uid(source, keyword, str(first)))
    declared = _encodings(source)
    emptied, guessed = [], []
    for keyword in (*PATIENT, *STUDY):
        text = _valid(keyword, text_of(source, keyword, declared or LATIN_1))
        if text is None and keyword == "PatientID":
            raise ValueError(
                f"{first}: PatientID has several values or characters that cannot be read: correct it in the archive"
            )
        if text is None:
            emptied.append(keyword)
        elif not declared and not text.isascii():
            guessed.append(keyword)
        if text or keyword in EMPTY_ALLOWED:
            setattr(target, keyword, text or "")
    if target.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in target:
        target.DeidentificationMethod = "not stated by the source images"  # the standard requires it
    if any(text_of(header, "LossyImageCompression") == "01" for header in headers):
        target.LossyImageCompression = "01"
    warnings = []
    if emptied:
        warnings.append(
            f"fields of the images that break DICOM's rules are empty in the DICOM objects: {', '.join(emptied)}"
        )
    if guessed:
        warnings.append(f"the images state no known character set, so these are read as Latin-1: {', '.join(guessed)}")
    return target, tuple(warnings)


def checked_uid(header: Dataset, keyword: str, name: str) -> str:
    """The UID in this field.

    Raises
    ------
    ValueError: there is none, or it has other characters than digits and dots. An archive could not refer to it.
    """
    value = text_of(header, keyword)
    if not UID.fullmatch(value):
        raise ValueError(
            f"{name}: {keyword} is {'missing' if not value else 'not a UID'}, so no object can refer to this image: "
            "send the series again from its archive"
        )
    return value


def text_of(header: Dataset, keyword: str, encodings: Sequence[str] = LATIN_1) -> str:
    """The value as text, whatever its VR in the file. Bytes that are not in the encodings become UNDECODED.

    pydicom would take each codec of Python that the header names, such as utf-16, for a character set.
    """
    if keyword not in header:
        return ""
    value = header.get_item(keyword).value
    if isinstance(value, bytes):
        text = decode_bytes(value, encodings, DELIMITERS)
    else:  # pydicom has converted it already
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str("" if value is None else value)
    return text.strip(" \0")


def _encodings(header: Dataset) -> list[str]:
    """Python's names of the character sets; none, if the header declares none beyond ASCII, or an unknown one."""
    names = [name.strip() for name in text_of(header, "SpecificCharacterSet").split("\\")]
    known = all(name in python_encoding for name in names)
    return convert_encodings(names) if known and not ASCII.issuperset(names) else []


def _valid(keyword: str, text: str) -> str | None:
    """The text, if it keeps the rules of its VR; None if it breaks them."""
    if keyword in LISTS and "\\" in text:
        return text if all(_valid(keyword, each) is not None for each in text.split("\\")) else None
    vr = dictionary_VR(keyword)
    text = REPAIRS.get(vr, str)(text)
    if UNDECODED in text:
        return None
    if keyword in IDENTIFIERS:
        return text if re.fullmatch(TEXT + "*", text) else None
    if keyword in DESCRIPTIONS:
        text = text.encode()[:LONGEST].decode(errors="ignore").strip()
    if not RULES[vr].fullmatch(text) or text not in VALUES.get(keyword, (text,)) or (vr == "DA" and not _is_day(text)):
        return None
    return text


def _is_day(text: str) -> bool:
    """Whether there is such a day; also if there is no date."""
    try:
        return not text or bool(datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False
