"""Flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Broker = Annotated[
    str | None,
    typer.Option("--broker", help="memory:// (this process, the default) or amqp://user:password@host/vhost."),
]
Management = Annotated[
    str | None,
    typer.Option("--management", help="RabbitMQ's management API, http://host:15672; default: on the broker's host."),
]
Bundle = Annotated[
    str | None,
    typer.Option("--bundle", help="Model bundle: a folder or s3://bucket/path; default: the shipped demonstration."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option("--threads", help="onnxruntime threads; 0: one per core.")]
Served = Annotated[
    str | None, typer.Option("--generator", help="A generator of the bundle; default: the bundle's own choice.")
]
Channel = Annotated[str | None, typer.Option("--channel", help="4-D scans: number of the FLAIR volume, from 0.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same result.", min=0)]

# how a cohort is read
Reader = Annotated[
    str | None,
    typer.Option("--reader", help="Reader (see `gliaflow plugins`); default: the first that knows the layout."),
]
High = Annotated[str | None, typer.Option("--high", help="WHO grades that count as HGG; default: III,IV. BraTS: IV.")]
Grades = Annotated[Path | None, typer.Option("--grades", help="A CSV or TSV with a grade for each patient.")]
PatientColumn = Annotated[str | None, typer.Option("--patient-column", help="Its column of patients.")]
GradeColumn = Annotated[str | None, typer.Option("--grade-column", help="Its column of grades.")]

# how networks are fitted
Cohort = Annotated[Path, typer.Argument(help="A folder of labelled scans (see `gliaflow cohort`).")]
Profile = Annotated[
    str, typer.Option("--profile", help="demo: minutes on two cores. small: hours. paper: the paper's sizes, on a GPU.")
]
Init = Annotated[
    Path | None, typer.Option("--init", help="Fine-tune this bundle's U-Net, which must not have seen this cohort.")
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", help="name=value for the variants that have it, or VARIANT.name=value for one; repeatable."
    ),
]
Tap = Annotated[
    str | None,
    typer.Option("--tap", help="Where features are read: enc5 (the paper's), enc4, dec1, dec2 or dec3."),
]
Crop = Annotated[
    bool | None,
    typer.Option("--crop/--no-crop", help="Crop features to the tumour; default: the profile's choice."),
]
Classifier = Annotated[
    str | None, typer.Option("--classifier", help="Classifier (see `gliaflow plugins`); default: the profile's.")
]
Preprocess = Annotated[
    list[str] | None,
    typer.Option(
        "--preprocess", help="A step before slices are cut: name or name:option=value,…; repeatable, in order."
    ),
]
TorchDevice = Annotated[str, typer.Option("--device", help="cpu or cuda; several GPUs: torchrun -m gliaflow_cli.")]
