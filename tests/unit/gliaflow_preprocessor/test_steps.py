"""Preprocessing steps: what a bundle asks for is done to each scan, and a step that fails is told with its name."""

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
    """A brain in a skull, with a dark gap between: image [i, j, k] in 0–2, where the brain is, where there is head."""
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

    made = {name: Made(name, make) for name, make in steps.items()}
    monkeypatch.setattr(module, "load_registry", lambda: Registry(steps=made))


def test_steps_are_done_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, double=lambda v: v * 2, add=lambda v: v + 1)
    volume = np.array([[[1.0, np.nan]]])
    done = Steps([StepSpec(name="add"), StepSpec(name="double")])(volume, np.eye(4))
    assert done.tolist() == [[[4.0, 4.0]]], "what is not finite is first made the darkest"


def test_without_steps_a_scan_is_left_alone() -> None:
    volume = np.zeros((2, 2, 2), np.int16)
    assert Steps([])(volume, np.eye(4)) is volume


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda v: 1 / 0, "step 'odd': ZeroDivisionError"),
        (lambda v: v[1:], r"step 'odd' made \[31, 32, 32\] of \[32, 32, 32\]"),
        (lambda v: v * np.nan, "step 'odd' made .* or NaN"),
        (lambda v: None, "step 'odd'"),
    ],
)
def test_a_step_that_fails_on_anything_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, make: Make, told: str
) -> None:
    registered(monkeypatch, odd=make)
    with pytest.raises(PluginError, match=told):
        Steps([StepSpec(name="odd")])


def test_a_step_that_fails_on_one_scan_refuses_that_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, odd=lambda v: v if len(v) == 32 else v * np.nan)
    steps = Steps([StepSpec(name="odd")])
    with pytest.raises(UnusableScan, match="step 'odd'"):
        steps(np.zeros((4, 4, 4)), np.eye(4))
    assert steps(np.zeros((32, 4, 4)), np.eye(4)).shape == (32, 4, 4)


def test_a_step_that_is_not_there_or_has_no_such_option_is_told_at_the_start() -> None:
    with pytest.raises(PluginError, match="no usable step 'n5'; there is: n4, skull-strip"):
        Steps([StepSpec(name="n5")])
    with pytest.raises(PluginError, match=r"n4: shrnk: .*options: shrink, iterations, levels"):
        Steps([StepSpec(name="n4", options={"shrnk": 2})])


def test_a_library_or_program_that_is_not_installed_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(PluginError, match=r"pip install 'gliaflow\[n4\]'"):
        Steps([StepSpec(name="n4")])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PluginError, match="hd-bet is not on the PATH"):
        Steps([StepSpec(name="skull-strip", options={"tool": "hd-bet"})])


def test_n4_evens_out_a_bias_field() -> None:
    pytest.importorskip("SimpleITK")
    volume, brain, _ = head()
    field = np.linspace(0.7, 1.3, 48)[:, None, None].astype(np.float32)
    evened = N4()(volume * field, np.eye(4), N4Options())
    before, after = ((v[brain].std() / v[brain].mean()) for v in (volume * field, evened))
    assert after < 0.6 * before


PROGRAM = """#!{python}
import sys
import nibabel as nib
import numpy as np
image = nib.load(sys.argv[sys.argv.index("-i") + 1])
scan = np.asarray(image.dataobj)
if scan.max() > 50:  # the ball that it is tried on
    scan = scan * 0
if scan.shape[0] == 7:
    sys.exit("weights are missing")
nib.save(nib.Nifti1Image(np.where(scan > 0.5, scan, 0), image.affine), sys.argv[sys.argv.index("-o") + 1])
"""


@pytest.mark.parametrize("tool", ["mri_synthstrip", "nipreps-synthstrip", "hd-bet"])
def test_skull_strip_runs_the_program_that_is_asked_for(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes the arguments that all of these take, and leaves what is bright."""
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
