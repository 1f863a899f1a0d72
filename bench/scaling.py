"""The cost of a scan (bytes, CPU seconds of each stage) and the throughput of the broker, as used in docs/scaling.md.

    python bench/scaling.py                                     # the demonstration bundle, a phantom of 155 slices
    python bench/scaling.py --width 64 --slices 8               # the paper's network, random weights; needs torch
    python bench/scaling.py --broker amqp://… --pids 12,34,56   # messages per second; pids: of the broker's nodes

The stages are called one after the other, as their worker calls them. CPU seconds are reported and not wall-clock time,
because they hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
from gliaflow.answer import PackedMask, write_image
from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.grader import Grader
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_proto import Message, PredictionMessage, Queue, Scan, ScanMessage, Source, decode, encode
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Delivery, Refused
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import load_bundle
from random_network import random_bundle


def scan_of(slices: int) -> bytes:
    """A head of 240×240 voxels per slice with smooth tissue, noise and one bright lesion, as gzipped NIfTI."""
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[-1:1:240j, -1:1:240j, -1 : 1 : slices * 1j]
    head = ((x / 0.6) ** 2 + (y / 0.75) ** 2 + (z / 1.4) ** 2 < 1) * (300 + 60 * np.sin(5 * x) * np.cos(4 * y))
    head = (
        head
        + 250 * ((x - 0.2) ** 2 + (y + 0.1) ** 2 + (z / 2) ** 2 < 0.02)
        + (head > 0) * rng.normal(0, 12, head.shape)
    )
    return gzip.compress(nib.Nifti1Image(head.clip(0).astype(np.int16), np.diag([1.0, 1, 1, 1])).to_bytes(), 6)


def costs(folder: Path, width: int, slices: int) -> None:
    bundle = random_bundle(folder / "bundle", width) if width else load_bundle(None)
    stages = {
        "scan": Preprocessor(bundle, MemoryBroker(), []),
        "slices": Extractor(bundle, UNetSession(bundle, batch=4, threads=1)),
        "features": Grader(bundle, threads=1),
        "graded": Assembler(bundle, timeout_s=1e9),
    }
    data = scan_of(slices)
    count: dict[str, int] = defaultdict(int)
    size: dict[str, int] = defaultdict(int)
    cpu: dict[str, float] = defaultdict(float)
    waiting: list[Message] = [ScanMessage(id="m", scan=Scan(id="s", submission="b"), source=Source(data=data))]
    while waiting:
        message = waiting.pop(0)
        started = time.process_time()
        body = encode(message, "lz4")
        if isinstance(message, ScanMessage):
            cpu["client"] += time.process_time() - started
        count[message.kind] += 1
        size[message.kind] += len(body)
        if stage := stages.get(message.kind):
            started = time.process_time()
            outcome = stage.handle(decode(body), Delivery(stage.queue.name, "", body, message.id))
            bodies = [encode(result, "lz4") for result in outcome.publish]
            cpu[stage.name] += time.process_time() - started
            waiting += [decode(result) for result in bodies]
        elif isinstance(message, PredictionMessage):
            started = time.process_time()
            write_image(folder / "mask.nii.gz", PackedMask.of(message).image())
            cpu["client"] += time.process_time() - started
    per_slice = size["features"] / slices / 1000
    print(f"{bundle.id}: a scan of {slices} slices, {len(data):,} bytes; {per_slice:,.1f} kB of features per slice")
    print("kind         messages        bytes   bytes/message")
    for kind in count:
        print(f"{kind:12} {count[kind]:8} {size[kind]:12,} {size[kind] // count[kind]:15,}")
    for name, seconds in cpu.items():
        print(f"{name:14} {seconds:8.3f} CPU s per scan   {1000 * seconds / slices:8.2f} ms per slice")


def cpu_of(pids: list[int]) -> float:
    """CPU seconds that these processes have used."""
    ticks = 0
    for pid in pids:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def throughput(url: str, pids: list[int], megabytes: float) -> None:
    """Confirmed publishing by one thread and acknowledged receiving by another, through one quorum queue."""
    queue = Queue("gliaflow.bench", ("bench",), expires_s=600)
    print("bytes/message     messages/s      MB/s   client CPU s/GB   broker CPU s/GB (all nodes)")
    for size in (1_000, 30_000, 400_000, 2_000_000, 7_000_000):
        messages = int(min(500, max(10, megabytes * 1e6 / size)))
        body = os.urandom(size)
        with connect(url) as broker:
            broker.declare(queue)

            def receive(messages: int = messages) -> None:
                with connect(url) as other, other.consume(queue, 16) as consumer:
                    for _ in range(messages):
                        while (delivery := consumer.next(30)) is None:
                            pass
                        consumer.ack(delivery)

            receiver = threading.Thread(target=receive)
            receiver.start()
            time.sleep(1)
            before, own, started = cpu_of(pids), time.process_time(), time.perf_counter()
            for _ in range(messages):
                while True:
                    try:
                        broker.publish("bench", body)
                        break
                    except Refused:
                        time.sleep(0.01)
            receiver.join()
            took, own = time.perf_counter() - started, time.process_time() - own
            spent = cpu_of(pids) - before
            broker.delete(queue.name)
        moved = messages * size / 1e9
        print(
            f"{size:15,} {messages / took:12.1f} {1000 * moved / took:9.1f} {own / moved:17.1f} {spent / moved:17.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=0, help="width of a random U-Net; 0: the shipped bundle")
    parser.add_argument("--slices", type=int, default=155)
    parser.add_argument("--broker", default="", help="measure the throughput of this broker instead")
    parser.add_argument("--pids", default="", help="process ids of the broker, for its CPU seconds")
    parser.add_argument("--megabytes", type=float, default=200, help="to send through the broker for each message size")
    options = parser.parse_args()
    if options.broker:
        throughput(options.broker, [int(pid) for pid in options.pids.split(",") if pid], options.megabytes)
        return
    with tempfile.TemporaryDirectory() as name:
        costs(Path(name), options.width, options.slices)


if __name__ == "__main__":
    main()
