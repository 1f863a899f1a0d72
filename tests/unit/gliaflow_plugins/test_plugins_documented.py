"""docs/plugins.md names each hook and all that ships; ``gliaflow plugins -v`` says what each option means."""

from __future__ import annotations

import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from gliaflow_cli.commands.plugins import show_plugins
from gliaflow_plugins import hookspecs
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline, read_augmentations
from gliaflow_plugins.registry import load_registry
from rich.console import Console

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
REGISTRY = load_registry()
HOOKS = [name for name in vars(hookspecs) if name.startswith("register_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_documented_and_used_by_what_ships(hook: str) -> None:
    assert f"| `{hook}(register)` |" in DOCS
    assert f"def {hook}(" in (ROOT / "plugins/gliaflow_plugins/shipped.py").read_text()


@pytest.mark.parametrize("kind", ["augmentations", "generators", "classifiers", "steps"])
def test_all_that_ships_is_named(kind: str) -> None:
    missing = [name for name in getattr(REGISTRY, kind) if f"`{name}`" not in DOCS]
    assert not missing


def test_each_reader_is_named_in_its_own_page() -> None:
    cohorts = (ROOT / "docs" / "cohorts.md").read_text(encoding="utf-8")
    assert not [name for name in REGISTRY.readers if f"`{name}`" not in cohorts]


def test_each_option_is_listed_with_what_it_means() -> None:
    console = Console(record=True, width=400, file=io.StringIO())
    assert show_plugins(console, verbose=True) == 0
    listed = console.export_text()
    for kind in ("augmentations", "generators", "classifiers", "steps"):
        for name, plugin in getattr(REGISTRY, kind).items():
            for option, about in plugin.options.model_fields.items():
                assert about.description, f"{name}: {option}"
                assert re.search(rf" {option} .*{re.escape(about.description)}", listed), f"{name}: {option}"


def test_the_pipeline_in_the_docs_runs(tmp_path: Path) -> None:
    [text] = [block for block in re.findall(r"```toml\n(.*?)```", DOCS, re.S) if "[[augmentation]]" in block]
    assert tomllib.loads(text)
    (tmp_path / "p.toml").write_text(text)
    pipeline = AugmentationPipeline(REGISTRY, read_augmentations(tmp_path / "p.toml"))
    image, mask = pipeline(np.ones((32, 32), np.float32), np.zeros((32, 32), np.uint8), np.random.default_rng(0))
    assert image.shape == mask.shape == (32, 32)
