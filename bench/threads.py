"""How cores share slices: the rule of the extractor (ADR 21) beside its alternatives, on this machine.

    python bench/threads.py [--width 64] [--slices 32] [--rounds 5]   # a width needs torch; default: the shipped bundle
    taskset -c 0-7 python bench/threads.py --width 8                    # with eight cores

Each line is a number of runs at the same time, the slices in each, and the threads of the session. All lines take
turns, and the ratio is to the first line, onnxruntime's usual way, in the same round. CPU milliseconds hold on a busy
machine too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.in_threads import in_threads
from gliaflow_runtime.inference import Network
from gliaflow_runtime.settings import available_cores
from random_network import random_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=0, help="width of a random U-Net; 0: the shipped bundle")
    parser.add_argument("--slices", type=int, default=16, help="of a part")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = available_cores()
    ways = [(1, 4, cores), (1, 16, cores)]
    ways += [(runs, 1, cores - runs + 1) for runs in sorted({1, 2, cores // 2, cores} - {0}) if runs <= cores]
    ways += [(cores, batch, 1) for batch in (2, 4)]
    with tempfile.TemporaryDirectory() as name:
        bundle = random_bundle(Path(name) / "bundle", options.width) if options.width else load_bundle(None)
        image = np.random.default_rng(0).standard_normal((options.slices, 1, *bundle.manifest.input.size), np.float32)
        networks = {n: Network(bundle, "unet", [bundle.tap, "mask"], threads=n) for n in {way[2] for way in ways}}
        wall: dict[tuple[int, int, int], list[float]] = {way: [] for way in ways}
        cpu: dict[tuple[int, int, int], list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way in ways:
                runs, batch, threads = way

                def run(start: int, network: Network, batch: int) -> None:
                    network(image=image[start : start + batch])

                started, used = time.perf_counter(), time.process_time()
                in_threads(partial(run, network=networks[threads], batch=batch), range(0, len(image), batch), runs)
                if number:  # the first round warms
                    wall[way].append(time.perf_counter() - started)
                    cpu[way].append(time.process_time() - used)
    print(f"{bundle.id}, {cores} cores, {options.slices} slices, {options.rounds} rounds")
    print("runs  slices in each  threads   slices/s   ratio             CPU ms/slice")
    for way in ways:
        ratios = [first / own for first, own in zip(wall[ways[0]], wall[way], strict=True)]
        rate = options.slices / statistics.median(wall[way])
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        used = 1000 * statistics.median(cpu[way]) / options.slices
        print(f"{way[0]:4} {way[1]:15} {way[2]:8} {rate:10.2f}   {spread:18} {used:10.2f}")


if __name__ == "__main__":
    main()
