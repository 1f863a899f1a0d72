"""The flags that ``train`` and ``evaluate`` share: the bundle of --init or --unet is checked before work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gliaflow_cli.learning import find_unet
from gliaflow_runtime.bundle.load import demo_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_trainer.profiles import PROFILES

DEMO = PROFILES["demo"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIAFLOW_BUNDLES", str(tmp_path / "bundles"))
    return tmp_path


@pytest.mark.parametrize("flag", ["init", "unet"])
def test_demo_is_the_shipped_bundle(flag: str) -> None:
    assert find_unet(flag, "demo", DEMO) == demo_bundle()
    assert find_unet(flag, None, DEMO) is None
    Path("demo").mkdir()  # the answers of `gliaflow demo --out demo` are no bundle
    assert find_unet(flag, "demo", DEMO) == demo_bundle()


def test_a_bundle_of_the_trainer_is_found_by_its_name(elsewhere: Path) -> None:
    shutil.copytree(demo_bundle(), elsewhere / "bundles" / "mine-1")
    assert find_unet("unet", "mine-1", DEMO) == elsewhere / "bundles" / "mine-1"


def test_a_bundle_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--unet: no bundle 'mine': "):
        find_unet("unet", "mine", DEMO)


@pytest.mark.parametrize(("flag", "file"), [("init", "unet.safetensors"), ("unet", "unet.onnx")])
def test_a_missing_or_damaged_network_is_refused(flag: str, file: str) -> None:
    shutil.copytree(demo_bundle(), "mine")
    Path("mine", file).write_bytes(b"damaged")
    with pytest.raises(UsageError, match=rf"^--{flag}: mine/{file}: "):
        find_unet(flag, "mine", DEMO)
    Path("mine", file).unlink()
    with pytest.raises(UsageError, match=rf"^--{flag}: mine/{file}: no such file"):
        find_unet(flag, "mine", DEMO)


def test_a_network_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--init: .*: its U-Net has width .* choose the profile it was trained with"):
        find_unet("init", "demo", PROFILES["paper"])
