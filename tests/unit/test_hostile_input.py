"""Untrusted input: bombs, false sizes and paths outside a folder are refused by name, quickly and in little memory."""

import gzip
import hashlib
import json
import random
import struct
import time
import tracemalloc
from contextlib import contextmanager

import lz4.block
import msgpack
import nibabel as nib
import numpy as np
import onnx
import pytest
from fuzz.tiny import networks, write_bundle
from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.slices import prepare
from gliaflow_proto import Geometry, ProtocolError, decode, read_origin, restore, unpack_tensor
from gliaflow_proto.fragments import outline
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError, InputSpec
from gliaflow_runtime.inference import Network
from sample_messages import FEATURES, GEOMETRY, ONE_OF_EACH, SCAN_MESSAGE, SLICES, changed

GRADED, PREDICTION = ONE_OF_EACH[3:5]
MIB = 2**20


@contextmanager
def at_most(mib, seconds=5.0):
    """Limits the memory and the CPU time of a block."""
    started = time.process_time()
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < mib * MIB, f"{peak / MIB:.1f} MiB"
    assert time.process_time() - started < seconds


# messages


def lz4_tensor(dtype, shape, data):
    return {"dtype": dtype, "shape": shape, "encoding": "lz4", "data": lz4.block.compress(data, store_size=False)}


def test_lz4_bomb_in_a_tensor_is_not_unpacked():
    bomb = lz4_tensor("FP16", [1, 1, 64 * MIB], bytes(128 * MIB))
    assert len(bomb["data"]) < MIB
    body = changed(SLICES, tensors__image=bomb)
    with at_most(1), pytest.raises(ProtocolError, match=r"tensors\.image\.shape: .* over the limit"):
        decode(body)


def test_limit_applies_to_all_tensors_of_a_message_together():
    half = lz4_tensor("UINT8", [1, 1, 40 * MIB], bytes(40 * MIB))
    features = {**half, "dtype": "FP16", "shape": [1, 1, 1, 20 * MIB]}
    body = changed(FEATURES, tensors__features=features, tensors__mask=half)
    with at_most(100), pytest.raises(ProtocolError, match=r"tensors\.mask\.shape: .* over the limit"):
        decode(body)


@pytest.mark.parametrize("length", [0, 1, 99, 101, 10**6])
def test_lz4_block_with_another_length_than_the_shape_is_refused(length):
    tensor = lz4_tensor("UINT8", [length], bytes(100))
    with at_most(2), pytest.raises(ProtocolError, match="data"):
        unpack_tensor(tensor)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"\x81\xa1x" * 300 + b"\xc0", "over 256 arrays and maps"),
        (b"\x91" * 10**6 + b"\xc0", "not a msgpack message"),
        (changed(SLICES, scan__name=msgpack.ExtType(5, b"x")), "scan.name: a msgpack extension type"),
        (changed(SLICES, scan__name=msgpack.Timestamp(1, 2)), "scan.name: a msgpack extension type"),
        (msgpack.packb({}) + b"\xc0", "not a msgpack message"),  # bytes after the message
        (b"\x81\xa6schema\xa2\xff\xfe", r"schema: '\\udcff"),  # a text that is not UTF-8
        (b"\x81\xa6schema\xa3\xed\xa0\x80", "schema: "),  # half a surrogate pair
        (b"\x81" * 1024 + b"\xdd\xff\xff\xff\xff", "not a msgpack message"),
        (b"\xc6\xff\xff\xff\xff", "not a msgpack message"),  # a length of four gigabytes without data
        (changed(SLICES, scan__attempt=2**64 - 1), "scan.attempt"),
        (changed(SLICES, scan__attempt=-1), "scan.attempt"),
        (changed(SLICES, part=[2**64 - 2, 2**64 - 1]), "part: expected"),
        (changed(SLICES, part=[True, 2]), r"part\[0\]: expected an integer, got a boolean"),
        (changed(SLICES, geometry__shape=[2**64 - 1, 1, 1]), "geometry.shape"),
        (changed(SLICES, geometry__slices=[2**64 - 1]), "geometry.slices"),
        (changed(SLICES, geometry__slices=[-1]), "geometry.slices"),
        (changed(SLICES, geometry__origin=[float("inf"), 0.0]), "geometry.origin"),
        (changed(SLICES, geometry__origin=[1e300, 0.0]), "geometry.origin"),
        (changed(SLICES, geometry__step=[5e-324, 1.0]), "geometry.step"),
        (changed(SLICES, geometry__step=[float("nan"), 1.0]), "geometry.step"),
        (changed(SLICES, geometry__affine=[1e308] * 16), "geometry.affine"),
        (changed(SLICES, geometry__affine=[1.0] * 16), "geometry.affine: its voxels have no volume"),
        (changed(SLICES, geometry__affine=[2**64 - 1] * 16), "geometry.affine"),
        (changed(SLICES, kind="x" * 60_000), "kind: 'xxx"),
        (changed(SLICES, schema={"a": ["x" * 60_000]}), "schema: a map"),
        (changed(SLICES, tensors__image__dtype="FP32"), "tensors.image"),
        (
            changed(FEATURES, tensors__mask={"dtype": "FP16", "shape": [2, 8, 4], "data": bytes(128)}),
            "tensors.mask: float16",
        ),
        (
            changed(GRADED, tensors__logit={"dtype": "FP64", "shape": [], "data": bytes(8)}),
            "tensors.logit: float64 \\[\\]",
        ),
        (changed(PREDICTION, affine=[1.0]), "affine: expected 16"),
        (changed(PREDICTION, p_hgg=1.5), "p_hgg"),
        (
            changed(PREDICTION, tensors__mask={"dtype": "UINT8", "shape": [40000, 1, 1], "data": bytes(40000)}),
            "tensors.mask",
        ),
    ],
)
def test_invalid_message_is_refused_with_the_field_in_a_short_sentence(body, named):
    with at_most(16), pytest.raises(ProtocolError, match=named) as refused:
        decode(body)
    assert len(str(refused.value)) < 1000


def test_field_of_many_megabytes_is_reported_briefly():
    body = changed(SLICES, id=bytes(7 * MIB))
    with at_most(9), pytest.raises(ProtocolError, match="id: expected text, got binary data") as refused:
        decode(body)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x81\xa4scan" * 10_000,
        b"\x82\xa4kind\xdd\xff\xff\xff\xff" + b"\xdd\xff\xff\xff\xff" * 1000,
        b"\x81\xa4scan\xdf\xff\xff\xff\xff" + b"\xa0\x90" * MIB,
        b"\x81\xdd\xff\xff\xff\xff",
        b"\x81\xc6\xff\xff\xff\xff",
        b"\x81\xa4scan\x81\xa2id\xc6\x00\x20\x00\x00" + bytes(2 * MIB),
        b"\x81\xa4scan\x81\xaasubmission\xc7\xff\x05" + bytes(255),
        b"\xdf\x7f\xff\xff\xff" + b"\xa1a\x81\xa1b\x81\xa1c\xc0" * 2**17,
    ],
)
def test_reading_what_is_intact_of_a_refused_message_takes_one_copy_of_its_bytes(bomb):
    with at_most(4, seconds=1):
        origin = read_origin(bomb)
        lines = outline(bomb)
    assert (origin.scan, origin.submission) == ("", None)
    assert len(lines) <= 102
    assert max((len(line) for line in lines), default=0) < 400


def test_last_value_of_a_repeated_key_counts():
    """As in every msgpack reader. A message is decoded once, so no other code can see the first value."""
    body = changed(SCAN_MESSAGE)
    twice = bytes([body[0] + 1]) + body[1:] + msgpack.packb("id") + msgpack.packb("other")
    assert decode(twice).id == "other"


def test_restoring_a_mask_takes_little_more_memory_than_the_scans_grid():
    geometry = Geometry(**{**vars(GEOMETRY), "shape": [512, 512, 400], "slices": [7], "size": [8, 8]})
    with at_most(110):
        restored = restore(np.ones((1, 8, 8), np.uint8), geometry)
    assert restored.shape == (512, 512, 400)


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), 1e300])
def test_logit_that_no_network_returns_is_refused(logit):
    from gliaflow_classifier.assembler import Assembler
    from gliaflow_runtime.broker.interface import Delivery

    tensor = {"dtype": "FP64", "shape": [2], "data": struct.pack("<2d", logit, -logit)}
    bundle = load_bundle(None)
    mask = {"dtype": "UINT8", "shape": [2, 128, 128], "data": bytes(2 * 128 * 128)}
    body = changed(GRADED, bundle=bundle.id, geometry__size=[128, 128], tensors={"logit": tensor, "mask": mask})
    with pytest.raises(ProtocolError, match=r"tensors\.logit"):
        Assembler(bundle, timeout_s=60).handle(decode(body), Delivery("q", "graded", body))


# scans

SPEC = InputSpec(size=(48, 48), spacing=(5, 5))


def header(shape, dtype=np.uint8, zooms=(1.0, 1.0, 1.0)):
    fields = nib.Nifti1Header()
    fields.set_data_shape(shape)
    fields.set_data_dtype(dtype)
    fields.set_zooms([*zooms, 1.0][: len(shape)])
    fields["sform_code"] = 1
    fields.set_sform(np.diag([*zooms, 1.0]))
    fields["vox_offset"] = 352
    fields["magic"] = b"n+1"
    return fields.binaryblock + bytes(4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_header_of_the_largest_volume_with_a_hundred_bytes_after_it_is_cut_short(pack):
    data = pack(header((512, 512, 1024)) + bytes(100))
    with at_most(2), pytest.raises(NiftiError, match="cut short: 100 of 268435456 bytes"):
        read_nifti(data)


def test_volume_over_the_limit_is_refused_from_its_header():
    with at_most(2), pytest.raises(NiftiError, match="over the limit of 1073741824 bytes"):
        read_nifti(header((512, 512, 1024), np.float64))


def test_gzip_bomb_of_many_members_is_unpacked_only_to_the_size_in_its_header():
    first = gzip.compress(header((40, 48, 12)) + bytes(40 * 48 * 12))
    bomb = first + gzip.compress(bytes(50 * MIB), 1) * 20
    with at_most(4, seconds=1):
        read_nifti(bomb)


def test_gzip_file_with_too_many_empty_members_is_refused():
    bomb = gzip.compress(b"") * 400_000
    with at_most(1), pytest.raises(NiftiError, match="over 32768 members"):
        read_nifti(bomb)


def test_only_the_chosen_volume_of_a_4d_bomb_is_held():
    data = gzip.compress(header((64, 64, 32, 100)) + bytes(64 * 64 * 32 * 100), 1)
    with at_most(4):
        read_nifti(data, "99")


def test_padding_after_the_last_gzip_member_is_accepted():
    volume = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    packed = gzip.compress(nib.Nifti1Image(volume, np.eye(4)).to_bytes())
    np.testing.assert_array_equal(read_nifti(packed + bytes(512))[0], volume)


def test_wrong_gzip_checksum_is_reported():
    packed = bytearray(gzip.compress(header((4, 4, 4)) + bytes(64)))
    packed[-8] ^= 1
    with pytest.raises(NiftiError, match="not a valid gzip file"):
        read_nifti(bytes(packed))


def test_voxels_are_refused_if_each_pixel_would_average_thousands_of_them():
    with pytest.raises(NiftiError, match="pixdim"):
        read_nifti(header((512, 512, 8), zooms=(0.01, 0.01, 1.0)) + bytes(512 * 512 * 8))


def test_extreme_and_non_finite_voxels_give_finite_slices():
    rng = np.random.default_rng(0)
    volume = np.zeros((20, 24, 6))
    volume[4:16, 4:20] = rng.normal(100, 5, (12, 16, 6))
    for extreme in (1e300, -1e300, 3e38, -3e38, np.inf, -np.inf, np.nan, 1e-300):
        spoilt = volume.copy()
        spoilt[rng.integers(20, size=9), rng.integers(24, size=9), rng.integers(6, size=9)] = extreme
        assert np.isfinite(prepare(spoilt, np.diag([10.0, 10, 12, 1]), SPEC).image).all()


# bundles


@pytest.fixture
def tiny(tmp_path):
    return write_bundle(tmp_path).folder


def edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def put(folder, name, data):
    """Replace a network and its digest, which the sender of a bundle can always do."""
    (folder / f"{name}.onnx").write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files={**files, f"{name}.onnx": hashlib.sha256(data).hexdigest()})


SHA = "0" * 64


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        (b"[" * 500_000, "the file|recursion"),
        (b'{"training":' * 80_000, "the file|recursion"),
        (b'{"schema": 1' + b"0" * 1_000_000 + b"}", "schema|number"),
        (b"\xff\xfe{}", "the file"),
        (b"null", "the file"),
        (b'{"schema": "\\ud800"}', "the file|schema"),
    ],
)
def test_malformed_or_excessively_nested_manifest_is_refused(tiny, manifest, named):
    (tiny / "manifest.json").write_bytes(manifest)
    with at_most(32), pytest.raises(BundleError, match=named) as refused:
        Bundle(tiny)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "../evil.onnx",
        "/etc/passwd",
        "a/b.onnx",
        "a\\b.onnx",
        "a\0.onnx",
        "..",
        ".hidden",
        "",
        "é.onnx",
        "x" * 200,
        "C:x",
    ],
)
def test_file_names_with_paths_or_special_characters_are_refused(tiny, name):
    edit(tiny, files={name: SHA})
    with pytest.raises(BundleError, match="files"):
        Bundle(tiny)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"unet.onnx": SHA, "UNET.onnx": SHA}},
        {"files": {"unet.onnx": "not a digest"}},
        {"files": {"unet.onnx": SHA.upper() + "g"}},
        {"files": {f"{n}.onnx": SHA for n in range(1000)}},
        {"taps": {"../tap": (1, 1, 1)}},
        {"taps": {"tap": (0, 1, 1)}},
        {"taps": {"tap": (2**40, 1, 1)}},
        {"generators": {"../../g": {"options": {}, "noise": 3}}},
        {"generators": {"g": {"options": {}, "noise": 2**40}}},
        {"input": {"size": (10**9, 10**9)}},
        {"input": {"size": (0, 8)}},
        {"input": {"spacing": (0.0, 1.0)}},
        {"input": {"spacing": (1e-300, 1.0)}},
        {"input": {"spacing": (float("nan"), 1.0)}},
        {"input": {"mean": float("inf")}},
        {"input": {"std": 1e-300}},
        {"name": "../../etc"},
    ],
)
def test_invalid_numbers_and_names_in_a_manifest_are_refused_without_using_memory(tiny, changes):
    edit(tiny, **changes)
    with at_most(4), pytest.raises(BundleError, match=next(iter(changes))):
        Bundle(tiny)


def test_last_value_of_a_repeated_key_in_a_manifest_counts(tiny):
    """One parser reads the manifest, and the bundle's id covers all its bytes."""
    text = (tiny / "manifest.json").read_text()
    (tiny / "manifest.json").write_text(text.replace("{", '{"name": "first",', 1))
    assert Bundle(tiny).manifest.name == "tiny"


def test_bundle_of_a_later_schema_is_refused_with_both_versions(tiny):
    edit(tiny, schema="gliaflow-bundle/2", surprise=1)
    with pytest.raises(BundleError, match=r"schema: 'gliaflow-bundle/2', but this gliaflow reads 'gliaflow-bundle/1'"):
        Bundle(tiny)
    edit(tiny, schema="gliaflow-bundle/1")
    with pytest.raises(
        BundleError, match="surprise: this gliaflow does not know this field: is the bundle of a later version"
    ):
        Bundle(tiny)


def external(tensor):
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def in_an_initializer(model):
    external(model.graph.initializer[0])


def in_a_constant(model):
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32))
    external(tensor)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def in_a_branch(model):
    branch = onnx.GraphProto(name="b")
    external(branch.initializer.add(name="w"))
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def in_a_function(model):
    function = model.functions.add(name="f", domain="d")
    tensor = onnx.TensorProto()
    external(tensor)
    function.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def in_a_sparse_initializer(model):
    external(model.graph.sparse_initializer.add().values)


def by_address(model):
    """onnxruntime would read this as an address in its own memory."""
    tensor = model.graph.initializer[0]
    external(tensor)
    tensor.external_data[0].value = "*/_ORT_MEM_ADDR_/*"


def without_the_external_flag(model):
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


@pytest.mark.parametrize(
    "hide",
    [
        in_an_initializer,
        in_a_constant,
        in_a_branch,
        in_a_function,
        in_a_sparse_initializer,
        by_address,
        without_the_external_flag,
    ],
)
def test_references_to_external_data_are_refused_in_every_part_of_a_network(tiny, hide):
    model = onnx.load_model_from_string(networks()["classifier"])
    hide(model)
    put(tiny, "classifier", model.SerializeToString())
    with pytest.raises(BundleError, match="keeps weights in other files"):
        Network(Bundle(tiny), "classifier", ["logit"])


@pytest.mark.parametrize("data", [b"", b"\xff" * 99, b"\x08" * 10_000, networks()["classifier"][:50]])
def test_file_that_is_not_a_network_is_refused_by_name(tiny, data):
    put(tiny, "classifier", data)
    with pytest.raises(BundleError, match=r"classifier\.onnx"):
        Network(Bundle(tiny), "classifier", ["logit"])


def test_network_whose_shape_differs_from_the_manifest_is_refused_at_start(tiny):
    from gliaflow_classifier.grader import Grader
    from gliaflow_extractor.extractor import UNetSession

    put(tiny, "classifier", networks()["critic-g"].replace(b"class_logits", b"logit"))
    put(tiny, "unet", networks()["unet"].replace(b"image", b"imago"))
    with pytest.raises(BundleError, match=r"unet\.onnx: takes"):
        UNetSession(Bundle(tiny))
    edit(tiny, taps={"tap": (7, 4, 4)})
    with pytest.raises(BundleError, match=r"classifier\.onnx"):
        Grader(Bundle(tiny))


# fuzzing, with few inputs


@pytest.mark.parametrize("name", ["messages", "nifti", "bundle", "dicom"])
def test_a_few_hundred_inputs_of_each_fuzz_target_pass(name):
    import importlib

    target = importlib.import_module(f"fuzz.{name}")
    rng = random.Random(1)
    seeds = target.seeds()
    for number in range(300):
        data = seeds[number % len(seeds)]
        for _ in range(number % 4):
            data = target.mutate(data, rng)
        target.run(data)
