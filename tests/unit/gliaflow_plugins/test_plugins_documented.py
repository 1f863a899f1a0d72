"""docs/plugins.md names each hook, contract and shipped plugin; ``gliaflow plugins -v`` describes each option."""

from __future__ import annotations

import io
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gliaflow_cli.commands.plugins import show_plugins
from gliaflow_plugins import hookspecs
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline, read_augmentations
from gliaflow_plugins.contracts import FitContext, FitSamples
from gliaflow_plugins.kinds import KINDS, PluginKind
from gliaflow_plugins.registry import Origin, Registry, load_registry
from rich.console import Console

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
REGISTRY = load_registry()
HOOKS = [name for name in vars(hookspecs) if name.startswith("register_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_documented_and_used_by_shipped_plugins(hook: str) -> None:
    assert f"| `{hook}(register)` |" in DOCS
    assert f"def {hook}(" in (ROOT / "plugins/gliaflow_plugins/shipped.py").read_text()


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.has_options], ids=lambda kind: kind.name)
def test_each_shipped_plugin_is_named(kind: PluginKind) -> None:
    missing = [name for name in REGISTRY.of(kind) if f"`{name}`" not in DOCS]
    assert not missing


def test_each_reader_is_named_in_docs_cohorts() -> None:
    cohorts = (ROOT / "docs" / "cohorts.md").read_text(encoding="utf-8")
    assert not [name for name in REGISTRY.readers if f"`{name}`" not in cohorts]


def test_each_option_is_listed_with_its_description() -> None:
    console = Console(record=True, width=400, file=io.StringIO())
    assert show_plugins(console, verbose=True) == 0
    listed = console.export_text()
    for kind in KINDS.values():
        for name, plugin in REGISTRY.of(kind).items() if kind.has_options else ():
            for option, about in plugin.options.model_fields.items():
                assert about.description, f"{name}: {option}"
                assert re.search(rf" {option}=.*{re.escape(about.description)}", listed), f"{name}: {option}"


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("verbose", [False, True])
def test_the_list_fits_a_narrow_terminal_and_cuts_nothing(width: int, verbose: bool) -> None:
    console, wide = (Console(record=True, width=w, file=io.StringIO()) for w in (width, 1000))
    show_plugins(console, verbose)
    show_plugins(wide, verbose)
    narrow = console.export_text()
    assert "…" not in narrow
    assert narrow.split() == wide.export_text().split()
    assert all(len(line) <= width for line in narrow.splitlines() if "/" not in line), "a path is not broken"


def test_the_pipeline_of_the_docs_runs(tmp_path: Path) -> None:
    [text] = [block for block in re.findall(r"```toml\n(.*?)```", DOCS, re.S) if "[[augmentation]]" in block]
    assert tomllib.loads(text)
    (tmp_path / "p.toml").write_text(text)
    pipeline = AugmentationPipeline(REGISTRY, read_augmentations(tmp_path / "p.toml"))
    image, mask = pipeline(np.ones((32, 32), np.float32), np.zeros((32, 32), np.uint8), np.random.default_rng(0))
    assert image.shape == mask.shape == (32, 32)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_contract_is_documented(kind: PluginKind) -> None:
    method = "" if kind.method == "__call__" else f".{kind.method}"
    assert f"| {kind.name} | `plugin{method}({', '.join(kind.parameters)})` |" in DOCS


@pytest.mark.parametrize("bundle", [FitContext, FitSamples])
def test_each_field_that_a_fit_receives_is_documented(bundle: type) -> None:
    assert not [field.name for field in fields(bundle) if f"| `{field.name}` |" not in DOCS]


def test_the_plugins_of_the_docs_are_accepted() -> None:
    """test_conformance and test_gans fit them."""
    codes = [block for block in re.findall(r"```python\n(.*?)```", DOCS, re.S) if "hookimpl" in block]
    registry = Registry()
    for number, code in enumerate(codes):
        module: dict[str, Any] = {}
        exec(code, module)
        registry.add(SimpleNamespace(**module), Origin(f"example {number}", "docs", "1", "docs/plugins.md"))
    assert not registry.problems
    assert set(registry.generators) == {"class-means", "lsgan"}
