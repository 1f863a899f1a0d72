"""The preprocessor's messages carry the scan's own header fields, and doubts about it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fuzz.tiny import write_bundle
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_proto import Scan, ScanMessage, SlicesMessage, Source, decode, encode
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.stage import InvalidInput, Outcome


def sent(tmp_path: Path, image: nib.Nifti1Image, *warnings: str) -> SlicesMessage:
    with connect("memory://forms") as broker:
        stage = Preprocessor(write_bundle(tmp_path), broker, [])
        source = Source(data=image.to_bytes())
        message = ScanMessage(id="m", scan=Scan(id="s"), source=source, warnings=list(warnings))
        (part,) = stage.handle(message, Delivery("gliaflow.preprocessor", "scan", b"")).publish
    received = decode(encode(part))
    assert isinstance(received, SlicesMessage)
    return received


def ball() -> np.ndarray:
    i, j, k = np.indices((12, 14, 8))
    noise = np.random.default_rng(0).integers(0, 60, i.shape)
    return np.asarray(((i - 6) ** 2 + (j - 7) ** 2 + 2 * (k - 4) ** 2 < 25) * (200 + noise)).astype(np.int16)


def test_slices_carry_the_headers_forms_and_the_doubts_of_each_stage(tmp_path: Path) -> None:
    affine = np.array([[-15.0, 0, 0, 90], [0, 15, 0, -100], [0, 0, 20, -60], [0, 0, 0, 1]])
    image = nib.Nifti1Image(ball(), affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    image.header["qoffset_x"] += 30
    image.header.set_xyzt_units("mm", "sec")
    done = sent(tmp_path, image, "from the client")
    assert done.warnings[0] == "from the client"
    assert any("by a shift of 30 mm" in warning for warning in done.warnings)
    forms = done.geometry.forms
    assert forms is not None
    assert (forms.sform_code, forms.qform_code, forms.units) == (2, 1, 10)
    assert forms.quatern[3:] == [120, -100, -60]
    assert forms.srow == affine[:3].ravel().tolist()
    assert forms.pixdim[1:] == [15, 15, 20]


def test_a_label_map_is_answered_with_a_doubt(tmp_path: Path) -> None:
    image = nib.Nifti1Image((ball() > 0).astype(np.uint8), np.diag([-15.0, 15, 20, 1]))
    assert "voxels: only 2 different values (0, 1); is this a label map?" in sent(tmp_path, image).warnings


@pytest.mark.parametrize(
    ("attempt", "deliveries", "replayed", "is_skipped"),
    [
        (0, 0, False, False),
        (0, 1, False, True),
        (1, 0, False, True),
        (1, 0, True, False),
    ],
    ids=["first read", "redelivered", "sent again", "replayed by an operator"],
)
def test_a_scan_whose_upload_is_gone_is_skipped_if_its_sender_most_likely_has_the_answer(
    tmp_path: Path, attempt: int, deliveries: int, replayed: bool, is_skipped: bool
) -> None:
    source = Source(upload="gliaflow.upload.0123456789abcdef", chunks=1)
    scan = ScanMessage(id="s", scan=Scan(id="s", attempt=attempt, replayed=replayed), source=source)
    delivery = Delivery("q", "scan", b"", attempts=deliveries)
    with MemoryBroker() as broker:
        stage = Preprocessor(write_bundle(tmp_path), broker, [])
        with nullcontext() if is_skipped else pytest.raises(InvalidInput, match="its sender deleted it"):
            assert stage.handle(scan, delivery) == Outcome()
