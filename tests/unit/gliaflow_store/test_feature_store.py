"""The feature store: recorded features are read back exactly and in bounded memory, and bad files are reported."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gliaflow_plugins.classifiers import CNN, CNNOptions
from gliaflow_plugins.contracts import FeatureSource, FitContext, FitSamples
from gliaflow_plugins.features import ArrayFeatures, Joined, channel_scale
from gliaflow_proto import Scan
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, StoredPart, StoreError, part_path, write_part
from safetensors.numpy import load_file, save_file

SHAPE = (4, 3, 5)
BUNDLE = FeatureOrigin("b@1", "enc5", SHAPE)


def write(folder, scan, part=(0, 1), n=3, label="HGG", origin=BUNDLE, patient=None, seed=0):
    """Write a part of random features fp16 [n, C, H, W]; slice i has i tumour pixels. Returns path and features.

    Replaces an earlier file of the part, which ``write_part`` does not.
    """
    part_path(folder, scan, part[0]).unlink(missing_ok=True)
    rng = np.random.default_rng([seed, *scan.encode(), part[0]])
    features = rng.random((n, *origin.shape)).astype(np.float16)
    mask = (np.arange(48).reshape(1, 6, 8) < np.arange(n)[:, None, None]).astype(np.uint8)
    about = Scan(id=scan, name=f"{scan}.nii", patient=f"of {scan}" if patient is None else patient, label=label)
    path = write_part(folder, StoredPart(about, part, origin, features, mask, range(10 * part[0], 10 * part[0] + n)))
    return path, features


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Three scans: HGG in two parts of 3 and 2 slices, LGG, HGG."""
    write(tmp_path, "a", (1, 2), n=2)
    write(tmp_path, "c")
    write(tmp_path, "b", label="LGG")
    write(tmp_path, "a", (0, 2))
    return FeatureStore(tmp_path)


def test_samples_are_ordered_by_scan_and_part_with_their_patients_and_labels(store):
    assert store.scans.tolist() == ["a"] * 5 + ["b"] * 3 + ["c"] * 3
    assert store.patients.tolist() == [f"of {scan}" for scan in store.scans]
    assert store.labels.tolist() == [0] * 5 + [1] * 3 + [0] * 3
    assert store.slices.tolist() == [0, 1, 2, 10, 11, 0, 1, 2, 0, 1, 2]
    assert store.tumour.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2]
    assert (store.shape, store.classes, store.bundle, store.tap) == (SHAPE, ("HGG", "LGG"), "b@1", "enc5")
    assert isinstance(store, FeatureSource)
    assert (len(store), store.problems) == (11, [])


def test_features_and_masks_are_read_exactly_in_the_requested_order(store):
    parts = [write(store.folder, *which)[1] for which in (("a", (0, 2)), ("a", (1, 2), 2))]
    expected = np.concatenate(
        [*parts, *(write(store.folder, scan, label=x)[1] for scan, x in (("b", "LGG"), ("c", "HGG")))]
    )
    indices = np.array([10, 0, 4, 4, 3, 7])
    batch = store.batch(indices)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, expected[indices].astype(np.float32))
    masks = store.masks(indices)
    assert (masks.dtype, masks.shape) == (np.uint8, (6, 6, 8))
    assert masks.sum(axis=(1, 2)).tolist() == store.tumour[indices].tolist()
    assert store.batch(np.array([], dtype=np.int64)).shape == (0, *SHAPE)


def test_any_safetensors_reader_reads_a_file(tmp_path):
    path, features = write(tmp_path, "a")
    tensors = load_file(path)
    np.testing.assert_array_equal(tensors["features"], features)
    assert {name: str(t.dtype) for name, t in tensors.items()} == {
        "features": "float16", "mask": "uint8", "slices": "int32", "tumour": "int32",
    }  # fmt: skip


def test_selected_samples_and_other_labels_are_views(store):
    some = store.select(store.tumour > 0).select(np.array([0, 3, 4]))
    assert isinstance(some, FeatureSource)
    assert some.scans.tolist() == ["a", "b", "b"]
    np.testing.assert_array_equal(some.batch(np.array([2, 0])), store.batch(np.array([7, 1])))
    relabelled = some.with_labels(np.array([1, 0, 1]), ("tumour", "none"))
    assert (relabelled.labels.tolist(), relabelled.classes) == ([1, 0, 1], ("tumour", "none"))
    np.testing.assert_array_equal(relabelled.batch(np.arange(3)), some.batch(np.arange(3)))
    assert (some.labels.tolist(), some.classes) == ([0, 1, 1], ("HGG", "LGG"))  # unchanged
    for labels in (np.array([0, 1]), np.array([0, 1, 2]), np.array([0, 1, -1])):
        with pytest.raises(ValueError, match="one for each of 3 samples"):
            some.with_labels(labels, ("tumour", "none"))


def test_synthetic_samples_can_be_joined_to_real_ones(store):
    synthetic = ArrayFeatures(np.full((4, *SHAPE), 7, np.float16), np.array([1, 1, 0, 1]), store.classes)
    both = Joined(store, synthetic, store)
    assert isinstance(both, FeatureSource)
    assert len(both) == 26
    assert both.labels.tolist() == [*store.labels, 1, 1, 0, 1, *store.labels]
    batch = both.batch(np.array([14, 10, 11, 15, 0]))
    np.testing.assert_array_equal(batch[[0, 2]], np.full((2, *SHAPE), 7))
    np.testing.assert_array_equal(batch[[1, 3, 4]], store.batch(np.array([10, 0, 0])))
    with pytest.raises(ValueError, match="one shape"):
        Joined(store, ArrayFeatures(np.ones((1, 4, 3, 3)), np.zeros(1, int), store.classes))


def test_training_from_the_store_equals_training_from_memory(tmp_path):
    pytest.importorskip("torch")
    from gliaflow_plugins.generators.acgan import ACGAN, ACGANOptions
    from gliaflow_plugins.networks.cnn import slice_logits

    for number in range(6):
        write(
            tmp_path, f"s{number}", n=8, label="LGG" if number % 2 else "HGG", origin=FeatureOrigin("b", "t", (6, 8, 8))
        )
    store = FeatureStore(tmp_path)
    everything = np.arange(len(store))
    in_memory = ArrayFeatures(store.batch(everything).astype(np.float16), store.labels, store.classes)
    train, val = everything[:32], everything[32:]
    options = ACGANOptions(ngf=4, ndf=4, nz=4, steps=4)
    logits, histories = [], []
    for source in (store, in_memory):
        samples = FitSamples(train, val, store.patients.tolist(), "balanced")
        module = CNN().fit(source, CNNOptions(epochs=2), samples, FitContext(0)).module
        logits.append(slice_logits(module, source, val))
        histories.append(ACGAN().fit(source, options, FitContext(0)).history)
    np.testing.assert_array_equal(*logits)
    assert histories[0] == histories[1]


def test_memory_does_not_grow_with_the_store(tmp_path):
    large = FeatureOrigin("b", "dec3", (32, 64, 64))  # 262 KB a sample, 16.8 MB in all
    for number in range(32):
        write(tmp_path, f"s{number}", n=2, origin=large)
    tracemalloc.start()
    store = FeatureStore(tmp_path)
    channel_scale(store)
    for indices in np.random.default_rng(0).permutation(len(store)).reshape(-1, 4):
        store.batch(indices)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # channel_scale uses 16 samples at once, as float32 and squared: 16.8 MB


def test_the_channel_scale_reads_about_a_thousand_samples_at_most():
    class Counted(ArrayFeatures):
        read = 0

        def batch(self, indices):
            self.read += len(indices)
            return super().batch(indices)

    features = np.random.default_rng(0).random((5000, 2, 4, 4), dtype=np.float32) * np.array([1, 9])[:, None, None]
    few, many = (Counted(features[:n], np.zeros(n, int), ("HGG", "LGG")) for n in (1000, 5000))
    for source in (few, many):
        np.testing.assert_allclose(channel_scale(source), np.sqrt(1 / 3) * np.array([1, 9]), rtol=0.02)
    assert (few.read, many.read) == (1000, 1024)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def other_tensors(path):
    save_file({"weight": np.ones(3)}, path, {"schema": "gliaflow-store/1"})


def as_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut_off, "cut short"),
        (lambda path: path.write_bytes(b""), "not a safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 100), "not a safetensors file"),
        (lambda path: path.write_bytes((8).to_bytes(8, "little") + b"{" * 8), "not a file of a feature store"),
        (lambda path: save_file({"weight": np.ones(3)}, path), "not a file of a feature store"),
        (other_tensors, "not a file of a feature store"),
        (as_a_folder, "Is a directory"),
        (Path.unlink, "1 of 2 parts are missing"),
        (lambda path: write(path.parent, "a", (1, 2), patient="another"), "different patients, labels or counts"),
        (lambda path: write(path.parent, "a", (1, 3)), "different patients, labels or counts"),
        (lambda path: write(path.parent, "a", (1, 2), label="GBM"), "label 'GBM' is not one of HGG, LGG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_files_are_reported_and_left_out(store, spoil, reason):
    spoil(write(store.folder, "a", (1, 2), n=2)[0])
    left = FeatureStore(store.folder)
    assert sorted(set(left.scans)) == ["b", "c"]  # all parts of an incomplete scan are left out
    assert any(reason in problem for problem in left.problems)


def test_a_copied_file_counts_once(store):
    (store.folder / "zz-copy.safetensors").write_bytes(next(store.folder.iterdir()).read_bytes())
    again = FeatureStore(store.folder)
    assert len(again) == len(store)
    assert "a copy of" in again.problems[0]


def test_a_scan_without_a_patient_counts_as_a_separate_patient(tmp_path):
    write(tmp_path, "a", patient="")
    write(tmp_path, "b", patient="")
    assert set(FeatureStore(tmp_path).patients) == {"a", "b"}


def test_features_of_different_origin_are_refused(store):
    for other in (
        FeatureOrigin("b@2", "enc5", SHAPE),
        FeatureOrigin("b@1", "dec3", SHAPE),
        FeatureOrigin("b@1", "enc5", (4, 3, 3)),
    ):
        path, _ = write(store.folder, "z", origin=other)
        with pytest.raises(StoreError, match=f"different origin.*{other.tap} of {other.bundle}"):
            FeatureStore(store.folder)
        path.unlink()


def test_a_store_without_a_complete_scan_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        FeatureStore(tmp_path / "gone")
    write(tmp_path, "a", (0, 2))
    with pytest.raises(StoreError, match=r"no complete labelled scan.*scan a: 1 of 2 parts are missing"):
        FeatureStore(tmp_path)


def test_an_error_names_a_file_that_was_changed_or_deleted_after_opening(store):
    for path in store.folder.iterdir():
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(StoreError, match="has become shorter"):
        store.batch(np.arange(11))
    for path in store.folder.iterdir():
        path.unlink()
    with pytest.raises(StoreError, match="No such file"):
        store.batch(np.arange(1))


def test_file_names_do_not_contain_untrusted_text(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for scan in ("../../etc/passwd", "/root/x", "a\0b", "C:\\x", "é" * 4000):
        assert write(folder, scan)[0].parent == folder
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(FeatureStore(folder)) == 15


def test_a_written_part_is_never_replaced(tmp_path):
    path, first = write(tmp_path, "a", seed=1)
    before = path.read_bytes()
    scan = Scan(id="a", label="LGG")
    with pytest.raises(FileExistsError):
        write_part(tmp_path, StoredPart(scan, (0, 1), BUNDLE, first, np.zeros((3, 6, 8), np.uint8), range(3)))
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, "a")
    assert [*tmp_path.iterdir()] == []


def test_a_killed_writer_leaves_no_incomplete_file(tmp_path):
    code = """
import itertools, sys
from pathlib import Path
import numpy as np
from gliaflow_proto import Scan
from gliaflow_store.part_file import FeatureOrigin, StoredPart, write_part
features, mask = np.ones((16, 64, 40, 40), np.float16), np.zeros((16, 6, 8), np.uint8)
for number in itertools.count():
    scan = Scan(id=str(number), label="HGG")
    origin = FeatureOrigin("b", "t", features.shape[1:])
    write_part(Path(sys.argv[1]), StoredPart(scan, (0, 1), origin, features, mask, range(16)))
"""
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        writer = subprocess.Popen([sys.executable, "-c", code, str(folder)])
        while len(list(folder.glob("*.safetensors"))) < 5:
            assert writer.poll() is None
        writer.kill()
        writer.wait()
        store = FeatureStore(folder)
        assert (len(store), store.problems) == (16 * len(list(folder.glob("*.safetensors"))), [])
        assert (store.batch(np.arange(len(store))) == 1).all()
