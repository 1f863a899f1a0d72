"""The preprocessing steps of a bundle are applied to each scan, and an error names the step that fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_plugins.contracts import Options, PluginError
from gliaflow_plugins.registry import Registry
from gliaflow_plugins.steps import N4, N4Options
from gliaflow_preprocessor import steps as module
from gliaflow_preprocessor.slices import UnusableScan
from gliaflow_preprocessor.steps import Steps
from gliaflow_runtime.bundle.manifest import StepSpec

Make = Callable[[np.ndarray], Any]


def head(size: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A brain in a skull, with a dark gap between: the image [i, j, k] in 0–2, and masks of brain and head."""
    x, y, z = np.indices((size,) * 3) / ((size - 1) / 2) - 1
    away = np.sqrt(x**2 + y**2 + z**2)
    brain, skull = away < 0.6, (away > 0.75) & (away < 0.85)
    grain = np.random.default_rng(0).normal(1, 0.03, away.shape)
    return ((brain * 1.0 + skull * 1.6) * grain).astype(np.float32), brain, brain | skull


def registered(monkeypatch: pytest.MonkeyPatch, **steps: Make) -> None:
    class Made:
        options = Options

        def __init__(self, name: str, make: Make) -> None:
            self.name, self.make = name, make

        def __call__(self, volume: np.ndarray, affine: np.ndarray, options: Any) -> Any:
            assert volume.dtype == np.float32
            assert np.isfinite(volume).all()
            assert affine.shape == (4, 4)
            return self.make(volume)

    plugins = {name: Made(name, make) for name, make in steps.items()}
    monkeypatch.setattr(module, "load_registry", lambda: Registry(steps=plugins))


def test_steps_are_applied_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, double=lambda v: v * 2, add=lambda v: v + 1)
    volume = np.array([[[1.0, np.nan]]])
    done = Steps([StepSpec(name="add"), StepSpec(name="double")])(volume, np.eye(4))
    assert done.tolist() == [[[4.0, 4.0]]], "NaN is first set to the lowest value"


def test_without_steps_a_scan_is_unchanged() -> None:
    volume = np.zeros((2, 2, 2), np.int16)
    assert Steps([])(volume, np.eye(4)) is volume


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda v: 1 / 0, "step 'bad': ZeroDivisionError"),
        (lambda v: v[1:], r"step 'bad' made \[31, 32, 32\] from \[32, 32, 32\]"),
        (lambda v: v * np.nan, "step 'bad' made .* or NaN"),
        (lambda v: None, "step 'bad'"),
    ],
)
def test_a_step_that_always_fails_is_reported_at_the_start(
    monkeypatch: pytest.MonkeyPatch, make: Make, reason: str
) -> None:
    registered(monkeypatch, bad=make)
    with pytest.raises(PluginError, match=reason):
        Steps([StepSpec(name="bad")])


def test_a_step_that_fails_on_one_scan_refuses_that_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, bad=lambda v: v if len(v) == 32 else v * np.nan)
    steps = Steps([StepSpec(name="bad")])
    with pytest.raises(UnusableScan, match="step 'bad'"):
        steps(np.zeros((4, 4, 4)), np.eye(4))
    assert steps(np.zeros((32, 4, 4)), np.eye(4)).shape == (32, 4, 4)


def test_unknown_steps_and_options_are_reported_at_the_start() -> None:
    with pytest.raises(PluginError, match="no usable step 'n5'; there is: n4, skull-strip"):
        Steps([StepSpec(name="n5")])
    with pytest.raises(PluginError, match=r"n4: there is no option shrnk .*: shrink=4, iterations=50, levels=3"):
        Steps([StepSpec(name="n4", options={"shrnk": 2})])


def test_a_missing_library_or_program_is_reported_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(PluginError, match=r"pip install 'gliaflow\[n4\]'"):
        Steps([StepSpec(name="n4")])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PluginError, match="hd-bet is not on the PATH"):
        Steps([StepSpec(name="skull-strip", options={"tool": "hd-bet"})])


def test_n4_corrects_a_bias_field() -> None:
    pytest.importorskip("SimpleITK")
    volume, brain, _ = head()
    field = np.linspace(0.7, 1.3, 48)[:, None, None].astype(np.float32)
    corrected = N4()(volume * field, np.eye(4), N4Options())
    before, after = ((v[brain].std() / v[brain].mean()) for v in (volume * field, corrected))
    assert after < 0.6 * before


PROGRAM = """#!{python}
import sys
import nibabel as nib
import numpy as np
image = nib.load(sys.argv[sys.argv.index("-i") + 1])
scan = np.asarray(image.dataobj)
if scan.max() > 50:  # the ball for the trial run
    scan = scan * 0
if scan.shape[0] == 7:
    sys.exit("weights are missing")
nib.save(nib.Nifti1Image(np.where(scan > 0.5, scan, 0), image.affine), sys.argv[sys.argv.index("-o") + 1])
"""


@pytest.mark.parametrize("tool", ["mri_synthstrip", "nipreps-synthstrip", "hd-bet"])
def test_skull_strip_runs_the_chosen_program(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A substitute with the arguments that all of these programs take; it keeps bright voxels."""
    (tmp_path / tool).write_text(PROGRAM.format(python=sys.executable))
    (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    steps = Steps([StepSpec(name="skull-strip", options={"tool": tool})])
    scan = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    scan -= scan.min()
    np.testing.assert_allclose(steps(scan, np.diag([-1.0, 2, 3, 1])), np.where(scan > 0.5, scan, 0))
    with pytest.raises(UnusableScan, match="no brain was found"):
        steps(scan * 0.1, np.eye(4))
    with pytest.raises(UnusableScan, match=f"{tool} ended with 1: weights are missing"):
        steps(np.ones((7, 5, 4)), np.eye(4))
