"""The conformance kit: shipped plugins pass it; a broken plugin gets a message that says how to fix it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from gliaflow_plugins.conformance import NotRun, checks

pytestmark = pytest.mark.slow
QUICK = {"steps": "60", "epochs": "6", "batch": "16", "ngf": "16", "ndf": "16", "levels": "1"}
ELSEWHERE = (
    "skull-strip::test_it",
    "acgan-image::test_",
)  # they need a program, and slices: see test_steps, test_train
ALIKE = ("sngan", "reacgan", "adcgan", "wgan", "infogan")  # they share acgan's networks: one tap is enough
REFITTED = ("::test_the_same_seed", "::test_a_fit_resumes")  # of a GAN: test_gans has them; here one GAN is enough


def is_elsewhere(name: str) -> bool:
    """Whether another test proves it, or the same check of another GAN."""
    if name.startswith((*ALIKE, "acgan")) and any(check in name for check in REFITTED):
        return not name.startswith("acgan::") or "5×24" in name
    return name.startswith(ELSEWHERE) or (name.startswith(ALIKE) and "5×24" in name)


SHIPPED = [(name, check) for name, check in checks("gliaflow_plugins.shipped", QUICK) if not is_elsewhere(name)]


@pytest.mark.parametrize("check", [check for _, check in SHIPPED], ids=[name for name, _ in SHIPPED])
def test_shipped_plugins_pass_the_checks(check: Callable[[], None]) -> None:
    check()


BROKEN = """
import numpy as np
from gliaflow_plugins import Options, hookimpl


class Levels:
    name = "levels"
    options = Options

    def fit(self, features, options, context):
        import torch
        from gliaflow_plugins.contracts import Fitted

        {reading}
        shape = features.shape

        class Generator(torch.nn.Module):
            def forward(self, z, label):
                {making}

        class Critic(torch.nn.Module):
            def forward(self, features):
                level = features.mean(dim=(1, 2, 3))
                return level, torch.stack([-level, level], dim=1)

        return {returning}


@hookimpl
def register_generators(register):
    register(Levels())
"""
GOOD = {
    "reading": "features.batch(np.arange(8))",
    "making": "return (label + z[:, 0] - 0.5)[:, None, None, None] * torch.ones(1, *shape)",
    "returning": "Fitted(2, Generator(), Critic())",
}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, None),
        ({"reading": "features.batch(np.arange(len(features)))"}, "the plugin read 200 samples at once"),
        ({"reading": "import a_module_that_is_not_there"}, "ModuleNotFoundError"),
        (
            {"making": "return z[:, :1, None, None] * torch.ones(1, 3, 9, 9)"},
            "for 64 features of (12, 15, 15), returned (64, 3, 9, 9), not (64, 12, 15, 15)",
        ),
        (
            {"making": "return torch.full((len(z), *shape), torch.nan)"},
            "returned a tensor that has NaN: 172800 of 172800 values",
        ),
        (
            {"making": "return (label + z[:, 0] + np.random.rand())[:, None, None, None] * torch.ones(1, *shape)"},
            "the generator returns other features for the same z",
        ),
        ({"making": "return torch.ones(len(z), *shape).double()"}, "returned torch.float64, not torch.float32"),
        ({"reading": "features.labels[:] = 0"}, "fit changed features.labels"),
        ({"making": "return (z[:, 0])[:, None, None, None] * torch.ones(1, *shape)"}, "is the label used?"),
        (
            {"making": "return 5 + (label + z[:, 0])[:, None, None, None] * torch.ones(1, *shape)"},
            "the critic accepts 0% of the features generated for HGG",
        ),
        ({"returning": "Generator(), Critic()"}, "fit must return Fitted, not tuple"),
        ({"making": "return (label - 0.5)[:, None, None, None] * torch.ones(1, *shape)"}, "is z used?"),
    ],
)
def test_a_generator_that_breaks_the_contract_gets_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: dict[str, str], message: str | None
) -> None:
    (tmp_path / "mine.py").write_text(BROKEN.format(**GOOD | broken))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    messages = []
    for name, check in checks("mine", {}):
        if "5×24" not in name:
            try:
                check()
            except Exception as error:
                messages.append(f"{type(error).__name__}: {error}")
    assert bool(messages) == bool(message), messages
    assert message is None or message in messages[0], "the first message is the cause"


def test_the_generator_of_the_docs_passes_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/plugins.md: a generator with a fit of its own."""
    page = (Path(__file__).parents[3] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class ClassMeans" in block)
    (tmp_path / "class_means_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for _, check in checks("class_means_of_the_docs", {}):
        check()


def test_a_plugin_of_the_old_contract_gets_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_plugin.py").write_text("from gliaflow_plugins.base import Options")
    monkeypatch.syspath_prepend(str(tmp_path))
    [(_, check)] = checks("old_plugin", {})
    with pytest.raises(AssertionError, match=r"`gliaflow_plugins\.base` is now `gliaflow_plugins\.contracts`"):
        check()


AUGMENTATION = """
import numpy as np
from gliaflow_plugins import Options, hookimpl


class Mine:
    name, options = "mine", Options

    def __call__(self, image, mask, rng, options):
        {body}


@hookimpl
def register_augmentations(register):
    register(Mine())
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return image * 2, mask", None),
        ("return image[1:], mask", "the image is (47, 40), for a slice of (48, 40)"),
        ("return image * np.nan, mask", "the image has NaN: 1920 of 1920 values"),
        ("return image.astype(float), mask", "the image is float64, not float32"),
        ("return image * 1, mask.astype(float)", "the mask is float64, not uint8"),
        ("image += 1; return image, mask", "it writes into an array that it was passed"),
        ("image.setflags(write=True); image += 1; return image * 1, mask", "it changed its argument image"),
        ("return image * np.float32(np.random.rand()), mask", "two calls with the same rng give other slices"),
        ("return image", "it must return (image, mask), not ndarray"),
    ],
)
def test_an_augmentation_that_breaks_the_contract_gets_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str | None
) -> None:
    (tmp_path / "mine.py").write_text(AUGMENTATION.format(body=body))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    messages = []
    for _, check in checks("mine", {}):
        try:
            check()
        except (AssertionError, NotRun) as error:
            messages.append(str(error))
    assert bool(messages) == bool(message), messages
    assert message is None or message in messages[0]


def pytest_on(plugin: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a plugin's author runs."""
    (folder / "mine.py").write_text(plugin)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--gliaflow", "mine", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ({"reading": "print('many\\n' * 1000); 1 / 0"}, ", in fit: print('many\\n' * 1000); 1 / 0"),
        ({"making": "return torch.linalg.svd(z.expand(5, -1))"}, ", in forward: return torch.linalg.svd"),
    ],
)
def test_a_fault_of_one_line_prints_a_few_lines_with_the_plugins_own(
    tmp_path: Path, broken: dict[str, str], line: str
) -> None:
    done = pytest_on(BROKEN.format(**GOOD | broken), tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert line in done.stdout
    assert len(done.stdout.splitlines()) < 30, done.stdout


def test_an_endless_fit_is_ended_and_named(tmp_path: Path) -> None:
    """A loop that catches every error is no exception."""
    endless = """import time
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                pass"""
    done = pytest_on(BROKEN.format(**GOOD | {"reading": endless}), tmp_path, "--gliaflow-deadline", "20")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "levels::test_fit_returns_two_networks[12×15×15]: did not end within 20 s" in done.stdout
    assert "mine.py:" in done.stdout, "where it was"
    assert "1 failed, 2 passed, 13 skipped" in done.stdout, "the next fit would take as long"


def test_a_plugin_author_runs_it_in_one_line(tmp_path: Path) -> None:
    done = pytest_on(BROKEN.format(**GOOD | {"returning": "None"}), tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "levels::test_fit_returns_two_networks[12×15×15]: fit must return Fitted, not NoneType" in done.stdout
    assert "2 failed, 2 passed, 12 skipped" in done.stdout
