"""Training from the feature store: peak memory at the paper's largest tap, and speed beside features held in RAM.

    python bench/store.py memory [--samples 5110] [--dir FOLDER]
    python bench/store.py speed [--samples 4540] [--batches 40] [--dir FOLDER]

``memory`` writes 128×120×120 features (19 GB for 5,110 of them; the folder must have room) and fits both ACGANs and the
classifier on them for an epoch, each in a process of its own, and fails where one takes 2 GB or more. ``speed`` fits
them at 1024×15×15 from the store and from RAM in turn, a step each; what counts is the ratio. Features are random:
neither memory nor speed depends on what they are.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from gliaflow_plugins.contracts import FeatureSource
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.generators.acgan import ACGAN, ACGANOptions, PaperACGAN, PaperOptions
from gliaflow_proto import Scan
from gliaflow_store.feature_store import FeatureStore, Origin, write_part
from numpy.typing import NDArray

LARGEST, DEEPEST = (128, 120, 120), (1024, 15, 15)  # the paper's taps: the most numbers a slice, and the one it uses
LIMIT = 2e9
PATIENTS = 101


class Enough(Exception):
    """As many batches as were wanted are read."""


class Watched:
    """A ``FeatureSource`` whose batches come from each of ``homes`` in turn, left after so many of each.

    ``seconds`` has, by home, how long each took from being asked for until the next one was asked for: reading and
    the step that was computed with it. The first ``skip`` batches are not counted.
    """

    def __init__(self, homes: dict[str, FeatureSource], batches: int, skip: int = 0) -> None:
        self.homes, self.batches, self.skip = homes, batches, skip
        first = next(iter(homes.values()))
        self.labels, self.classes, self.shape = first.labels, first.classes, first.shape
        self.seconds: dict[str, list[float]] = {name: [] for name in homes}
        self.read = self.samples = 0
        self.current, self.started = "", 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        now = time.perf_counter()
        if self.read > self.skip:
            self.seconds[self.current].append(now - self.started)
        if self.read == self.skip + self.batches * len(self.homes):
            raise Enough
        self.current = list(self.homes)[self.read % len(self.homes)]
        self.read += 1
        self.samples += len(indices)
        self.size = len(indices)
        self.started = time.perf_counter()
        return self.homes[self.current].batch(indices)


def write_store(folder: Path, shape: tuple[int, int, int], samples: int) -> None:
    """Rolls of one block of ReLU-like numbers, in parts of as many as a message holds."""
    block = np.maximum(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), 0).astype(np.float16).ravel()
    each = max(1, min(16, 8 * 2**20 // (block.nbytes + 240 * 240)))
    origin = Origin("random", "tap", shape)
    mask = np.zeros((each, 240, 240), np.uint8)
    for start in range(0, samples, each):
        n = min(each, samples - start)
        features = np.stack([np.roll(block, 7919 * (start + i)) for i in range(n)]).reshape(n, *shape)
        patient = start // each % PATIENTS
        scan = Scan(id=f"s{start}", patient=f"p{patient}", label="LGG" if patient % 4 == 0 else "HGG")
        write_part(folder, scan, (0, 1), origin, features, mask[:n], range(n))
    print(f"{samples} samples of {shape}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e9:.1f} GB", flush=True)


def fit_acgan(source: FeatureSource, patients: NDArray[np.str_]) -> None:
    ACGAN().fit(source, ACGANOptions(steps=len(source) // 16), seed=0)


def fit_paper_acgan(source: FeatureSource, patients: NDArray[np.str_]) -> None:
    PaperACGAN().fit(source, PaperOptions(epochs=1), seed=0)


def fit_classifier(source: FeatureSource, patients: NDArray[np.str_]) -> None:
    from gliaflow_plugins.networks.cnn import fit_classifier

    held_out = np.isin(patients, np.unique(patients)[:15])
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    fit_classifier(source, train, validation, patients.tolist(), seed=0, epochs=1)


FITS: dict[str, Callable[[FeatureSource, NDArray[np.str_]], None]] = {
    "acgan": fit_acgan,
    "acgan-paper": fit_paper_acgan,
    "classifier": fit_classifier,
}


def one_fit(name: str, folder: Path, batches: int) -> None:
    """What a process of its own does: fit on the store and tell the peak of its memory."""
    import torch

    torch.set_num_threads(1)
    store = FeatureStore(folder)
    opened = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watched = Watched({"store": store}, batches or 10**9)
    started = time.perf_counter()
    with suppress(Enough):
        FITS[name](watched, store.patients)
    seconds = time.perf_counter() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{name:11}  {len(store)} samples, {watched.samples} read in {seconds:.0f} s   "
        f"RSS: {opened / 1e9:.2f} GB with torch loaded and the store open, at most {peak / 1e9:.2f} GB"
    )
    sys.exit(peak >= LIMIT)


def memory(options: argparse.Namespace, folder: Path) -> int:
    write_store(folder, LARGEST, options.samples)
    command = [sys.executable, __file__, "fit", "--dir", str(folder), "--batches", str(options.batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return sum(subprocess.run([*command, "--name", name], env=environment).returncode for name in options.name or FITS)


def speed(options: argparse.Namespace, folder: Path) -> int:
    """Steps of each network with batches from RAM and from the store in turn."""
    write_store(folder, DEEPEST, options.samples)
    store = FeatureStore(folder)
    held = np.empty((len(store), *store.shape), np.float16)
    for index in range(len(store)):
        held[index] = store.batch(np.array([index]))[0]
    homes = {"RAM": ArrayFeatures(held, store.labels, store.classes), "store": store, "store on disk": OnDisk(store)}
    for name in options.name or FITS:
        skip = 65 + 3 * len(homes)  # the first 65 are for the channels' scale and components
        watched = Watched(homes, options.batches or 40, skip)
        with suppress(Enough):
            FITS[name](watched, store.patients)
        ram = statistics.median(watched.seconds["RAM"])
        for where, seconds in watched.seconds.items():
            step = statistics.median(seconds)
            low, high = np.percentile(ram / np.array(seconds), [25, 75])
            print(
                f"{name:11} {where:14} {len(seconds)} steps, median {1000 * step:6.1f} ms, {watched.size / step:6.1f} "
                f"samples/s   speed beside RAM {ram / step:.3f} (quartiles {low:.2f}–{high:.2f})",
                flush=True,
            )
    return 0


class OnDisk:
    """A store whose files the kernel has not in its cache."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.labels, self.classes, self.shape = store, store.labels, store.classes, store.shape

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        for file in {int(f) for f in np.searchsorted(self.store.files.ends, indices, side="right")}:
            with self.store.files.paths[file].open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return self.store.batch(indices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "speed", "fit"])
    parser.add_argument("--samples", type=int, help="default: 5110 for memory, 4540 for speed")
    parser.add_argument("--batches", type=int, default=0, help="read so many (default: an epoch; for speed 40 of each)")
    parser.add_argument("--name", choices=list(FITS), action="append", help="fit this only (may be given again)")
    parser.add_argument("--dir", type=Path, help="where the store is made (and deleted)")
    options = parser.parse_args()
    options.samples = options.samples or (5110 if options.what == "memory" else 4540)
    if options.what == "fit":
        one_fit(options.name[0], options.dir, options.batches)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="gliaflow-bench-") as name:
        return (memory if options.what == "memory" else speed)(options, Path(name))


if __name__ == "__main__":
    sys.exit(main())
