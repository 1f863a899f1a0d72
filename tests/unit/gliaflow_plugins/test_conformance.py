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

from gliaflow_plugins.testing import checks

pytestmark = pytest.mark.slow
QUICK = {"steps": "60", "epochs": "6", "batch": "16", "ngf": "16", "ndf": "16", "levels": "1"}
ELSEWHERE = (
    "skull-strip::test_it",
    "acgan-image::test_",
)  # they need a program, and slices: see test_steps, test_train
ALIKE = ("sngan", "reacgan", "adcgan", "wgan", "infogan")  # they share acgan's networks: one tap is enough
SHIPPED = [
    (name, check)
    for name, check in checks("gliaflow_plugins.shipped", QUICK)
    if not name.startswith(ELSEWHERE) and not (name.startswith(ALIKE) and "5×24" in name)
]


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
            "(64, 3, 9, 9) for 64 features of (12, 15, 15)",
        ),
        ({"making": "return torch.full((len(z), *shape), torch.nan)"}, "features that are not finite"),
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
    assert message is None or message in "\n".join(messages)


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


def test_a_plugin_author_runs_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BROKEN.format(**GOOD | {"returning": "None"}))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--gliaflow", "mine", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "levels::test_fit_returns_two_networks[12×15×15]: fit must return Fitted, not NoneType" in done.stdout
    assert "2 passed" in done.stdout
