"""Coverage-guided fuzzing: ``fuzz.py messages|nifti|bundle|dicom [-runs=1000000] [libFuzzer's flags]``.

Needs atheris (``make fuzz`` installs it; Linux only). A target is a module beside this one. Its ``seeds()`` returns the
first inputs, ``mutate()`` changes an input according to its structure, and ``run()`` processes one input and lets only
undocumented errors pass. The limits of bounds.py hold for every target: a second of CPU, a bound on memory, no crash.

An input that fails is written to ``out/fuzz/<target>-crash-…``. The same command with this file as its last argument
runs it again. The corpus is kept in ``out/fuzz/<target>`` and grows from run to run.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests")

TARGETS = ("messages", "nifti", "bundle", "dicom")
INSTRUMENTED = [
    "gliaflow_proto",
    "gliaflow_preprocessor",
    "gliaflow_runtime",
    "gliaflow_classifier",
    "gliaflow_extractor",
    "gliaflow_generator",
    "gliaflow_cli",
    "gliaflow_plugins.dicom",
    "nibabel.nifti1",
    "nibabel.analyze",
    "nibabel.spatialimages",
    "nibabel.orientations",
    "nibabel.volumeutils",
    "onnx.utils",
    "pydicom.filereader",
]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    import atheris

    name = sys.argv.pop(1)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")  # numpy warns of overflows, whose effects the targets check
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module(f"fuzz.{name}")
        bounds = importlib.import_module("fuzz.bounds")

    corpus = ROOT / "out" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    dictionary = corpus.with_suffix(".dict")
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.WORDS)
    dictionary.write_text("".join(f'"{word}"\n' for word in words))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < target.BLIND:
            return bytes(atheris.Mutate(data, max_size))
        mutated = target.mutate(bytes(data), rng)
        return mutated if len(mutated) <= max_size else data

    flags = [
        f"-max_len={target.MAX_BYTES}",
        f"-dict={dictionary}",
        "-timeout=10",
        "-rss_limit_mb=1500",
        f"-artifact_prefix={corpus}-",
    ]
    given = sys.argv[1:]
    files = [] if any(not flag.startswith("-") for flag in given) else [str(corpus)]
    atheris.Setup(
        [sys.argv[0], *flags, *given, *files],
        lambda data: bounds.bounded(target.run, bytes(data), target.PEAK_BYTES),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
