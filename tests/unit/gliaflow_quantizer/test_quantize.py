"""``gliaflow quantize``: what it writes, what it refuses, and that an int8 bundle is a bundle like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small
from gliaflow_cli.main import app
from gliaflow_quantizer.phantom_cases import CHECK, phantom_cases
from gliaflow_quantizer.quantize import COHORT, PHANTOMS, objections
from gliaflow_quantizer.upsampling import without_transposed
from gliaflow_runtime.bundle.load import Bundle, demo_bundle, write_manifest
from gliaflow_runtime.bundle.manifest import BundleError
from typer.testing import CliRunner, Result

SEED = "142"  # its phantoms are small


def quantize(*arguments: object, seed: object = SEED) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments), "--scans", "1", "--seed", str(seed)])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients: two to calibrate on, two for the check."""
    return small.write_cohort(tmp_path_factory.mktemp("scans") / "cohort", 2, 2)


@pytest.fixture(scope="module")
def int8(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    result = quantize("demo", "--out", out, "--calibrate", cohort, seed=0)
    assert result.exit_code == 0, result.output or result.exception
    return Bundle(out)


def changed(folder: Path, change: object) -> Path:
    """A copy of the shipped bundle with another U-Net; None: without any."""
    demo = Bundle(demo_bundle())
    folder.mkdir()
    for name in demo.manifest.files:
        (folder / name).write_bytes(demo.read(name))
    (folder / "unet.onnx").unlink()
    if callable(change):
        model = onnx.load_model_from_string(demo.model("unet"))
        change({each.name: each for each in model.graph.initializer})
        onnx.save(model, folder / "unet.onnx")
    write_manifest(folder, demo.manifest.model_dump(mode="json", exclude={"schema_", "files"}))
    return folder


def test_the_new_bundle_has_an_int8_unet_and_says_how_it_came_about(int8: Bundle) -> None:
    demo, made = Bundle(demo_bundle()), int8.manifest.quantization
    assert int8.id.startswith("gliaflow-demo-int8@"), "the name tells it in every table and on every page"
    assert made is not None
    assert (made.source, made.source_sha256) == (demo.id, demo.sha256)
    assert (
        made.calibration == {"from": "BraTS 2018", "scans": 2, "slices": 16, "seed": 0, "leaks": 0} | made.calibration
    )
    assert set(int8.manifest.versions) == {"gliaflow", "onnx", "onnxruntime", "numpy"}
    assert int8.manifest.metrics == {}, "its own scores are nobody's: they were measured in fp32"
    assert (made.source_metrics, made.source_versions) == (demo.manifest.metrics, demo.manifest.versions)
    assert len(int8.model("unet")) < 0.4 * len(demo.model("unet"))
    kept = {name: digest for name, digest in demo.manifest.files.items() if not name.startswith("unet.")}
    assert kept.items() <= int8.manifest.files.items()
    assert set(int8.manifest.files) == {*kept, "unet.onnx"}, "no weights to fine-tune: they are those of fp32"
    assert "quantization" not in json.loads((demo.folder / "manifest.json").read_text())


def test_phantoms_have_the_sequences_that_a_bundle_reads() -> None:
    (case,) = phantom_cases(1, int(SEED), CHECK, ("flair", "t1ce"))
    (alone,) = phantom_cases(1, int(SEED), CHECK, ("flair",))
    assert (list(case.sequences), list(alone.sequences)) == (["t1ce"], [])
    assert case.scan.read() == alone.scan.read() != case.sequences["t1ce"].volume.read()


def test_the_changes_are_measured_on_phantoms_and_on_patients_that_did_not_calibrate(int8: Bundle) -> None:
    made = int8.manifest.quantization
    assert made is not None
    assert list(made.changes) == ["phantoms", "the cohort"]
    phantoms = made.changes["phantoms"]
    assert phantoms["scans"] == 1
    assert phantoms["dice"]["before"] > 0.5
    assert abs(phantoms["dice"]["after"] - phantoms["dice"]["before"]) < 0.01
    assert phantoms["agreement"] > 0.95
    assert 0 < phantoms["features_error"] < 0.2
    assert abs(phantoms["p_hgg"]["largest_change"]) < 0.1
    assert set(phantoms["critics_accuracy"]) == {"infogan", "reacgan"}
    assert made.objections == ()
    assert made.cohort_unchecked == ""


def test_a_copy_of_a_calibration_scan_checks_nothing_and_that_is_objected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phantoms are left out, as if none could be used."""
    monkeypatch.setattr("gliaflow_quantizer.quantize.phantom_cases", lambda *_: iter(()))
    cohort, out = small.write_cohort(tmp_path / "cohort", 1, 0), tmp_path / "out"
    copy = cohort / "HGG" / "H1"
    shutil.copytree(cohort / "HGG" / "H0", copy)
    for file in copy.iterdir():
        file.rename(copy / file.name.replace("H0", "H1"))
    allowed = quantize("demo", "--out", out, "--calibrate", cohort, "--allow")
    assert "the same voxels as H" in allowed.output
    assert "not checked on the cohort: of its patients with masks" in allowed.output
    assert "allowed: no scan could be checked" in allowed.output
    made = Bundle(out).manifest.quantization
    assert made is not None
    assert made.changes == {}
    assert len(made.objections) == 1
    assert made.cohort_unchecked == "of its patients with masks that did not calibrate, none could be used"


def test_a_low_dice_on_phantoms_counts_only_if_no_cohort_was_checked() -> None:
    low, good, worse = ({"dice": {"before": a, "after": b}} for a, b in ((0.05, 0.02), (0.8, 0.8), (0.8, 0.78)))
    assert [*objections({PHANTOMS: low, COHORT: good})] == []
    for changes, text in (
        ({}, "no scan could be checked"),
        ({PHANTOMS: low}, "on phantoms the mean Dice is 0.050 in fp32"),
        ({PHANTOMS: good, COHORT: low}, "on the cohort the mean Dice is 0.050 in fp32"),
        ({PHANTOMS: low, COHORT: worse}, "on the cohort the mean Dice falls from 0.800 to 0.780"),
        ({PHANTOMS: worse, COHORT: good}, "on phantoms the mean Dice falls from 0.800 to 0.780"),
    ):
        (objection,) = objections(changes)
        assert text in objection


def test_phantoms_calibrate_unless_a_cohort_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow_quantizer.quantize.CALIBRATION_SCANS", 1)
    result = quantize("demo", "--out", tmp_path / "new" / "bundle", "--json")
    printed = json.loads(result.stdout[result.stdout.index("{") :])
    bundle = Bundle(tmp_path / "new" / "bundle")
    assert printed["bundle"] == bundle.id
    assert printed["calibration"] == {"from": "phantoms", "scans": 1, "slices": 8, "seed": 142}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"], "nothing is left beside it"


def test_a_bundle_whose_masks_get_worse_is_not_written(cohort: Path, tmp_path: Path) -> None:
    """One channel is so large that the others vanish in its 8 bits; the next weights undo it in fp32."""

    def unbalance(weights: dict[str, onnx.TensorProto]) -> None:
        for name, where, factor in (
            ("encoder.0.0.weight", np.s_[0], 1e4),
            ("encoder.0.0.weight_bias", np.s_[0], 1e4),
            ("encoder.0.3.weight", np.s_[:, 0], 1e-4),
        ):
            array = onnx.numpy_helper.to_array(weights[name]).copy()
            array[where] *= factor
            weights[name].CopyFrom(onnx.numpy_helper.from_array(array, name))

    bundle, out = changed(tmp_path / "unbalanced", unbalance), tmp_path / "new" / "folder" / "out"
    refused = quantize(bundle, "--out", out, "--calibrate", cohort)
    assert isinstance(refused.exception, BundleError)
    assert "no bundle was written: on phantoms the mean Dice falls from" in str(refused.exception)
    assert "--allow" in str(refused.exception)
    assert not (tmp_path / "new").exists(), "no empty folders are left"


def test_what_cannot_be_quantised_is_refused_with_the_remedy(int8: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "flair.nii.gz").write_bytes(b"no scan")
    (empty / "table.csv").write_text("scan,patient,grade\nflair.nii.gz,P1,HGG\n")
    new = tmp_path / "new"
    twice = small.write_cohort(tmp_path / "twice", 1, 0)
    shutil.copytree(twice / "HGG" / "H0", twice / "HGG" / "h-0")
    for file in (twice / "HGG" / "h-0").iterdir():
        file.rename(file.with_name(file.name.replace("H0", "h-0")))
    for arguments, reason in (
        ((int8.folder, "--out", new), "its U-Net is int8 already (from gliaflow-demo@"),
        (("demo", "--out", tmp_path), "exists already: name another folder"),
        ((changed(tmp_path / "without", None), "--out", new), "has no U-Net (unet.onnx)"),
        (("demo", "--out", new, "--calibrate", empty / "table.csv"), "no scan of the cohort can be used"),
        (("demo", "--out", new, "--calibrate", tmp_path / "missing"), "no such folder or table"),
        (("demo", "--out", new, "--calibrate", twice), "the same patient's data may be in several parts"),
        (("demo", "--out", empty / "table.csv" / "new"), "no folder can be made in"),
    ):
        result = quantize(*arguments)
        assert reason in str(result.exception), result.output
        assert not new.exists()
    assert quantize("demo", "--out", new, seed=2**32).exit_code == 2, "it would draw another seed's phantoms"


def test_an_int8_unet_is_not_fine_tuned(int8: Bundle) -> None:
    pytest.importorskip("torch")
    from gliaflow_trainer.fine_tuning import unet_to_fine_tune
    from gliaflow_trainer.profiles import PROFILES

    with pytest.raises(BundleError, match=r"its U-Net is int8, and only gliaflow-demo@.* has weights in torch"):
        unet_to_fine_tune(int8.folder, PROFILES["demo"])


def test_transposed_convolutions_become_convolutions_with_the_same_results() -> None:
    model = onnx.load_model_from_string(Bundle(demo_bundle()).model("unet"))
    image = np.random.default_rng(0).random((2, 1, 128, 128), dtype=np.float32)
    written = without_transposed(model)
    before, after = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, {"image": image}) for each in (model, written)
    )
    kinds = {node.op_type for node in written.graph.node}
    assert "ConvTranspose" not in kinds
    assert "DepthToSpace" in kinds
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


def test_another_transposed_convolution_stays() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 2, 2), np.float32), "w")
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [weight]))
    assert [each.op_type for each in without_transposed(model).graph.node] == ["ConvTranspose"]
