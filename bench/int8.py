"""Speed of a U-Net in int8 beside the same in fp32, on one thread: where does ``gliaflow quantize`` pay?

    python bench/int8.py [--widths 8,16,32,64] [--rounds 5]

Both run a slice at a time, as the extractor does, in turn, and the ratio is that of their CPU seconds, so that other
programs disturb little. The weights and the slices are random: the speed does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from gliaflow_quantizer.int8 import quantized, read_unet
from gliaflow_runtime.bundle.load import Bundle, demo_bundle, write_manifest
from gliaflow_runtime.inference import Network
from numpy.typing import NDArray
from random_network import random_bundle

SLICES = 512  # of both together in a round at width 8; fewer in wider networks, which take longer


def in_int8(bundle: Bundle, folder: Path, image: NDArray[np.float32]) -> Bundle:
    """The bundle with its U-Net in int8, and no other network."""
    folder.mkdir()
    (folder / "unet.onnx").write_bytes(quantized(read_unet(bundle), iter([image])))
    return write_manifest(folder, bundle.manifest.model_dump(mode="json", exclude={"schema_", "files"}))


def seconds(network: Network, image: NDArray[np.float32], slices: int) -> float:
    """CPU seconds of a slice."""
    started = time.process_time()
    for _ in range(slices):
        network(image=image)
    return (time.process_time() - started) / slices


def compare(name: str, bundle: Bundle, folder: Path, slices: int, rounds: int) -> None:
    image = np.random.default_rng(0).random((1, 1, *bundle.manifest.input.size), dtype=np.float32) * 2
    networks = [
        Network(each, "unet", [bundle.tap, "mask"], threads=1) for each in (bundle, in_int8(bundle, folder, image))
    ]
    for network in networks:
        network(image=image)
    taken = [[seconds(network, image, slices) for network in networks] for _ in range(rounds)]
    fp32, int8 = (1000 * statistics.median(each) for each in zip(*taken, strict=True))
    ratios = sorted(before / after for before, after in taken)
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    print(f"| {name} | {fp32:.1f} | {int8:.1f} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="8,16,32,64")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| U-Net | fp32, CPU ms a slice | int8 | ratio (median; range) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare("the shipped one, 128×128", Bundle(demo_bundle()), folder / "demo8", SLICES // 4, options.rounds)
        for width in map(int, options.widths.split(",")):
            bundle = random_bundle(folder / str(width), width)
            slices = max(2, SLICES * 8 // width**2)
            compare(f"width {width}, 240×240", bundle, folder / f"{width}in8", slices, options.rounds)


if __name__ == "__main__":
    main()
