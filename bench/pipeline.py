"""Speed of the whole pipeline, compared with a bare onnxruntime loop over the same slices.

    python tests/rabbitmq.py python bench/pipeline.py [--width 64] [--slices 24]

Both run alternately on the same cores, several times, and their ratio is reported. The loop gets prepared slices and
discards its results, so all other work of the pipeline (reading, resampling, messages, grading, restoring masks)
counts as overhead. The weights are random, because the speed of a network does not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bare_loop import BareLoop, prepared_slices
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.settings import available_cores
from random_network import random_bundle, write_scans
from stage_processes import stage_processes


def pipeline(bundle: Bundle, scans: Path, out: Path, broker: str) -> float:
    """Slices per second of ``gliaflow submit``, from the first scan sent to the last one answered."""
    command = [sys.executable, "-m", "gliaflow_cli", "submit", str(scans), "--out", str(out)]
    command += ["--bundle", str(bundle.folder)]
    started = time.time()
    subprocess.run([*command, "--broker", broker], check=True, capture_output=True)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    seconds = sum(float(row["seconds"]) for row in rows)  # starting Python is not counted
    assert seconds <= time.time() - started
    return sum(int(row["slices"]) for row in rows) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of the U-Net; the paper's is 64")
    parser.add_argument("--slices", type=int, default=24, help="of each scan")
    parser.add_argument("--scans", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    amqp = os.environ.get("GLIAFLOW_TEST_BROKER", "")
    slices = options.scans * options.slices
    rates: dict[str, list[float]] = {"bare onnxruntime loop": [], "memory://": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = random_bundle(folder / "bundle", options.width)
        loop = BareLoop(bundle, prepared_slices(bundle, write_scans(folder / "scans", options.scans, options.slices)))
        if amqp:
            rates["RabbitMQ, four processes"] = []
            stack.enter_context(stage_processes(amqp, bundle.folder, folder))
            time.sleep(10)
        for number in range(options.rounds):
            rates["bare onnxruntime loop"].append(slices / loop.seconds())
            rates["memory://"].append(pipeline(bundle, folder / "scans", folder / f"m{number}", "memory://"))
            if amqp:
                out = folder / f"a{number}"
                rates["RabbitMQ, four processes"].append(pipeline(bundle, folder / "scans", out, amqp))
    print(f"U-Net of width {options.width}, {slices} slices, {options.rounds} rounds, {available_cores()} cores")
    loop = rates["bare onnxruntime loop"]
    result = {}
    for name, speeds in rates.items():
        ratios = [rate / bare for rate, bare in zip(speeds, loop, strict=True)]
        result[name] = {"slices_per_second": statistics.median(speeds), "ratio": statistics.median(ratios)}
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{name:26} {statistics.median(speeds):8.2f} slices/s   ratio {statistics.median(ratios):.3f} ({spread})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
