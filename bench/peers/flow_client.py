"""A client of gliaflow as a process of its own, so that its CPU seconds can be counted.

With ``memory://``, the stages run in it too. For each folder that it reads on a line, it submits all scans, writes
their masks there, and prints the seconds that this took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import gliaflow
from gliaflow.answer import write_image


def main() -> None:
    scans, broker, bundle = sys.argv[1:]
    with gliaflow.open(broker, bundle=bundle) as flow:
        for line in sys.stdin:
            folder = Path(line.strip())
            started = time.perf_counter()
            for answer in flow.submit_all(scans):
                if answer.status == "failed":
                    sys.exit(f"{answer.scan}: {answer.reason}")
                write_image(folder / f"{answer.scan}.nii.gz", answer.mask)
            print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
