"""A scan with other sequences in the console: what is sent, what the networks get, and what the page may show."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import gliaflow
import nibabel as nib
import numpy as np
import pytest
from gliaflow_console.api import phantoms
from gliaflow_console.maps import MapsRequest, scan_maps
from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan
from gliaflow_console.view import ALONE, WITH_STAGES, ReadBounds, read_on_flair, view_image
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from sample_console import answer, stored
from sample_sequences import AFFINE, lesion, save, several_channels, without_lesion


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It sees T1 after contrast alone, and may lack T2."""
    return several_channels(
        tmp_path_factory.mktemp("of") / "three", ["flair", "t1ce", "t2"], sees="t1ce", optional=["t2"]
    )


@pytest.fixture
def settings(bundle: Path, tmp_path: Path) -> Settings:
    return Settings(bundle=bundle, console_folder=tmp_path / "out")


@pytest.fixture
def store(settings: Settings) -> Iterator[ScanStore]:
    with ScanStore(settings) as store:
        yield store


@pytest.fixture
def networks(settings: Settings) -> Networks:
    return Networks(settings)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of a patient. The lesion is in T1 after contrast alone, whose voxels have other places."""
    head = lesion(folder=tmp_path)
    save(tmp_path / "P1/P1_flair.nii.gz", without_lesion(head))
    moved = AFFINE.copy()
    moved[2, 3] = AFFINE[2, 2]
    nib.save(nib.Nifti1Image(head[:, :, 1:], moved), tmp_path / "P1/P1_t1ce.nii.gz")
    return tmp_path / "P1"


def send_folder(store: ScanStore, folder: Path) -> StoredScan:
    upload = store.new_upload()
    for path in folder.iterdir():
        upload.place(f"{folder.name}/{path.name}").write_bytes(path.read_bytes())
    (id,) = store.take(upload, alone=False).ids
    return stored(store, id)


def test_a_folder_is_one_scan_with_its_sequences_also_after_a_restart(settings: Settings, files: Path) -> None:
    with ScanStore(settings) as store:
        assert store.sequences == ("t1ce", "t2")
        scan = send_folder(store, files)
        assert (scan.name, scan.row()["sequences"]) == ("P1_flair", ["t1ce"])
    with ScanStore(settings) as store:
        assert (stored(store, scan.id).status, stored(store, scan.id).sequences) == ("queued", ("t1ce",))
        answer(store, stored(store, scan.id), "any")
    with ScanStore(settings) as store:
        assert (stored(store, scan.id).status, stored(store, scan.id).sequences) == ("ok", ("t1ce",))


def test_features_are_those_of_the_stages(networks: Networks, store: ScanStore, files: Path, bundle: Path) -> None:
    scan = answer(store, send_folder(store, files), networks.bundle.id)
    extracted = gliaflow.extract(files, bundle=bundle)
    assert extracted.tumour.any(), "T1 after contrast was seen"
    slices, manifest = networks.slices(store, scan), networks.bundle.manifest
    features = networks.features(slices, np.arange(len(extracted)), manifest.tap, cropped=manifest.cropped)
    assert (features == extracted.features).all()
    assert scan_maps(networks, store, scan, MapsRequest(slice=5))["slice"] == 5


def test_maps_say_which_sequence_is_not_there(networks: Networks, store: ScanStore, files: Path) -> None:
    scan = answer(store, send_folder(store, files), networks.bundle.id)
    item = store.item(scan.id)
    assert item is not None
    item.sequences["t1ce"].path.write_bytes(b"no image")
    with pytest.raises(UsageError, match="t1ce: the image cannot be shown: not a NIfTI file"):
        networks.slices(store, scan)
    (files / "P1_t1ce.nii.gz").unlink()
    scan = answer(store, send_folder(store, files), networks.bundle.id)
    with pytest.raises(UsageError, match="no feature maps: the networks read t1ce too, and the console has none"):
        networks.slices(store, scan)


def test_a_sequence_is_shown_on_the_voxels_of_the_flair(store: ScanStore, files: Path) -> None:
    item = store.item(send_folder(store, files).id)
    assert item is not None
    flair = nib.load(files / "P1_flair.nii.gz")
    placed = read_on_flair(item, "t1ce", WITH_STAGES)
    original = np.asarray(nib.load(files / "P1_t1ce.nii.gz").dataobj)
    assert (placed.volume[:, :, 0] == 0).all(), "the first slice of the FLAIR is outside"
    assert placed.volume[:, :, 1:] == pytest.approx(original, abs=0.1)
    shown = nib.Nifti1Image.from_bytes(gzip.decompress(view_image(placed)))
    assert shown.shape == flair.shape
    small = ReadBounds(ALONE.file_bytes, ALONE.volume_bytes, 1000)
    with pytest.raises(UsageError, match=r"t1ce: \d+ voxels are over this console's limit of 1000"):
        read_on_flair(item, "t1ce", small)


def test_a_phantom_has_the_sequences_that_the_bundle_reads(store: ScanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(folder: Path, grade: str, _: int, kinds: list[str], __: object) -> None:
        for kind in (*kinds, "seg"):
            save(folder / grade / "p" / f"p_{kind}.nii.gz", np.ones((4, 4, 4), np.float32))

    monkeypatch.setattr(phantoms, "_draw", draw)
    scan = stored(store, phantoms._send(store, "HGG", None))  # type: ignore[arg-type]
    assert (scan.drawn, scan.sequences) == ("HGG", ("t1ce", "t2"))
