"""Bundles: a file is used only if its digest matches, and errors name the file."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_proto import Geometry, Scan, SlicesMessage
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle, demo_bundle, find_bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.inference import Network
from gliaflow_runtime.stage import OtherBundle


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped bundle."""
    return shutil.copytree(demo_bundle(), tmp_path / "bundle")


def edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_shipped_bundle_is_complete_small_and_described():
    bundle = load_bundle(None)
    for network in ("unet", "generator-infogan", "critic-infogan", "classifier"):
        assert bundle.model(network)
    assert sum(file.stat().st_size for file in demo_bundle().iterdir()) < 6 * 2**20
    assert "not a clinical model" in bundle.manifest.notice.lower()
    assert {"seed", "profile"} <= bundle.manifest.training.keys()
    assert bundle.manifest.versions
    assert bundle.manifest.metrics


def test_a_changed_file_is_refused(folder):
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[1000] ^= 1
    (folder / "unet.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"unet\.onnx: its sha256"):
        Bundle(folder).model("unet")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "manifest.json").unlink(), "no such file"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
        (lambda f: edit(f, schema="gliaflow-bundle/9"), "schema"),
        (lambda f: edit(f, tap="enc9"), "tap: 'enc9'"),
        (lambda f: edit(f, name="../../etc"), "name"),
        (lambda f: edit(f, surprise=1), "surprise"),
        (lambda f: (f / "manifest.json").write_bytes(b" " * (2**20 + 1)), "over the limit"),
        (lambda f: shutil.rmtree(f), "no such file"),
    ],
)
def test_an_error_names_what_is_wrong_with_the_manifest(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(BundleError, match=reason):
        Bundle(folder)


def test_a_network_that_is_missing_or_outside_the_folder_is_refused(folder, tmp_path):
    outside = tmp_path / "outside.onnx"
    shutil.move(folder / "unet.onnx", outside)
    with pytest.raises(BundleError, match=r"unet\.onnx: no such file"):
        Bundle(folder).model("unet")
    (folder / "unet.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out"):
        Bundle(folder).model("unet")
    edit(folder, files={})
    with pytest.raises(BundleError, match="has no unet"):
        Bundle(folder).model("unet")


def test_the_id_changes_with_the_manifest(folder):
    before = Bundle(folder).id
    edit(folder, notice="another; not a clinical model")
    assert Bundle(folder).id != before


def test_a_network_that_only_computes_features_has_no_decoder():
    import onnx
    from gliaflow_runtime.inference import _cut

    bundle = load_bundle(None)
    whole = onnx.load_model_from_string(bundle.model("unet"))
    cut = onnx.load_model_from_string(_cut(bundle.model("unet"), ["enc5"], "unet.onnx"))
    assert len(cut.graph.node) < 0.7 * len(whole.graph.node)
    assert [output.name for output in cut.graph.output] == ["enc5"]


def test_an_error_names_a_missing_output():
    with pytest.raises(BundleError, match="has no output enc9"):
        Network(load_bundle(None), "unet", ["enc9"])


def test_weights_in_other_files_are_refused(folder):
    import hashlib

    import onnx

    model = onnx.load(folder / "classifier.onnx")
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    data = model.SerializeToString()
    (folder / "classifier.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(folder, files={**manifest["files"], "classifier.onnx": hashlib.sha256(data).hexdigest()})
    with pytest.raises(BundleError, match="other files"):
        Network(Bundle(folder), "classifier", ["logit"])


def test_features_of_another_tap_are_extracted_but_not_graded():
    from gliaflow_classifier.grader import Grader
    from gliaflow_extractor.extractor import UNetSession

    bundle = Bundle(demo_bundle(), tap="dec2")
    features, _ = UNetSession(bundle)(np.zeros((1, 1, *bundle.manifest.input.size), np.float32))
    assert features.shape == (1, *bundle.tap_shape)
    assert bundle.tap_shape == (32, 16, 16), "a quarter of the tap's map, cropped to the tumour"
    assert bundle.slices_per_part(2**18) > Bundle(demo_bundle()).slices_per_part(2**18)
    with pytest.raises(BundleError, match="was fitted on dec3, not on dec2"):
        Grader(bundle)
    with pytest.raises(BundleError, match="tap: 'enc9' is not one of"):
        Bundle(demo_bundle(), tap="enc9")


def test_bundle_sha256_pins_a_bundle():
    """Someone who changes the folder can also change the manifest, but not the pinned digest."""
    manifest = demo_bundle() / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert load_bundle(None, sha256=digest).id.endswith(digest[:12])
    other = "0" * 64
    with pytest.raises(BundleError, match=f"manifest.json: its sha256 is {digest}, but bundle_sha256 pins {other}"):
        load_bundle(None, sha256=other)


def test_slices_that_were_prepared_for_another_bundle_are_refused():
    """While stages switch to another bundle one by one, no scan may be processed by both bundles."""
    bundle = load_bundle(None)
    geometry = Geometry(
        affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        shape=[128, 128, 1],
        orientation=[0, 1, 1, 1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=[128, 128],
        slices=[0],
    )
    image = np.zeros((1, 1, 128, 128), np.float16)
    slices = SlicesMessage(id="s", scan=Scan(id="s"), geometry=geometry, image=image, bundle="another@0")
    extractor = Extractor(bundle, UNetSession(bundle, threads=1))
    with pytest.raises(OtherBundle, match=r"another@0.* give all stages the same bundle"):
        extractor.handle(slices, Delivery("q", "slices", b""))
    for name in ("", bundle.id):
        (features,) = extractor.handle(replace(slices, bundle=name), Delivery("q", "slices", b"")).publish
        assert features.bundle == bundle.id


class TestFindBundle:
    """A bundle is a path, or the name of a folder here or in GLIAFLOW_BUNDLES, or ``demo``."""

    @pytest.fixture(autouse=True)
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        for name in ("mine", "yours"):
            shutil.copytree(demo_bundle(), tmp_path / "bundles" / name)

    def test_a_name_is_found_here_and_in_the_folder_of_bundles(self, tmp_path: Path) -> None:
        assert find_bundle("mine", tmp_path / "bundles") == tmp_path / "bundles" / "mine"
        shutil.copytree(demo_bundle(), "other")
        assert find_bundle("other", tmp_path / "bundles") == Path("other")
        assert load_bundle("mine", bundles=tmp_path / "bundles").folder == tmp_path / "bundles" / "mine"

    def test_a_path_is_that_path(self, tmp_path: Path) -> None:
        assert find_bundle("../bundles/mine") == Path("../bundles/mine")
        assert find_bundle(tmp_path / "bundles" / "mine") == tmp_path / "bundles" / "mine"

    def test_demo_is_the_shipped_one(self) -> None:
        assert find_bundle("demo") == find_bundle(None) == demo_bundle()

    def test_an_unknown_name_is_refused_with_the_names_that_are_there(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"no bundle 'ours': .*/here or in .*/bundles \(which has mine, yours\)"):
            find_bundle("ours", tmp_path / "bundles")
        with pytest.raises(BundleError, match=r"no bundle 'ours': .*/here; name a folder"):
            find_bundle("ours")

    @pytest.mark.parametrize("name", ["mine", "demo"])
    def test_a_name_that_two_bundles_have_is_refused(self, name: str, tmp_path: Path) -> None:
        shutil.copytree(demo_bundle(), name)
        with pytest.raises(BundleError, match=rf"bundle '{name}' may be .*/here/{name} or .*: write the path"):
            find_bundle(name, tmp_path / "bundles")
        assert find_bundle(f"./{name}", tmp_path / "bundles") == Path(name)
