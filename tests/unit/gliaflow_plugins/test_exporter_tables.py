"""The exporter's tables, built once: the same files, and torch is left as it was."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks import export, exporter_tables  # noqa: E402
from gliaflow_plugins.networks.exporter_tables import tables_built_once  # noqa: E402

pytestmark = pytest.mark.slow


def exported(folder: Path) -> bytes:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    network(torch.zeros(2, 2, 5, 5))
    return export.export(network, [torch.rand(2, 2, 5, 5)], folder / "x.onnx", ["x"], ["y"]).read_bytes()


def test_a_file_is_the_same_with_and_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tables = [exported(tmp_path) for _ in range(2)]
    monkeypatch.setattr(export, "tables_built_once", nullcontext)
    assert [exported(tmp_path)] * 2 == with_tables


def test_torch_is_left_as_it_was() -> None:
    replaced = exporter_tables._replacements()
    before = [vars(holder)[name] for holder, name, _ in replaced]
    with tables_built_once():
        assert [vars(holder)[name] for holder, name, _ in replaced] == [replacement for *_, replacement in replaced]
    assert [vars(holder)[name] for holder, name, _ in replaced] == before


def test_another_version_of_torch_may_lack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = [("torch.no.such.module", "", "x"), ("torch", "NoSuchClass", "x"), ("torch", "", "no_such_name")]
    monkeypatch.setattr(exporter_tables, "_TABLES", [(*each, lambda value: value) for each in lacking])
    assert exporter_tables._replacements.__wrapped__() == []
    with tables_built_once():
        pass
