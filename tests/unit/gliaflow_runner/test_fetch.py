"""``python3 -m gliaflow_runner.fetch`` copies a bundle from a store, for stages that cannot reach the store."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from gliaflow_runner.fetch import fetch
from gliaflow_runtime.bundle.load import demo_bundle, load_bundle
from gliaflow_runtime.bundle.manifest import MANIFEST, BundleError


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A bundle in a store. ``file://`` stands for ``s3://``: fsspec reads both."""
    return Path(shutil.copytree(demo_bundle(), tmp_path / "store" / "mine"))


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    folder = tmp_path / "bundles"
    folder.mkdir()
    return folder


def test_stages_find_the_bundle_under_the_last_part_of_its_url(stored: Path, bundles: Path) -> None:
    assert fetch(f"file://{stored}", bundles) == bundles / "mine"
    assert [path.name for path in bundles.iterdir()] == ["mine"]
    assert load_bundle("mine", bundles=bundles).id == load_bundle(stored).id
    assert fetch(f"file://{stored}/", bundles) == bundles / "mine"  # at the next start: it is still the same bundle


def test_stages_of_another_user_can_read_the_bundle(stored: Path, bundles: Path) -> None:
    bundles.chmod(0o755)
    folder = fetch(f"file://{stored}", bundles)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (bundles, folder)] == [0o755] * 2
    assert all(path.stat().st_mode & stat.S_IROTH for path in folder.iterdir())


def test_a_copy_imports_no_library_of_the_stages() -> None:
    code = """
import sys
import gliaflow_runner.fetch
assert not sys.modules.keys() & {"onnxruntime", "scipy", "nibabel"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bundle_in_use_is_not_replaced(stored: Path, bundles: Path) -> None:
    before = (fetch(f"file://{stored}", bundles) / MANIFEST).read_bytes()
    (stored / MANIFEST).write_bytes(before + b"\n")
    with pytest.raises(BundleError, match="give the new bundle a name of its own"):
        fetch(f"file://{stored}", bundles)
    assert (bundles / "mine" / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("url", ["mine", "s3://", "s3://bucket", "s3://bucket/.."])
def test_a_url_without_a_name_is_refused(url: str, bundles: Path) -> None:
    with pytest.raises(BundleError, match="expected for example s3://bucket/bundles/mine"):
        fetch(url, bundles)


def test_a_damaged_bundle_is_refused_in_one_line(stored: Path, bundles: Path) -> None:
    (stored / "unet.onnx").write_bytes(b"damaged")
    command = [sys.executable, "-m", "gliaflow_runner.fetch", f"file://{stored}", str(bundles)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("gliaflow: ")
    assert "unet.onnx" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(bundles.iterdir()) == []
