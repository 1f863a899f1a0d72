"""What the work folder of a run keeps: what a second call need not do again, in words for the user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gliaflow_plugins.cohorts.tables import few
from gliaflow_runtime.bundle.manifest import MANIFEST

FOLD = "fold-"


def kept_work(work: Path) -> str:
    """What is finished or begun in the work folder of ``train`` or ``evaluate``, in its order; empty: nothing."""
    return ", ".join(_steps(work))


def how_to_go_on(work: Path) -> str:
    """What the user can do after an interruption."""
    if kept := kept_work(work):
        return f"the same command resumes, from the work in {work}: {kept}"
    return "nothing was kept yet; the same command begins anew"


def _steps(work: Path) -> Iterator[str]:
    if scans := sum(1 for _ in work.glob("slices/*.json")):
        yield f"slices of {scans} scan{'s' if scans > 1 else ''}"
    folds = sorted(work.glob(f"{FOLD}*"), key=lambda folder: (len(folder.name), folder.name))
    fitted = [folder.name.removeprefix(FOLD) for folder in folds if (folder / "unet" / MANIFEST).exists()]
    if fitted:
        yield f"U-Net of fold{'s' if fitted[1:] else ''} {few(fitted, 10)}"
    yield from (f"a part of the U-Net of fold {each.name.removeprefix(FOLD)}" for each in folds if _is_begun(each))
    if (work / "unet" / MANIFEST).exists():
        yield "U-Net"
    elif _is_begun(work):
        yield "a part of the U-Net"
    if answers := sum(1 for _ in work.glob(f"{FOLD}*/seed-*.npz")):
        yield f"{answers} answers of comparators and generators"
    for checkpoint in sorted(work.glob("bundle/*.checkpoint")):
        yield f"a part of the generator {checkpoint.name.rsplit('-', 1)[0]}"


def _is_begun(folder: Path) -> bool:
    return (folder / "unet" / "unet.checkpoint").exists() and not (folder / "unet" / MANIFEST).exists()
