"""Other sequences come onto the FLAIR's slices by their affines; what is not there is refused by name."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow_extractor.extractor import Extractor
from gliaflow_preprocessor import sources
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.sequences import prepare_beside, shared_information
from gliaflow_preprocessor.slices import UnusableScan, prepare
from gliaflow_preprocessor.sources import SourceError, read_source
from gliaflow_proto import (
    ProtocolError,
    Scan,
    ScanMessage,
    SequenceSource,
    SlicesMessage,
    Source,
    decode,
    encode,
    upload_queue,
)
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker, MemoryConsumer
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_runtime.stage import InvalidInput
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

SPEC = InputSpec(size=(32, 32), spacing=(6, 6), channels=("flair", "t1", "t1ce"), optional=("t1",))
SHAPE, SIDES = (40, 44, 20), (5.0, 5.0, 8.0)
DELIVERY = Delivery("", "scan", b"")


def affine_of(shape: tuple[int, ...], sides: tuple[float, ...], turn: float = 0.0) -> np.ndarray:
    """About the middle of the head, turned by so many degrees about z."""
    affine = np.eye(4)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag(sides)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def drawn(shape: tuple[int, ...], affine: np.ndarray, core: float = 300.0) -> np.ndarray:
    """A smooth head with an off-centre core, as a scanner with this grid would image it."""
    x, y, z = np.einsum("ab,b...->a...", affine, np.stack([*np.indices(shape), np.ones(shape)]))[:3]
    radius = np.sqrt((x / 80) ** 2 + (y / 95) ** 2 + (z / 70) ** 2)
    volume = 500 / (1 + np.exp((radius - 1) * 20))
    return volume + core * np.exp(-((x - 25) ** 2 + (y + 30) ** 2 + (z - 10) ** 2) / 500)


FLAIR = affine_of(SHAPE, SIDES)


@settings(max_examples=12, deadline=None)
@given(
    st.floats(-25, 25),
    st.tuples(*[st.floats(2.5, 6.0)] * 3),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
)
def test_a_pixel_shows_one_place_whatever_the_grid_of_the_other_sequence(
    turn: float, sides: tuple[float, ...], axes: list[int], flips: tuple[int, ...]
) -> None:
    flair = prepare(drawn(SHAPE, FLAIR), FLAIR, SPEC)
    shape = tuple(round(240 / side) for side in sides)
    affine = affine_of(shape, sides, turn)
    image = nib.Nifti1Image(drawn(shape, affine, core=-400), affine)
    image = image.as_reoriented(np.array([*zip(axes, flips, strict=True)], dtype=float))
    there, doubts = prepare_beside(image.get_fdata(), image.affine, flair, SPEC)
    same_grid, _ = prepare_beside(drawn(SHAPE, FLAIR, core=-400), FLAIR, flair, SPEC)
    assert doubts == []
    inside = ndimage.binary_erosion(same_grid > 0.3, np.ones((1, 3, 3)), border_value=1)
    assert np.abs(there - same_grid)[inside].max() < 0.15


def test_one_grid_is_not_interpolated_and_the_flair_itself_gives_its_own_slices() -> None:
    volume = np.random.default_rng(0).normal(1, 0.2, SHAPE) * drawn(SHAPE, FLAIR)
    flair = prepare(volume, FLAIR, SPEC)
    nearly = FLAIR + np.random.default_rng(1).uniform(-1e-4, 1e-4, (4, 4)) * (np.arange(4) < 3)[:, None]
    for affine in (FLAIR, nearly):
        image, doubts = prepare_beside(volume, affine, flair, SPEC)
        assert np.array_equal(image, flair.image)
        assert doubts == []


@pytest.mark.parametrize(("away", "says"), [(80.0, "covers [456].% of the head"), (140.0, None), (1000.0, None)])
def test_a_sequence_that_does_not_cover_the_head_is_doubted_or_refused(away: float, says: str | None) -> None:
    flair = prepare(drawn(SHAPE, FLAIR), FLAIR, SPEC)
    moved = FLAIR.copy()
    moved[1, 3] += away
    if says is None:
        with pytest.raises(UnusableScan, match=r"covers \d+% of the head in the FLAIR scan.*same patient and visit"):
            prepare_beside(drawn(SHAPE, FLAIR), moved, flair, SPEC)
    else:
        _, doubts = prepare_beside(drawn(SHAPE, FLAIR), moved, flair, SPEC)
        assert len(doubts) == 1
        assert re.search(says, doubts[0])


def blank(folder: Path, spec: InputSpec) -> Bundle:
    manifest = {
        "name": "blank", "notice": "No networks.", "input": spec.model_dump(), "classes": ["HGG", "LGG"],
        "taps": {"enc5": [4, 2, 2]}, "tap": "enc5", "generator": "", "generators": {}, "training": {}, "metrics": {},
        "versions": {},
    }  # fmt: skip
    return write_manifest(folder, manifest)


def nifti(volume: np.ndarray, affine: np.ndarray = FLAIR) -> bytes:
    return nib.Nifti1Image(volume.astype(np.float32), affine).to_bytes()


BESIDE = nifti(drawn(SHAPE, FLAIR, core=-400))
T1CE = SequenceSource(source=Source(data=BESIDE))


def handled(
    folder: Path, spec: InputSpec, sequences: Mapping[str, SequenceSource], flair: bytes = b""
) -> SlicesMessage:
    stage = Preprocessor(blank(folder, spec), MemoryBroker(), [])
    source = Source(data=flair or nifti(drawn(SHAPE, FLAIR)))
    message = ScanMessage(id="m", scan=Scan(id="s"), source=source, sequences=dict(sequences))
    parts = [decode(encode(part)) for part in stage.handle(message, DELIVERY).publish]
    assert all(isinstance(part, SlicesMessage) for part in parts)
    return parts[0]


def test_slices_have_a_channel_for_each_sequence_and_a_missing_one_that_may_be_missing_is_air(tmp_path: Path) -> None:
    part = handled(tmp_path, SPEC, {"t1ce": T1CE})
    flair = prepare(drawn(SHAPE, FLAIR).astype(np.float32), FLAIR, SPEC)
    t1ce, _ = prepare_beside(drawn(SHAPE, FLAIR, core=-400).astype(np.float32), FLAIR, flair, SPEC)
    expected = np.stack([flair.image, 0 * t1ce, t1ce], axis=1)[: len(part.image)].astype(np.float16)
    assert np.array_equal(part.image, expected)
    assert part.warnings == ["t1: the scan came without it; the bundle can do without it"]


def test_a_bundle_of_flair_reads_no_other_sequence(tmp_path: Path) -> None:
    nowhere = SequenceSource(source=Source(uri="file:///nowhere"))
    flair = SPEC.model_copy(update={"channels": ("flair",), "optional": ()})
    part = handled(tmp_path, flair, {"t1ce": nowhere})
    assert part.image.shape[1] == 1
    assert part.warnings == []


@pytest.mark.parametrize(
    ("sequences", "reason"),
    [
        ({}, r"^t1ce: the scan came without it, and this bundle needs flair, t1, t1ce: put it beside"),
        ({"t1ce": SequenceSource(source=Source(data=b"no scan"))}, r"^t1ce: not a NIfTI file"),
        ({"t1ce": SequenceSource(source=Source(uri="file:///x"))}, r"^t1ce: source.uri: this pipeline reads no URIs"),
        (
            {"t1ce": SequenceSource(source=Source(data=nifti(np.zeros(SHAPE))))},
            r"^t1ce: it is constant or almost empty",
        ),
        (
            {"t1ce": SequenceSource(source=Source(data=nifti(np.stack([drawn(SHAPE, FLAIR)] * 2, axis=-1))))},
            r"^t1ce: 4-D image .*sequences.t1ce.channel",
        ),
        (
            {"t1ce": SequenceSource(source=Source(data=nifti(drawn(SHAPE, FLAIR))))},
            r"^t1ce: it is the image that came as flair, too",
        ),
        (
            {"t1ce": SequenceSource(source=Source(data=gzip.compress(nifti(drawn(SHAPE, FLAIR)), 1)), channel="0")},
            r"^t1ce: it is the image that came as flair, too",
        ),
        (
            {"t1": SequenceSource(source=Source(data=gzip.compress(BESIDE, 1))), "t1ce": T1CE},
            r"^t1ce: it is the image that came as t1, too",
        ),
        (
            {
                "t1ce": SequenceSource(
                    source=Source(data=nifti(np.stack([drawn(SHAPE, FLAIR)] * 2, -1))), channel="9" * 4400
                )
            },
            r"^t1ce: channel: not a number from 0 to 1$",
        ),
        ({"t1ce": SequenceSource(source=Source(upload="gliaflow.upload.none", chunks=1))}, "its sender deleted it"),
    ],
    ids=[
        "missing",
        "no NIfTI",
        "not allowed",
        "empty",
        "no channel",
        "the FLAIR again",
        "a copy of it",
        "one twice",
        "huge number",
        "upload gone",
    ],
)
def test_a_sequence_that_cannot_be_used_is_named(
    tmp_path: Path, sequences: dict[str, SequenceSource], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        handled(tmp_path, SPEC, sequences)


@pytest.mark.parametrize("how", ["codes", "identity"])
def test_files_that_do_not_state_their_place_are_used_on_one_grid_alone(tmp_path: Path, how: str) -> None:
    """Else they would be laid over each other as they are stored: here, the other sequence is sagittal."""
    spec = SPEC.model_copy(update={"channels": ("flair", "t1ce"), "optional": (), "spacing": (1.5, 1.5)})
    cube = affine_of((40, 40, 40), (5.0, 5.0, 5.0))

    def unplaced(volume: np.ndarray) -> bytes:
        image = nib.Nifti1Image(volume.astype(np.float32), np.eye(4))
        if how == "codes":
            image.set_sform(None, 0)
            image.set_qform(None, 0)
        return image.to_bytes()

    flair, t1ce = drawn((40, 40, 40), cube), drawn((40, 40, 40), cube, core=-400)
    handled(tmp_path, spec, {"t1ce": SequenceSource(source=Source(data=unplaced(t1ce)))}, unplaced(flair))
    sagittal = SequenceSource(source=Source(data=unplaced(t1ce[:, :, 2:].transpose(1, 2, 0))))
    for own in (unplaced(flair), nifti(flair, affine_of((40, 40, 40), (1.0, 1.0, 1.0)))):
        with pytest.raises(
            InvalidInput, match=r"^t1ce: its grid is not the FLAIR's, and one of the two files does not"
        ):
            handled(tmp_path, spec, {"t1ce": sagittal}, own)


@pytest.mark.parametrize(("away", "says"), [(0.0, []), (1.0, ["t1ce"])])
def test_what_is_said_of_the_flairs_place_is_said_again_of_another_grid(
    tmp_path: Path, away: float, says: list[str]
) -> None:
    spec = SPEC.model_copy(update={"channels": ("flair", "t1ce"), "optional": ()})
    moved = FLAIR + np.eye(4, k=3) * away

    def in_template(volume: np.ndarray, affine: np.ndarray) -> bytes:
        image = nib.Nifti1Image(volume.astype(np.float32), affine)
        image.set_sform(affine, 4)
        return image.to_bytes()

    t1ce = SequenceSource(source=Source(data=in_template(drawn(SHAPE, moved, core=-400), moved)))
    part = handled(tmp_path, spec, {"t1ce": t1ce}, in_template(drawn(SHAPE, FLAIR), FLAIR))
    assert [text.partition(": ")[0] for text in part.warnings] == ["sform_code", *says]


def test_the_sequences_of_one_4d_file_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = np.stack([drawn(SHAPE, FLAIR), drawn(SHAPE, FLAIR, core=-400)], axis=-1)
    source = Source(uri=(tmp_path / "both.nii").as_uri())
    (tmp_path / "both.nii").write_bytes(nifti(both))
    stage = Preprocessor(blank(tmp_path, SPEC), MemoryBroker(), [str(tmp_path)])
    read = []
    monkeypatch.setattr(stage, "_fetch", lambda source: read.append(source) or (tmp_path / "both.nii").read_bytes())
    t1ce = SequenceSource(source=source, channel="1")
    message = ScanMessage(id="m", scan=Scan(id="s"), source=source, channel="0", sequences={"t1ce": t1ce})
    (part, *_) = stage.handle(message, DELIVERY).publish
    assert len(read) == 1
    assert not np.array_equal(part.image[:, 0], part.image[:, 2])


def test_the_uploads_of_a_scan_have_one_limit_of_time_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone is quick enough. Together, they would hold the preprocessor until its deadline ends the process."""
    clock, read, broker = [0.0], MemoryConsumer.next, MemoryBroker()
    monkeypatch.setattr(sources.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("gliaflow_preprocessor.preprocessor.SOURCES_S", 12)

    def slow(self: MemoryConsumer, timeout: float) -> Delivery | None:
        clock[0] += min(timeout, 4.9)
        return read(self, 0) if timeout >= 4.9 else None

    monkeypatch.setattr(MemoryConsumer, "next", slow)
    uploads = {}
    for name, core in (("flair", 300), ("t1", 100), ("t1ce", -400)):
        queue = upload_queue(name)
        broker.declare(queue)
        broker.publish(queue.keys[0], nifti(drawn(SHAPE, FLAIR, core)), message_id="0")
        uploads[name] = Source(upload=queue.name, chunks=1)
    stage, flair = Preprocessor(blank(tmp_path, SPEC), broker, []), uploads.pop("flair")
    sequences = {name: SequenceSource(source=source) for name, source in uploads.items()}
    message = ScanMessage(id="m", scan=Scan(id="s"), source=flair, sequences=sequences)
    with pytest.raises(InvalidInput, match=r"^t1ce: source.upload: 0 of 1 chunks arrived"):
        stage.handle(message, DELIVERY)
    assert clock[0] <= 12
    with pytest.raises(SourceError, match="the files of this scan take more than 300 s to read"):
        read_source(flair, [], broker, until=clock[0] - 1)


class _NoNetwork:
    size, channels = (32, 32), 3


def test_slices_of_another_number_of_sequences_are_refused_by_the_extractor(tmp_path: Path) -> None:
    part = handled(tmp_path, SPEC, {"t1ce": T1CE})
    one = SlicesMessage(id="m", scan=part.scan, geometry=part.geometry, image=part.image[:, :1])
    with pytest.raises(ProtocolError, match=r"tensors.image: shape \(\d+, 1, 32, 32\), but this bundle takes \(\d+, 3"):
        Extractor(blank(tmp_path, SPEC), _NoNetwork()).handle(one, DELIVERY)


def test_the_anatomy_of_another_head_is_a_warning_and_another_contrast_is_none() -> None:
    def head(seed: int) -> np.ndarray:
        tissue = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 0.7)
        return np.where(drawn(SHAPE, FLAIR) > 250, 500 + 100 * tissue / tissue.std(), 0).clip(0)

    mine, spec = head(0), InputSpec(size=(64, 64), spacing=(4, 4))
    flair = prepare(mine, FLAIR, spec)
    inverse = np.where(mine > 0, 1000 - mine, 0)
    _, doubts = prepare_beside(inverse, FLAIR, flair, spec)
    assert doubts == []
    _, (doubt,) = prepare_beside(head(1), FLAIR, flair, spec)
    assert doubt.startswith(
        "by the files' affines, its anatomy is not that of the FLAIR scan: is it of the same patient"
    )


def test_shared_information_is_that_of_the_definition() -> None:
    pixels = np.random.default_rng(0).random(16_000)
    assert shared_information(pixels, -pixels) == pytest.approx(np.log(16), rel=0.01), "each predicts the other"
    assert shared_information(pixels, np.random.default_rng(1).random(16_000)) < 0.02, "neither predicts the other"
    assert shared_information(pixels, np.ones(16_000)) == pytest.approx(0, abs=1e-9)
