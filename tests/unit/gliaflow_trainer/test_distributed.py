"""``gliaflow train`` under torchrun: several processes fit each U-Net, those of the folds too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small
from gliaflow_runtime.bundle.load import Bundle

pytest.importorskip("torch")

pytestmark = pytest.mark.slow

# The command with smaller slices, and fewer of them, in its "demo" profile.
SMALL_TRAIN = """
from dataclasses import replace
import small
from gliaflow_cli.main import main
from gliaflow_trainer.profiles import PROFILES
demo = PROFILES["demo"]
unet = {**demo.unet, "epoch_slices": 320, "batch": 8, "learning_rate": 1e-2}
PROFILES["demo"] = replace(demo, input=small.PROFILE.input, unet=unet)
main()
"""


def test_several_processes_share_an_epoch_and_only_the_first_prints(tmp_path: Path) -> None:
    cohort = small.write_cohort(tmp_path / "cohort", 4, 0)
    scans = [path.relative_to(cohort) for path in sorted(cohort.glob("*/*/*_flair.nii.gz"))]
    rows = [f"{scan},{str(scan).replace('flair', 'seg')},{scan.parent.name}" for scan in scans]
    (cohort / "cohort.csv").write_text("\n".join(["scan,mask,patient", *rows]), encoding="utf-8")
    script = tmp_path / "small_train.py"
    script.write_text(SMALL_TRAIN)
    command = ["torch.distributed.run", "--nproc-per-node", "2", str(script), "train", str(cohort)]
    command += ["--out", str(tmp_path / "made"), "--profile", "demo", "--epochs", "1", "--folds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(small.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert [printed.count(f"{of}: U-Net 1/1:") for of in ("fold 1/2", "fold 2/2", "all patients")] == [1, 1, 1]
    assert printed.count(" left of all fits") == 2
    assert "lowest Dice: " in done.stdout
    assert done.stdout.count("bundle made@") == 1
    made = Bundle(tmp_path / "made")
    assert made.manifest.metrics["unet"]["train"]["hard_dice"] > 0.2  # a mask of everything has 0.1
    assert len(made.manifest.training["history"]["unet"]) == 1
    assert len(made.manifest.metrics["segmentation"]["dice"]) == 4, "a U-Net alone is measured out of fold, too"
