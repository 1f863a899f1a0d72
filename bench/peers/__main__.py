"""gliaflow beside BentoML, LitServe, Ray Serve and a bare onnxruntime loop, in turn, on the same cores.

    python tests/rabbitmq.py python bench/peers --programs .venv-peers/bin [--widths 8,16,64] [--rounds 3] [--only ray]

``make bench-peers`` sets up the environment of the peers and runs this. All get the same ONNX file and the same slices.
gliaflow reads scans from files and writes masks to files; the others get slices that are prepared. The ratio is to the
bare loop of the same round: the mean of its turns at the round's begin and end. The starts of all servers and a first
turn are not timed. Progress goes to stderr, and the table in Markdown and the figures as JSON to stdout.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bare_loop import prepared_slices
from contenders import Contender, Gliaflow, GliaflowOnRabbitMQ, Int8Loop, Loop, Turn, Work
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import available_cores
from peers import PEERS
from random_network import random_bundle, write_scans
from table import Row, as_json, markdown

GLIAFLOW = {"memory": Gliaflow, "rabbitmq": GliaflowOnRabbitMQ}
INT8_WIDTH = 64
MOST_DIFFERING = 1e-5  # of all pixels: those on the threshold, where the order of a sum decides


def slices_of(width: int) -> int:
    """As many slices as take some seconds."""
    return 288 if width <= 8 else 144 if width <= 16 else 24


def compare(network: str, loop: Loop, contenders: Sequence[Contender], rounds: int, right: Contender) -> list[Row]:
    """Let all take their turns, in another order in each round. ``right``: the one whose masks all must have."""
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in (loop, *contenders)}
    ratios: dict[str, list[float]] = {name: [] for name in turns}
    slices = len(loop.work.image)
    for number in range(rounds):
        before = loop.turn()
        for contender in random.Random(number).sample(contenders, len(contenders)):
            turns[contender.name].append(contender.turn())
        after = loop.turn()
        bare = (before.seconds + after.seconds) / 2
        turns[loop.name].append(Turn(bare, (before.cpu_seconds + after.cpu_seconds) / 2, after.masks))
        for name in turns:
            ratios[name].append(bare / turns[name][-1].seconds)
        figures = ", ".join(f"{name} {values[-1]:.2f}" for name, values in ratios.items())
        say(f"{network}, round {number + 1} of {rounds}: {slices / bare:.1f} slices a second; {figures}")
    masks = turns[right.name][0].masks
    assert masks.any()
    return [
        Row(
            network,
            name,
            [slices / turn.seconds for turn in of_one],
            ratios[name],
            [1000 * turn.cpu_seconds / slices for turn in of_one],
            max(int((turn.masks != masks).sum()) for turn in of_one),
            masks.size,
        )
        for name, of_one in turns.items()
    ]


def rows_of(width: int, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Compare all contenders with a network of this width; of 64, gliaflow with the network in int8 too."""
    folder.mkdir()
    bundle = random_bundle(folder / "bundle", width)
    slices = options.slices or slices_of(width)
    scans = max(2, slices // 24)
    paths = write_scans(folder / "scans", scans, slices // scans)
    work = Work(bundle, folder / "scans", paths, prepared_slices(bundle, paths), folder)
    ours = [kind(work) for name, kind in GLIAFLOW.items() if name in options.only]
    others = [kind(work, options.programs) for name, kind in PEERS.items() if name in options.only]
    with ExitStack() as stack:
        loop = stack.enter_context(Loop(work))
        contenders: list[Contender] = [stack.enter_context(each) for each in (*ours, *others)]
        rows = compare(f"width {width}", loop, contenders, options.rounds, loop)
    if width == INT8_WIDTH and ours:
        quantize(bundle.folder, folder / "int8")
        work8 = replace(work, bundle=load_bundle(folder / "int8"))
        with ExitStack() as stack:
            loop, loop8 = stack.enter_context(Loop(work)), stack.enter_context(Int8Loop(work8))
            ours = [stack.enter_context(type(each)(work8)) for each in ours]
            rows += compare(f"width {width}, int8", loop, [loop8, *ours], options.rounds, loop8)[1:]
    return rows


def quantize(bundle: Path, out: Path) -> None:
    """Write the bundle with its U-Net in int8. Its check of the answers means nothing with random weights."""
    command = [sys.executable, "-m", "gliaflow_cli", "quantize", str(bundle), "--out", str(out), "--scans", "1"]
    subprocess.run([*command, "--allow"], check=True, stdout=sys.stderr)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*GLIAFLOW, *PEERS)
    parser.add_argument("--programs", type=Path, required=True, help="the folder bin of the peers' environment")
    parser.add_argument("--widths", default="8,16,64", help="of the U-Net; default: 8,16,64 (the paper's is 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, help="default: 288, at width 16 144, at width 64 24")
    parser.add_argument("--only", default=",".join(names), help=f"some of {', '.join(names)}, separated by commas")
    options = parser.parse_args()
    options.programs = options.programs.resolve()
    options.only = options.only.split(",")
    if unknown := {*options.only} - {*names}:
        parser.error(f"--only: {', '.join(unknown)} is not one of {', '.join(names)}")
    if "rabbitmq" in options.only and "GLIAFLOW_TEST_BROKER" not in os.environ:
        parser.error("rabbitmq: start this by `python tests/rabbitmq.py`, or leave it out of --only")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gliaflow-peers-") as name:
        for width in map(int, options.widths.split(",")):
            rows += rows_of(width, options, Path(name) / str(width))
    print(f"{available_cores()} cores, {options.rounds} rounds\n\n{markdown(rows)}\n\n{as_json(rows)}")
    wrong = [row for row in rows if row.differing > MOST_DIFFERING * row.pixels]
    for row in wrong:
        say(f"{row.network}, {row.contender}: {row.differing} of {row.pixels} pixels are not the bare loop's")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
