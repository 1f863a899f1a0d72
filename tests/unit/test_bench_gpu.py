"""``bench/gpu.py`` at small size on the CPU: what it measures on a GPU, it measures here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

BENCH = Path(__file__).parents[2] / "bench"
# a section that fails, and one that takes too long: each gives a reason
FAULTS = """
import dataclasses, json, pathlib, sys
sys.argv = ["gpu.py", "--small", "--device", "cpu", "--out", "gpu.json"]
import boxed, gpu
gpu.main()
missing = gpu.Setting("tpu", gpu.SMALL, pathlib.Path())
slow = gpu.Setting("cpu", dataclasses.replace(gpu.SMALL, seconds=60), pathlib.Path())
print(json.dumps([boxed.run(lambda: gpu.serving(missing), 60), boxed.run(lambda: gpu.peak(slow), 0.1)]))
"""


def test_all_sections_run_and_a_section_that_cannot_gives_a_reason(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(BENCH), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: section["failed"] for name, section in found.items() if section["failed"]} == {}
    units = {name: {unit for _, _, unit in section["rows"]} for name, section in found.items()}
    assert {"slices/s", "TFLOP/s", "GiB"} <= units["extractor"]
    assert units["U-Net training"] == units["ACGAN training"] == {"samples/s", "GiB"}
    assert all(value > 0 for section in found.values() for _, value, unit in section["rows"] if unit)
    assert "fp32: the U-Net reaches" in done.stdout
    (_, missing), (_, late) = json.loads(done.stdout.splitlines()[-1])
    assert missing.startswith("DeviceError: device tpu: this onnxruntime has only")
    assert late == "stopped after 0.1 s"
