"""Flags that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def given(text: str) -> Path:
    """The path that an argument names. Raises typer.BadParameter: it is empty, which would mean the current folder."""
    if not text.strip():
        raise typer.BadParameter("the path is empty (an unset shell variable?); for the current folder, write .")
    return Path(text)


# --help shows the flags below these headings
runtime = partial(typer.Option, rich_help_panel="Where it runs")
reading = partial(typer.Option, rich_help_panel="How the cohort is read")
fitting = partial(typer.Option, rich_help_panel="How networks are fitted")

Broker = Annotated[
    str | None,
    runtime("--broker", help="amqp://user:password@host/vhost; default: memory://, inside this process."),
]
Management = Annotated[
    str | None,
    runtime("--management", help="RabbitMQ's management API, http://host:15672; default: on the broker's host."),
]
Bundle = Annotated[
    str | None,
    runtime("--bundle", help="Model bundle: a folder, s3://bucket/path, or demo, the shipped one (default)."),
]
Device = Annotated[
    str | None,
    runtime(
        "--device",
        help="cpu (default), or another device of the installed onnxruntime: cuda, tensorrt, openvino, coreml, dml, …",
    ),
]
Threads = Annotated[int | None, runtime("--threads", help="onnxruntime threads; default: 0, one per core.")]
Served = Annotated[
    str | None, typer.Option("--generator", help="A generator of the bundle; default: the bundle's own choice.")
]
Channel = Annotated[str | None, typer.Option("--channel", help="4-D scans: number of the FLAIR volume, from 0.")]
Series = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        help="DICOM: the series to take: SeriesInstanceUID, number, NUMBER:ECHO_MS or part of the description.",
    ),
]
Sequences = Annotated[
    str | None,
    typer.Option(
        "--sequences",
        help="Sequences to find and send beside the FLAIR: t1,t1ce,t2 or none. Default: what the bundle reads; to a "
        "--broker, whose bundle is not known here: none.",
    ),
]
Capture = Annotated[
    bool,
    typer.Option("--capture", help="DICOM: also write <scan>_sc.dcm, a picture of the answer for every viewer."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List each file that is left out, with the reason.")]
Seed = Annotated[int, typer.Option("--seed", metavar="<int>", help="The same seed gives the same result.", min=0)]
PhantomSeed = Annotated[  # numpy takes a larger one for two numbers, so that two phantoms could be one
    int,
    typer.Option("--seed", metavar="<int>", help="The same seed gives the same result.", min=0, max=2**32 - 1),
]

# how a cohort is read
Reader = Annotated[
    str | None,
    reading("--reader", help="Reader (see `gliaflow plugins`); default: the first that knows the layout."),
]
High = Annotated[str | None, reading("--high", help="WHO grades that count as HGG; default: III,IV. As in BraTS: IV.")]
Grades = Annotated[Path | None, reading("--grades", help="A CSV or TSV with a grade for each patient.")]
PatientColumn = Annotated[str | None, reading("--patient-column", help="Column of the patients in --grades.")]
GradeColumn = Annotated[str | None, reading("--grade-column", help="Column of the grades in --grades.")]

# how networks are fitted
Allow = Annotated[
    bool, typer.Option("--allow", help="Fit in spite of leaks in the cohort; the result notes them as warnings.")
]
Cohort = Annotated[
    Path,
    typer.Argument(help="A folder of labelled scans (see `gliaflow cohort`).", parser=given, metavar="COHORT"),
]
Unlabelled = Annotated[
    Path | None,
    typer.Option(
        "--unlabelled",
        metavar="DIR",
        help="Scans of other patients, without labels: they show how features vary. No mask and no grade is read.",
    ),
]
Source = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="DIR",
        help="Labelled scans of another cohort, or phantoms: the generator `adapted` makes samples of them.",
    ),
]
Profile = Annotated[
    str,
    typer.Option("--profile", help="demo: minutes on two cores. small: an hour. paper: the paper's sizes, on a GPU."),
]
Epochs = Annotated[
    int | None,
    fitting("--epochs", metavar="<int>", help="Epochs of the U-Net; default: the profile's.", min=1),
]
Init = Annotated[
    str | None,
    fitting(
        "--init",
        help="Bundle (or demo) whose U-Net is fine-tuned, or none: random weights. It must not have seen this cohort. "
        "Default: the profile's (small: demo, which learned from phantoms; others: none).",
    ),
]
Options = Annotated[
    list[str] | None,
    fitting("--option", help="name=value for all variants that have it, or VARIANT.name=value for one; repeatable."),
]
Tap = Annotated[
    str | None,
    fitting("--tap", help="Where features are read: enc5 (the paper's), enc4, dec1, dec2 or dec3."),
]
Crop = Annotated[
    bool | None,
    fitting("--crop/--no-crop", help="Crop features to the tumour; default: the profile's choice."),
]
Classifier = Annotated[
    str | None, fitting("--classifier", help="Classifier (see `gliaflow plugins`); default: the profile's.")
]
Preprocess = Annotated[
    list[str] | None,
    fitting("--preprocess", help="A step before slices are cut: name or name:option=value,…; repeatable, in order."),
]
Channels = Annotated[
    str | None,
    fitting(
        "--channels",
        help="Sequences that the U-Net sees: flair, then any of t1, t1ce (after contrast) and t2, separated by commas. "
        "Default: flair.",
    ),
]
Drop = Annotated[
    float | None,
    fitting(
        "--drop",
        metavar="<float>",
        help="Probability with which a training slice lacks a sequence, for each but the FLAIR, so that the bundle "
        "answers scans without it, too. 0: all are needed, and patients without one are left out. Default: 0.2.",
        min=0,
        max=0.9,
    ),
]
TorchDevice = Annotated[str, fitting("--device", help="cpu or cuda. Several GPUs: torchrun -m gliaflow_cli train …")]
