"""Scans with other sequences go through the stages as their bundle wants, from every layout and by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gliaflow
import numpy as np
import pytest
from gliaflow.flow import Flow
from gliaflow.scans import Input, ScanRequest, find_inputs, find_one
from gliaflow.sequences import GivenSequences, wanted_sequences
from gliaflow.submission import BY_VALUE_BYTES, Submission
from gliaflow_proto import ScanMessage, decode, expect
from gliaflow_proto.routing import PREPROCESSOR
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from sample_dicom import single_frames, write
from sample_sequences import AFFINE, lesion, save, several_channels, without_lesion

CHANNELS = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """A head with a lesion and the same head without."""
    voxels = lesion(folder=tmp_path_factory.mktemp("heads"))
    return voxels, without_lesion(voxels)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It sees T1 after contrast alone, and may lack T2."""
    return several_channels(tmp_path_factory.mktemp("of") / "four", CHANNELS, sees="t1ce", optional=["t2"])


@pytest.fixture(scope="module")
def flow(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIAFLOW_STATE", str(tmp_path_factory.mktemp("state")))
        with gliaflow.open(bundle=bundle, threads=1) as flow:
            yield flow


@pytest.fixture(scope="module")
def expected(heads: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The mask of the shipped bundle, of the head with the lesion as FLAIR."""
    folder = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIAFLOW_STATE", str(folder / "state"))
        with gliaflow.open(threads=1) as flow:
            assert flow.sequences == ()
            answer = flow.submit(save(folder / "P_flair.nii.gz", heads[0]))
    assert answer.status == "ok"
    return np.asarray(answer.mask.dataobj)


def other(voxels: np.ndarray, number: int) -> np.ndarray:
    """The head as another sequence shows it: brighter, and of less contrast."""
    return (1 + number) * np.minimum(voxels, 320 - 5 * number)


def brats(folder: Path, heads: tuple[np.ndarray, np.ndarray], name: str = "A") -> Path:
    for number, kind in enumerate(("flair", "t1", "t2")):
        save(folder / name / f"{name}_{kind}.nii.gz", other(heads[1], number))
    save(folder / name / f"{name}_t1ce.nii.gz", 3 * heads[0])
    return folder


def msd(folder: Path, heads: tuple[np.ndarray, np.ndarray]) -> Path:
    volumes = [heads[1], other(heads[1], 1), heads[0], other(heads[1], 2)]
    save(folder / "imagesTr/BRATS_306.nii.gz", np.stack(volumes, axis=-1))
    channels = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (folder / "dataset.json").write_text(json.dumps({"modality": channels}))
    return folder


def study(folder: Path, heads: tuple[np.ndarray, np.ndarray]) -> Path:
    for number, (name, voxels) in enumerate(
        [
            ("ax flair", heads[1]),
            ("t1 tse", other(heads[1], 1)),
            ("t1 tse KM", heads[0]),
            ("t2 tse", other(heads[1], 2)),
        ],
        1,
    ):

        def change(image: object, _: int, number: int = number) -> None:
            image.SeriesNumber = number  # type: ignore[attr-defined]
            if number > 1:
                image.ScanningSequence, image.InversionTime = "SE", None  # type: ignore[attr-defined]

        whole = single_frames(voxels.astype(np.int16), AFFINE, series=name, change=change)
        write(whole, folder / "P1" / f"S{number}")
    return folder


def table(folder: Path, heads: tuple[np.ndarray, np.ndarray]) -> Path:
    for name, voxels in zip("abcd", (heads[1], other(heads[1], 1), heads[0], other(heads[1], 2)), strict=True):
        save(folder / f"{name}.nii.gz", voxels)
    path = folder / "scans.csv"
    path.write_text("scan,patient,T1,T1 Gd,T2\na.nii.gz,P1,b.nii.gz,c.nii.gz,d.nii.gz\n")
    return path


@pytest.mark.parametrize("layout", [brats, msd, study, table])
def test_each_layout_is_answered_by_a_bundle_of_several_sequences(
    layout, flow: Flow, heads: tuple[np.ndarray, np.ndarray], expected: np.ndarray, tmp_path: Path
) -> None:
    (answer,) = flow.submit_all(layout(tmp_path, heads))
    assert answer.reason == ""
    assert (answer.status, [text for text in answer.warnings if "t1" in text or "t2" in text]) == ("ok", [])
    assert np.array_equal(np.asarray(answer.mask.dataobj), expected)


def test_a_file_that_is_named_alone_finds_what_is_named_after_it_or_gets_what_the_user_names(
    flow: Flow, heads: tuple[np.ndarray, np.ndarray], expected: np.ndarray, tmp_path: Path
) -> None:
    flair = brats(tmp_path, heads) / "A/A_flair.nii.gz"
    odd = save(tmp_path / "odd/other name.nii.gz", heads[0])
    (tmp_path / "A/A_t1ce.nii.gz").rename(tmp_path / "contrast.nii.gz")
    (tmp_path / "A/A_t2.nii.gz").unlink()
    failed = flow.submit(flair)
    assert (failed.status, failed.reason.startswith("preprocessor: t1ce: the scan came without it")) == ("failed", True)
    four = save(tmp_path / "four.nii", np.stack([heads[1], heads[0]], axis=-1))
    for given in (odd, f"{four}:1"):
        answer = flow.submit(flair, sequences={"t1ce": given})
        assert np.array_equal(np.asarray(answer.mask.dataobj), expected)
        assert any(text.startswith("t2: the scan came without it") for text in answer.warnings)
    found = gliaflow.extract(flair, bundle=_folder(flow), sequences={"t1ce": odd}, threads=1)
    assert found.tumour.any()


def _folder(flow: Flow) -> Path:
    assert flow.stages is not None
    return flow.stages.bundle.folder


def test_a_bundle_of_flair_gets_and_reads_nothing_else(
    heads: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    brats(tmp_path / "in", heads)
    for name in ("t1", "t1ce", "t2"):
        (tmp_path / f"in/A/A_{name}.nii.gz").write_bytes(b"no image")
    with gliaflow.open(threads=1) as flow:
        (item,) = find_inputs([tmp_path / "in"], ScanRequest(sequences=flow.sequences)).inputs
        assert item.sequences == {}
        (given,) = find_inputs([tmp_path / "in"], ScanRequest(sequences=CHANNELS[1:])).inputs
        assert set(given.sequences) == {"t1", "t1ce", "t2"}
        statuses = [answer.status for answer in flow.submit_all([item, *[given]])]
    assert "failed" not in statuses


def test_what_is_wanted_follows_the_bundle_or_the_setting(bundle: Path) -> None:
    def wanted(**settings: object) -> tuple[str, ...]:
        return wanted_sequences(Settings(**settings))  # type: ignore[arg-type]

    assert wanted() == ()
    assert wanted(bundle=bundle) == ("t1", "t1ce", "t2")
    assert wanted(bundle=bundle, sequences="t2,t1ce") == ("t1ce", "t2")
    assert wanted(bundle=bundle, sequences="none") == ()
    assert wanted(sequences="t1ce") == ()  # the shipped bundle does not read it
    assert wanted(broker="amqp://host/") == ()
    assert wanted(broker="amqp://host/", sequences="T1ce") == ("t1ce",)
    with pytest.raises(ValueError, match="'flair' is not one of t1, t1ce, t2"):
        Settings(sequences="flair")  # type: ignore[arg-type]


def sent(item: Input) -> ScanMessage:
    """The message of a scan to stages that do not see its files."""
    with MemoryBroker() as broker:
        broker.declare(PREPROCESSOR)
        with Submission(broker, by_uri=False) as submission, broker.consume(PREPROCESSOR, 1) as consumer:
            submission.submit(item)
            delivery = consumer.next(1)
    assert delivery is not None
    return expect(decode(delivery.body), ScanMessage)


def test_bytes_are_sent_as_far_as_the_message_has_room_and_one_4d_file_once(
    heads: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    for name in ("flair", "t1ce", "t2"):
        (tmp_path / f"A_{name}.nii.gz").write_bytes(name.encode() + bytes(BY_VALUE_BYTES // 2))
    message = sent(find_one(tmp_path / "A_flair.nii.gz", ScanRequest(sequences=["t1ce", "t2"])))
    sources = {name: file.source for name, file in message.sequences.items()}
    assert message.source.data is not None
    assert [sources[name].upload is not None for name in ("t1ce", "t2")] == [True, True]
    (tmp_path / "A_t1ce.nii.gz").write_bytes(b"small")
    message = sent(find_one(tmp_path / "A_flair.nii.gz", ScanRequest(sequences=["t1ce"])))
    assert message.sequences["t1ce"].source.data == b"small"
    message = sent(find_one(msd(tmp_path / "msd", heads), ScanRequest(sequences=CHANNELS[1:])))
    assert {name: file.channel for name, file in message.sequences.items()} == {"t1": "1", "t1ce": "2", "t2": "3"}
    assert all(file.source == message.source for file in message.sequences.values())


def test_in_a_store_the_sequences_are_found_beside_what_a_glob_matches() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("A_flair", "A_t1ce", "B_flair", "B_t1ce"):
        store.pipe(f"/in-a-store/{name}.nii.gz", b"x")
    for place, count in (("*_flair.nii.gz", 2), ("A_flair.nii.gz", 1), ("", 2)):
        items = find_inputs([f"memory://in-a-store/{place}"], ScanRequest(sequences=["t1ce"])).inputs
        pairs = [(item.uri.replace("flair", "t1ce"), item.sequences["t1ce"].uri) for item in items]
        assert len(pairs) == count
        assert all(expected == uri for expected, uri in pairs)


def test_a_number_in_a_folder_of_several_scans_is_not_that_of_a_series(tmp_path: Path) -> None:
    for name in ("1_flair.nii.gz", "2_flair.nii.gz", "2_t1.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert find_one(tmp_path / "1_flair.nii.gz", ScanRequest(sequences=["t1"])).sequences == {}
    assert set(find_one(tmp_path / "2_flair.nii.gz", ScanRequest(sequences=["t1"])).sequences) == {"t1"}


def test_a_sequence_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "A_flair.nii.gz").write_bytes(b"x")
    (tmp_path / "A_t1.nii.gz").write_bytes(b"y")
    item = find_one(tmp_path / "A_flair.nii.gz", ScanRequest(sequences=["t1"]))
    (tmp_path / "A_t1.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"^t1: .*A_t1.nii.gz: No such file"):
        sent(item)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"t1ce": "gone.nii.gz"}, "--t1ce gone.nii.gz: no such file"),
        ({"t1ce": "7"}, "--t1ce 7: no such file, and there is no DICOM"),
        ({"t1ce": " "}, "--t1ce is empty"),
        ({"t1c": "a.nii"}, "t1c: not a sequence beside the FLAIR: t1, t1ce, t2"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, given: dict[str, str], text: str) -> None:
    (tmp_path / "A_flair.nii.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=text):
        find_inputs([tmp_path], ScanRequest(given=GivenSequences.of(given)))


def test_a_file_that_the_user_names_is_used_once(tmp_path: Path) -> None:
    for name in ("A_flair.nii.gz", "A_t1.nii.gz"):
        (tmp_path / name).write_bytes(b"x")

    def named(**given: str) -> dict[str, str]:
        files = GivenSequences.of({name: tmp_path / text for name, text in given.items()})
        item = find_one(tmp_path / "A_flair.nii.gz", ScanRequest(sequences=["t1", "t1ce"], given=files))
        return {name: each.path.name for name, each in item.sequences.items()}

    assert named(t1ce="A_t1.nii.gz") == {"t1ce": "A_t1.nii.gz"}  # it was found as t1
    with pytest.raises(UsageError, match=r"--t1ce .*A_t1.nii.gz: the same image as --t1"):
        named(t1="A_t1.nii.gz", t1ce="A_t1.nii.gz")
    with pytest.raises(UsageError, match=r"--t1ce .*A_flair.nii.gz: the same image as the FLAIR scan"):
        named(t1ce="A_flair.nii.gz")


def test_sequences_that_would_not_be_used_are_refused(flow: Flow, tmp_path: Path) -> None:
    (tmp_path / "A_flair.nii.gz").write_bytes(b"x")
    given = {"t1ce": tmp_path / "A_t1ce.nii.gz"}
    given["t1ce"].write_bytes(b"y")
    with pytest.raises(UsageError, match="an Input has its own"):
        flow.submit(find_one(tmp_path / "A_flair.nii.gz"), sequences=given)
    with pytest.raises(UsageError, match="--t1ce: the bundle reads flair;"):
        gliaflow.extract(tmp_path / "A_flair.nii.gz", sequences=given, threads=1)
    with gliaflow.open(threads=1) as plain, pytest.raises(UsageError, match="--t1ce: the bundle reads flair;"):
        plain.submit(tmp_path / "A_flair.nii.gz", sequences=given)


def test_what_a_table_names_and_is_not_there_is_a_warning_of_its_scan(tmp_path: Path) -> None:
    (tmp_path / "A.nii.gz").write_bytes(b"x")
    (tmp_path / "scans.csv").write_text("scan,t1ce\nA.nii.gz,gone.nii.gz\n")
    item = find_one(tmp_path / "scans.csv", ScanRequest(sequences=["t1ce"]))
    assert item.warnings == ("t1ce is not used: gone.nii.gz does not exist",)


def test_a_file_of_one_sequence_is_not_for_several_scans(tmp_path: Path) -> None:
    for name in ("A_flair.nii.gz", "B_flair.nii.gz", "x.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    given = GivenSequences.of({"t1ce": tmp_path / "x.nii.gz"})
    with pytest.raises(UsageError, match=r"--t1ce: a file of one scan, but there are 2: .* a table"):
        find_inputs([tmp_path], ScanRequest(given=given))


def test_a_series_of_a_study_is_chosen_by_its_number_and_doubts_are_warnings(
    heads: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    study(tmp_path, heads)
    write(single_frames(heads[0].astype(np.int16), AFFINE, series="t1 gd again"), tmp_path / "P1/S9")
    item = find_one(tmp_path, ScanRequest(sequences=["t1ce"]))
    assert item.sequences == {}
    (warning,) = [text for text in item.warnings if text.startswith("t1ce")]
    assert "t1ce is not used: 2 series may be its T1 after contrast" in warning
    item = find_one(tmp_path, ScanRequest(sequences=["t1ce"], given=GivenSequences.of({"t1ce": "3"})))
    assert set(item.sequences) == {"t1ce"}
    with pytest.raises(UsageError, match="--t1ce 99 matches no series that can be taken"):
        find_one(tmp_path, ScanRequest(given=GivenSequences.of({"t1ce": "99"})))
