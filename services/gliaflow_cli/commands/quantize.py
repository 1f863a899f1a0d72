"""``gliaflow quantize``: a bundle whose U-Net computes with 8-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import interruptible
from gliaflow_cli.terminal import console, print_problems, progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@interruptible("nothing was written; run the same command again")
def quantize(
    bundle: Annotated[
        str, typer.Argument(help="The bundle: a folder, s3://bucket/path, or demo, the shipped one.", metavar="BUNDLE")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the new bundle.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            help="A folder of scans like yours (see `gliaflow cohort`); default: phantoms. Half of its patients at "
            "least are left for the check.",
            metavar="COHORT",
        ),
    ] = None,
    scans: Annotated[int, typer.Option("--scans", metavar="<int>", help="Scans to check on, of each kind.", min=1)] = 8,
    seed: flags.PhantomSeed = 0,
    reader: flags.Reader = None,
    series: flags.Series = None,
    allow: Annotated[
        bool, typer.Option("--allow", help="Write the bundle in spite of objections; the manifest notes them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the manifest records, for programs.")] = False,
) -> None:
    """Write a bundle whose U-Net is int8: a wide one is several times as fast on a CPU, a narrow one hardly.

    Masks, volumes, P(HGG) and features of both bundles are compared on phantoms, and on patients of COHORT that have
    masks and were not calibrated on. Nothing is written if the mean Dice falls by more than 0.01, or if no scan could
    be checked.
    """
    import json

    from gliaflow.flair_rules import flair_rules
    from gliaflow_plugins.cohorts.read import CohortRequest
    from gliaflow_plugins.registry import load_registry
    from gliaflow_quantizer.quantize import QuantizeRequest
    from gliaflow_quantizer.quantize import quantize as quantize_bundle
    from gliaflow_runtime.bundle.load import load_bundle
    from gliaflow_runtime.logs import configure_logging
    from gliaflow_runtime.settings import load_settings

    configure_logging("error", "auto")  # problems of scans are printed beside the progress
    settings = load_settings({"bundle": bundle})
    source = load_bundle(settings.bundle, state=settings.state, bundles=settings.bundles)
    with progress_bar() as bar:
        cohort = None
        if calibrate is not None:
            rules = flair_rules(series or ())
            cohort = CohortRequest(calibrate, reader, rules=rules).read(load_registry())
            if not as_json:
                print_problems(cohort)
        written = quantize_bundle(QuantizeRequest(source, out, cohort, scans, seed, allow), bar)
    made = written.manifest.quantization
    assert made is not None, "quantize records it"
    if as_json:
        text = json.dumps({"bundle": written.id, "folder": str(out), **made.model_dump(mode="json")}, indent=2)
        console.print(*text.split("\n"), sep="\n", soft_wrap=True)
        return
    console.print(f"bundle {written.id}: {out}", soft_wrap=True)
    for name, figures in made.changes.items():
        console.print(f"  on {figures['scans']} scans of {name}:", soft_wrap=True)
        for title, text in _lines(figures):
            console.print(f"    {title:<12}  {text}", soft_wrap=True)
    if made.cohort_unchecked:
        console.print(f"not checked on the cohort: {made.cohort_unchecked}", style="yellow", soft_wrap=True)
    for objection in made.objections:
        console.print(f"allowed: {objection}", style="yellow", soft_wrap=True)
    console.print(f"next:   gliaflow submit SCANS --bundle {out} --out answers", soft_wrap=True)


def _lines(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A check's figures, as pairs of a title and a text."""
    for title, key, digits in (("Dice", "dice", 3), ("tumour ml", "tumour_ml", 1), ("P(HGG)", "p_hgg", 3)):
        if change := figures[key]:
            before, after, largest = (
                f"{change[name]:{sign}.{digits}f}"
                for name, sign in (("before", ""), ("after", ""), ("largest_change", "+"))
            )
            yield title, f"{before} → {after} on average, {largest} at most"
    yield "grades", f"{figures['grades_changed']} changed"
    yield "masks", f"agree with those of fp32 (Dice {figures['agreement']:.3f})"
    if figures["features_error"] is not None:
        yield "features", f"changed by {100 * figures['features_error']:.1f} % of their size"
    for name, share in figures["critics_accuracy"].items():
        if share["before"] is not None and share["after"] is not None:
            yield f"{name}", f"its critic is right on {share['before']:.0%} → {share['after']:.0%} of real features"
