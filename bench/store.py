"""Training from the feature store: peak memory at the paper's largest tap, and speed compared with features in RAM.

    python bench/store.py memory [--samples 5110] [--dir FOLDER]
    python bench/store.py speed [--samples 4540] [--batches 40] [--dir FOLDER]

``memory`` writes 128×120×120 features (5,110 of them take 19 GB of disk), fits both ACGANs and the classifier on them
for an epoch, each in its own process, and fails if one takes 2 GB or more. ``speed`` fits them at 1024×15×15 with
batches alternately from the store and from RAM, and reports the ratio of the speeds. The features are random, because
neither memory nor speed depends on their values.
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
from gliaflow_plugins.classifiers import CNN, CNNOptions
from gliaflow_plugins.contracts import FeatureSource, FitContext, FitSamples
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.generators.acgan import ACGAN, ACGANOptions, PaperACGAN, PaperOptions
from gliaflow_proto import Scan
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, StoredPart, write_part
from numpy.typing import NDArray

LARGEST, DEEPEST = (
    (128, 120, 120),
    (1024, 15, 15),
)  # the paper's largest tap, and the tap that it uses
LIMIT = 2e9
PATIENTS = 101


class EnoughBatches(Exception):
    """The requested number of batches was read."""


class TimedFeatures:
    """A ``FeatureSource`` whose batches come alternately from several sources.

    It raises ``EnoughBatches`` after ``batches`` from each. ``seconds`` has the time of each step by source: reading
    the batch and the computation until the next request. The first ``skip`` batches are not counted.
    """

    def __init__(self, sources: dict[str, FeatureSource], batches: int, skip: int = 0) -> None:
        self.sources, self.batches, self.skip = sources, batches, skip
        first = next(iter(sources.values()))
        self.labels, self.classes, self.shape = first.labels, first.classes, first.shape
        self.seconds: dict[str, list[float]] = {name: [] for name in sources}
        self.read = self.samples = 0
        self.current, self.started = "", 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        now = time.perf_counter()
        if self.read > self.skip:
            self.seconds[self.current].append(now - self.started)
        if self.read == self.skip + self.batches * len(self.sources):
            raise EnoughBatches
        self.current = list(self.sources)[self.read % len(self.sources)]
        self.read += 1
        self.samples += len(indices)
        self.size = len(indices)
        self.started = time.perf_counter()
        return self.sources[self.current].batch(indices)


def write_store(folder: Path, shape: tuple[int, int, int], samples: int) -> None:
    """Write rolled copies of one block of ReLU-like numbers, in parts of the size of a message."""
    block = np.maximum(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), 0).astype(np.float16).ravel()
    each = max(1, min(16, 8 * 2**20 // (block.nbytes + 240 * 240)))
    origin = FeatureOrigin("random", "tap", shape)
    mask = np.zeros((each, 240, 240), np.uint8)
    for start in range(0, samples, each):
        n = min(each, samples - start)
        features = np.stack([np.roll(block, 7919 * (start + i)) for i in range(n)]).reshape(n, *shape)
        patient = start // each % PATIENTS
        scan = Scan(id=f"s{start}", patient=f"p{patient}", label="LGG" if patient % 4 == 0 else "HGG")
        write_part(folder, StoredPart(scan, (0, 1), origin, features, mask[:n], range(n)))
    print(f"{samples} samples of {shape}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e9:.1f} GB", flush=True)


def fit_acgan(source: FeatureSource, patients: NDArray[np.str_]) -> None:
    ACGAN().fit(source, ACGANOptions(steps=len(source) // 16), FitContext(0))


def fit_paper_acgan(source: FeatureSource, patients: NDArray[np.str_]) -> None:
    PaperACGAN().fit(source, PaperOptions(epochs=1), FitContext(0))


def fit_classifier(source: FeatureSource, patients: NDArray[np.str_]) -> None:
    held_out = np.isin(patients, np.unique(patients)[:15])
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    CNN().fit(source, CNNOptions(epochs=1), FitSamples(train, validation, patients.tolist(), "balanced"), FitContext(0))


FITS: dict[str, Callable[[FeatureSource, NDArray[np.str_]], None]] = {
    "acgan": fit_acgan,
    "acgan-paper": fit_paper_acgan,
    "classifier": fit_classifier,
}


def one_fit(name: str, folder: Path, batches: int) -> None:
    """Fit on the store in this process, and report its peak memory."""
    import torch

    torch.set_num_threads(1)
    store = FeatureStore(folder)
    opened = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed = TimedFeatures({"store": store}, batches or 10**9)
    started = time.perf_counter()
    with suppress(EnoughBatches):
        FITS[name](timed, store.patients)
    seconds = time.perf_counter() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{name:11}  {len(store)} samples, {timed.samples} read in {seconds:.0f} s   "
        f"RSS: {opened / 1e9:.2f} GB with torch loaded and the store open, at most {peak / 1e9:.2f} GB"
    )
    sys.exit(peak >= LIMIT)


def memory(options: argparse.Namespace, folder: Path) -> int:
    write_store(folder, LARGEST, options.samples)
    command = [sys.executable, __file__, "fit", "--dir", str(folder), "--batches", str(options.batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return sum(subprocess.run([*command, "--name", name], env=environment).returncode for name in options.name or FITS)


def speed(options: argparse.Namespace, folder: Path) -> int:
    """Time the steps of each network with batches alternately from RAM, the store, and the store without cache."""
    write_store(folder, DEEPEST, options.samples)
    store = FeatureStore(folder)
    in_ram = np.empty((len(store), *store.shape), np.float16)
    for index in range(len(store)):
        in_ram[index] = store.batch(np.array([index]))[0]
    sources = {
        "RAM": ArrayFeatures(in_ram, store.labels, store.classes),
        "store": store,
        "store on disk": OnDisk(store),
    }
    for name in options.name or FITS:
        skip = 65 + 3 * len(sources)  # the first 65 are for the channels' scale and components
        timed = TimedFeatures(sources, options.batches or 40, skip)
        with suppress(EnoughBatches):
            FITS[name](timed, store.patients)
        ram_step = statistics.median(timed.seconds["RAM"])
        for where, seconds in timed.seconds.items():
            step = statistics.median(seconds)
            low, high = np.percentile(ram_step / np.array(seconds), [25, 75])
            print(
                f"{name:11} {where:14} {len(seconds)} steps, median {1000 * step:6.1f} ms, {timed.size / step:6.1f} "
                f"samples/s   speed relative to RAM {ram_step / step:.3f} (quartiles {low:.2f}–{high:.2f})",
                flush=True,
            )
    return 0


class OnDisk:
    """A store whose files are removed from the kernel's cache before each batch."""

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
    parser.add_argument("mode", choices=["memory", "speed", "fit"])
    parser.add_argument("--samples", type=int, help="default: 5110 for memory, 4540 for speed")
    parser.add_argument("--batches", type=int, default=0, help="to read (default: an epoch; for speed 40 of each)")
    parser.add_argument("--name", choices=list(FITS), action="append", help="fit only this; repeat for more")
    parser.add_argument("--dir", type=Path, help="folder for the temporary store")
    options = parser.parse_args()
    options.samples = options.samples or (5110 if options.mode == "memory" else 4540)
    if options.mode == "fit":
        one_fit(options.name[0], options.dir, options.batches)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="gliaflow-bench-") as name:
        return (memory if options.mode == "memory" else speed)(options, Path(name))


if __name__ == "__main__":
    sys.exit(main())
