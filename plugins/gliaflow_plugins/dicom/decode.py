"""The child process of ``compressed``: ``python -m gliaflow_plugins.dicom.decode``.

It reads a line of JSON and a compressed frame from stdin, and writes ``+`` and the pixels (little endian) to stdout, or
``-`` if the frame cannot be decoded. It ends when stdin does.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.dicom.compression import HTJ2K, JPEG, JPEG_2000

MEMORY_BYTES = 6 * 2**30  # address space: libraries reserve much more than they use


def main() -> None:
    _limit_memory()
    logging.disable()
    warnings.simplefilter("ignore")
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline(4096):
        request = json.loads(line)
        frame = source.read(request["bytes"])
        try:
            pixels = _pixels(request, frame)
        except Exception:
            pixels = None
        sink.write(b"-" if pixels is None else b"+" + pixels)
        sink.flush()


def _pixels(request: dict[str, Any], frame: bytes) -> bytes:
    """The bits of each pixel, which the parent takes as signed or unsigned."""
    syntax = request["syntax"]
    decode = _openjpeg if syntax in JPEG_2000 | HTJ2K else _gdcm if syntax in JPEG else _pydicom
    pixels = decode(request, frame).reshape(request["rows"], request["columns"])
    return pixels.astype(f"<u{request['bits_allocated'] // 8}").tobytes()


def _openjpeg(request: dict[str, Any], frame: bytes) -> NDArray[Any]:
    from openjpeg.utils import decode

    return np.asarray(decode(frame))


def _gdcm(request: dict[str, Any], frame: bytes) -> NDArray[Any]:
    """pydicom would refuse JPEG Extended of 12 bits, which gdcm decodes."""
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((request["columns"], request["rows"], 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(request["syntax"])))
    allocated, stored = request["bits_allocated"], request["bits_stored"]
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, stored, stored - 1, request["pixel_representation"]))
    buffer = image.GetBuffer().encode("utf-8", "surrogateescape")  # gdcm returns bytes as text
    return np.frombuffer(buffer, f"<u{allocated // 8}")


def _pydicom(request: dict[str, Any], frame: bytes) -> NDArray[Any]:
    """RLE by pydicom itself, JPEG-LS by pyjpegls."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    options: Any = {key: value for key, value in request.items() if key not in ("syntax", "bytes")}
    options |= {"number_of_frames": 1, "samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2"}
    options |= {"pixel_keyword": "PixelData"}
    return get_decoder(request["syntax"]).as_array(encapsulate([frame]), raw=True, **options)[0]


def _limit_memory() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
