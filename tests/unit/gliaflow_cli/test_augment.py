"""``gliaflow augment``: a picture of a scan's slice before and after augmentation; pipelines from a TOML file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow_cli.main import app
from gliaflow_plugins.augmentations.pipeline import (
    PAPER_AUGMENTATIONS,
    SCANNER_AUGMENTATIONS,
    parse_augmentations,
    parse_named,
    read_augmentations,
)
from gliaflow_plugins.contracts import PluginError
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.errors import UsageError
from sample_scans import good_scan
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

ROTATION = ("--augmentation", "rotation:degrees=90")


def draw(folder: Path, out: str, *flags: object, count: int = 3) -> Path:
    """Runs the command on a scan, and raises its error."""
    scan = good_scan(folder / "scan.nii.gz")
    done = CliRunner().invoke(app, ["augment", *map(str, [scan, "--out", folder / out, "--count", count, *flags])])
    if done.exception:
        raise done.exception
    return folder / out


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_the_picture_shows_the_slice_and_each_draw(tmp_path: Path) -> None:
    few = pixels(draw(tmp_path, "a.png", *ROTATION))
    many = pixels(draw(tmp_path, "b.png", *ROTATION, count=7))
    assert many.shape[0] > 1.6 * few.shape[0], "two rows of four"
    again = pixels(draw(tmp_path, "c.png", *ROTATION))
    assert np.array_equal(few, again), "the same seed gives the same picture"


def test_a_mask_is_outlined(tmp_path: Path) -> None:
    plain = pixels(draw(tmp_path, "a.png", *ROTATION))
    scan = nib.load(tmp_path / "scan.nii.gz")
    mask = np.zeros(scan.shape, np.uint8)
    middle = [n // 2 for n in scan.shape]
    mask[middle[0] - 4 : middle[0] + 4, middle[1] - 4 : middle[1] + 4, middle[2]] = 1
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "mask.nii.gz")
    outlined = pixels(draw(tmp_path, "b.png", *ROTATION, "--mask", tmp_path / "mask.nii.gz"))
    coloured = lambda image: (np.ptp(image[..., :3], axis=2) > 0.3).sum()  # noqa: E731
    assert coloured(plain) == 0 < coloured(outlined)


def test_a_wrong_file_slice_or_augmentation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a \.png"):
        draw(tmp_path, "a.gif", *ROTATION)
    with pytest.raises(UsageError, match="--slice: 900 is not one of"):
        draw(tmp_path, "a.png", *ROTATION, "--slice", 900)
    with pytest.raises(PluginError, match="no usable augmentation 'sepia'"):
        draw(tmp_path, "a.png", "--augmentation", "sepia")


def test_a_pipeline_is_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[augmentation]]\nname = "hflip"\n[[augmentation]]\nname = "rotation"\ndegrees = 10\n')
    assert read_augmentations(file) == [("hflip", {}), ("rotation", {"degrees": 10})]
    assert draw(tmp_path, "a.png", "--pipeline", file).exists()
    assert parse_named("rotation:degrees=10,a=b") == ("rotation", {"degrees": "10", "a": "b"})
    with pytest.raises(PluginError, match="'degrees' is not option=value"):
        parse_named("rotation:degrees")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmentation = 3", "must contain only tables"),
        ("[[augmentation]]\ndegrees = 3", "augmentation 1 has no name"),
        ("[[augmentations]]\nname = 'x'", "must contain only tables"),
        ("[[", "p.toml"),
    ],
)
def test_an_invalid_pipeline_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(PluginError, match=message):
        read_augmentations(file)


def test_one_name_stands_for_all_that_a_scanner_does(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[augmentation]]\nname = "rotation"\ndegrees = 10\n')
    steps = parse_augmentations([str(file), "scanner", "zoom:fraction=0.2"])
    assert steps == [("rotation", {"degrees": 10}), *SCANNER_AUGMENTATIONS, ("zoom", {"fraction": "0.2"})]
    assert parse_augmentations(["paper"]) == list(PAPER_AUGMENTATIONS)
    with pytest.raises(PluginError, match=r"--augmentation scanner:probability=1: scanner is a set .*gamma, histogram"):
        parse_augmentations(["scanner:probability=1"])
    assert not {"scanner", "paper"} & load_registry().augmentations.keys(), "no augmentation is hidden by a set"


def test_wrong_options_and_files_are_named_with_what_is_right(tmp_path: Path) -> None:
    for text, message in (
        ("rotation:degrees=900", r"^rotation: degrees=900 must be less than or equal to 180 \(options .*: degrees=20"),
        ("rotation:degrees=x", "^rotation: degrees=x must be a valid number"),
        ("rotation:angle=3", "^rotation: there is no option angle"),
    ):
        with pytest.raises(PluginError, match=message):
            draw(tmp_path, "a.png", "--augmentation", text)
    with pytest.raises(UsageError, match=r"^--mask .*none\.nii: no such file"):
        draw(tmp_path, "a.png", "--mask", tmp_path / "none.nii")
    with pytest.raises(UsageError, match=r"^--mask .*: a folder; name one NIfTI file"):
        draw(tmp_path, "a.png", "--mask", tmp_path)
