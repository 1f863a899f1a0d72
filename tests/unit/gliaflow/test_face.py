"""``import gliaflow``: lazy, and the stages in this process behind four calls."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gliaflow
import nibabel as nib
import numpy as np
import pytest
from gliaflow_phantoms.phantom import make_patient
from gliaflow_runtime.bundle.load import demo_bundle
from sample_scans import good_scan


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("GLIAFLOW_THREADS", "1")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gliaflow.Flow]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with gliaflow.open(threads=1) as flow:
            yield flow


def test_importing_gliaflow_loads_nothing_else() -> None:
    code = """
import sys
import gliaflow
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = {"torch", "onnxruntime", "onnx", "pika", "numpy", "nibabel", "pydantic"}
assert not loaded & heavy, loaded & heavy
assert not {name for name in loaded if name.startswith("gliaflow_")}, loaded
assert set(dir(gliaflow)) == set(gliaflow.__all__)
assert gliaflow.__version__
gliaflow.Flow, gliaflow.Answer, gliaflow.UsageError, gliaflow.BrokerError
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "onnxruntime", "pika", "gliaflow_extractor"}, loaded
try:
    gliaflow.nothing
except AttributeError as error:
    assert "'nothing'" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_answer_has_the_grade_and_the_mask_on_the_grid_of_the_scan(flow: gliaflow.Flow, tmp_path: Path) -> None:
    path = good_scan(tmp_path / "p1_flair.nii.gz")
    answer = flow.submit(path)
    assert (answer.scan, answer.patient, answer.source) == ("p1_flair", "p1", str(path))
    assert (answer.status, answer.reason, answer.trained_on) == ("ok", "", "phantoms")
    assert answer.grade in ("HGG", "LGG")
    assert answer.p_hgg is not None
    assert 0 <= answer.p_hgg <= 1
    scan = nib.load(path)
    assert answer.mask.shape == scan.shape
    np.testing.assert_allclose(answer.mask.affine, scan.affine)
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    assert answer.tumour_ml == pytest.approx(np.asarray(answer.mask.dataobj).sum() * voxel_ml)
    assert answer.slices is not None
    assert answer.tumour_slices is not None
    assert answer.slices >= answer.tumour_slices > 0
    assert repr(answer).startswith("Answer(scan='p1_flair', patient='p1'")
    assert len(repr(answer)) < 500 + len(str(answer.warnings)), "the mask is not in it"


def test_only_a_scan_unlike_those_that_the_bundle_was_trained_on_has_a_warning(
    flow: gliaflow.Flow, tmp_path: Path
) -> None:
    (warning,) = flow.submit(good_scan(tmp_path / "drawing_flair.nii.gz")).warnings
    assert "does not look like a scan that the bundle was trained on" in warning
    phantom = make_patient("HGG", np.random.default_rng(3))
    nib.save(nib.Nifti1Image(phantom.flair, phantom.affine), tmp_path / "phantom_flair.nii.gz")
    assert flow.submit(tmp_path / "phantom_flair.nii.gz").warnings == ()


def test_a_broken_scan_is_an_answer_that_failed(flow: gliaflow.Flow, tmp_path: Path) -> None:
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    answer = flow.submit(tmp_path / "bad.nii")
    assert (answer.status, answer.grade, answer.mask) == ("failed", None, None)
    assert "not a NIfTI file" in answer.reason
    assert answer._repr_png_() is None


def test_an_answer_shows_a_picture_in_a_notebook(flow: gliaflow.Flow, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = good_scan(tmp_path / "a_rather_long_name_of_a_scan_that_takes_two_lines_flair.nii.gz")
    answer = flow.submit(path)
    with_scan, without_scan = tmp_path / "with.png", tmp_path / "without.png"
    with_scan.write_bytes(answer._repr_png_() or b"")
    path.unlink()
    without_scan.write_bytes(answer._repr_png_() or b"")
    grey = [image.imread(file)[..., :3].mean() for file in (with_scan, without_scan)]
    assert grey[0] > 2 * grey[1] > 0, "the mask alone is drawn on black"
    no_tumour = replace(answer, status="no tumour", grade=None, p_hgg=None)
    assert no_tumour._repr_png_() not in (None, answer._repr_png_())


def test_without_matplotlib_there_is_no_picture(
    flow: gliaflow.Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = flow.submit(good_scan(tmp_path / "p1_flair.nii.gz"))
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.image"):
        monkeypatch.setitem(sys.modules, name, None)
    assert answer._repr_png_() is None


def test_generated_features_are_those_of_the_seed(flow: gliaflow.Flow) -> None:
    features = flow.generate("LGG", 20, seed=3)
    assert (features.shape[0], features.ndim, features.dtype) == (20, 4, np.float32)
    np.testing.assert_array_equal(flow.generate("LGG", 20, seed=3), features)
    assert not np.array_equal(flow.generate("LGG", 20, seed=4), features)
    with pytest.raises(gliaflow.UsageError, match="grade: 'II' is not one of HGG, LGG"):
        flow.generate("II", 1)
    with pytest.raises(gliaflow.UsageError, match="count: 0 is below 1"):
        flow.generate("LGG", 0)
    with pytest.raises(gliaflow.UsageError, match="generator: count: 1000000000 is not from 1"):
        flow.generate("LGG", 10**9)


def test_the_features_of_a_scan_can_be_read_at_any_tap(tmp_path: Path) -> None:
    path = good_scan(tmp_path / "p1_flair.nii.gz")
    found = gliaflow.extract(path)
    deep = gliaflow.extract(str(path), tap="enc5")
    assert found.features.dtype == np.float32
    assert len(found) == len(found.slices) == len(found.tumour) == len(deep)
    assert found.tumour.any()
    assert (deep.tap, deep.bundle) == ("enc5", found.bundle)
    assert deep.features.shape[1:] != found.features.shape[1:]
    np.testing.assert_array_equal(np.asarray(deep), deep.features)
    with pytest.raises(gliaflow.UsageError, match="tap: 'enc9' is not one of"):
        gliaflow.extract(path, tap="enc9")
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    with pytest.raises(gliaflow.UsageError, match=r"bad\.nii: not a NIfTI file"):
        gliaflow.extract(tmp_path / "bad.nii")
    with pytest.raises(gliaflow.UsageError, match="no such file"):
        gliaflow.extract(tmp_path / "none.nii")


def test_two_flows_in_one_process_have_stages_of_their_own(flow: gliaflow.Flow, tmp_path: Path) -> None:
    path = good_scan(tmp_path / "p1_flair.nii.gz")
    with gliaflow.open() as other:
        assert other.submit(path).p_hgg == flow.submit(path).p_hgg
    assert flow.submit(path).status == "ok", "closing the other flow does not stop this one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundle": "nowhere"}, "no bundle 'nowhere'"),
        ({"device": "tpu"}, "device"),
        ({"broker": "http://x"}, "expected memory://, amqp:// or amqps://"),
        ({"generator": "none"}, "has no 'none'"),
    ],
)
def test_a_wrong_setting_is_a_usage_error(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(gliaflow.UsageError, match=message):
        gliaflow.open(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "own"),
    [
        (gliaflow.open, "broker, generator, sequences, timeout, waiting"),
        (gliaflow.extract, "scan, tap, channel, series, sequences"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_names_that_there_are(call: Any, own: str) -> None:
    text = f"{call.__name__}() has no argument 'bundel'; it has {own}, bundle, device, threads"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        call("scan.nii.gz", bundel="model")


def test_help_names_and_explains_every_setting() -> None:
    for name in gliaflow.StageSettings.__annotations__:
        assert all(f"``{name}``" in (call.__doc__ or "") for call in (gliaflow.open, gliaflow.extract))
        assert f"- ``{name}``: " in (gliaflow.StageSettings.__doc__ or "")


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLIAFLOW_BUNDLE", "nowhere")
    path = good_scan(tmp_path / "p1_flair.nii.gz")
    with pytest.raises(gliaflow.UsageError, match="nowhere"):
        gliaflow.extract(path)
    assert len(gliaflow.extract(path, bundle=demo_bundle()))
