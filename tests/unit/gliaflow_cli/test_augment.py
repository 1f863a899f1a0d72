"""``gliaflow augment``: a picture of a scan's slice and what becomes of it; pipelines from a TOML file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from broken import good_scan
from gliaflow_plugins.augmentations.pipeline import parse_named, read_augmentations
from gliaflow_plugins.contracts import PluginError
from gliaflow_runtime.errors import UsageError
from rich.console import Console

pytest.importorskip("matplotlib")

from gliaflow_cli.commands.augment import draw_augmented


def draw(folder: Path, out: str = "a.png", count: int = 3, slice_number: int | None = None, **more: object) -> Path:
    scan = folder / "scan.nii.gz"
    good_scan(scan)
    chosen = {"augmentations": ["rotation:degrees=90"], "pipeline": None, "mask": None, "channel": None} | more
    draw_augmented(
        scan, folder / out, slice_number=slice_number, count=count, seed=0, console=Console(quiet=True), **chosen
    )
    return folder / out


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_the_picture_shows_the_slice_and_each_draw(tmp_path: Path) -> None:
    few, many = pixels(draw(tmp_path)), pixels(draw(tmp_path, "b.png", count=7))
    assert many.shape[0] > 1.6 * few.shape[0], "two rows of four"
    again = pixels(draw(tmp_path, "c.png"))
    assert np.array_equal(few, again), "the seed decides"


def test_a_mask_is_outlined(tmp_path: Path) -> None:
    plain = pixels(draw(tmp_path))
    scan = nib.load(tmp_path / "scan.nii.gz")
    mask = np.zeros(scan.shape, np.uint8)
    middle = [n // 2 for n in scan.shape]
    mask[middle[0] - 4 : middle[0] + 4, middle[1] - 4 : middle[1] + 4, middle[2]] = 1
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "mask.nii.gz")
    outlined = pixels(draw(tmp_path, "b.png", mask=tmp_path / "mask.nii.gz"))
    coloured = lambda image: (np.ptp(image[..., :3], axis=2) > 0.3).sum()  # noqa: E731
    assert coloured(plain) == 0 < coloured(outlined)


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.png"):
        draw(tmp_path, "a.gif")
    with pytest.raises(UsageError, match="--slice: 900 is not one of"):
        draw(tmp_path, slice_number=900)
    with pytest.raises(PluginError, match="no usable augmentation 'blur'"):
        draw(tmp_path, augmentations=["blur"])


def test_a_pipeline_is_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[augmentation]]\nname = "hflip"\n[[augmentation]]\nname = "rotation"\ndegrees = 10\n')
    assert read_augmentations(file) == [("hflip", {}), ("rotation", {"degrees": 10})]
    assert draw(tmp_path, augmentations=[], pipeline=file).exists()
    assert parse_named("rotation:degrees=10,a=b") == ("rotation", {"degrees": "10", "a": "b"})
    with pytest.raises(PluginError, match="'degrees' is not option=value"):
        parse_named("rotation:degrees")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("augmentation = 3", "a table"),
        ("[[augmentation]]\ndegrees = 3", "augmentation 1 has no name"),
        ("[[augmentations]]\nname = 'x'", "a table"),
        ("[[", "p.toml"),
    ],
)
def test_a_pipeline_that_is_none_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(PluginError, match=told):
        read_augmentations(file)
