"""The ``gliaflow`` command. Each command here only reads its options; the work is in the module it imports."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help=(
        "Brain MRI scans in; tumour masks, deep features, class-balanced synthetic features and a glioma grade out.\n\n"
        "Try `gliaflow demo --out out/demo`, then `gliaflow submit SCANS --out out`. Settings: flags, then GLIAFLOW_* "
        "in the environment, then gliaflow.toml. Exit codes: 0 all well, 1 some scans failed, 2 bad usage.\n\n"
        "Not a medical device."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
dead_app = typer.Typer(
    help="Dead letters: messages that a stage could not work on, each with its reason.", no_args_is_help=True
)
app.add_typer(dead_app, name="dead")
plugins_app = typer.Typer(invoke_without_command=True)
app.add_typer(plugins_app, name="plugins")

# what is printed holds file names and reasons of any kind: none of it is markup
console = Console(markup=False, highlight=False)


class Service(StrEnum):
    """The services that ``gliaflow serve`` runs."""

    preprocessor = "preprocessor"
    extractor = "extractor"
    generator = "generator"
    classifier = "classifier"
    trainer = "trainer"


BrokerFlag = Annotated[
    str | None,
    typer.Option("--broker", help="memory:// (this process, the default) or amqp://user:password@host/vhost."),
]
ManagementFlag = Annotated[
    str | None,
    typer.Option("--management", help="RabbitMQ's management API, http://host:15672; default: on the broker's host."),
]
BundleFlag = Annotated[
    str | None,
    typer.Option("--bundle", help="Model bundle: a folder or s3://bucket/path; default: the shipped demonstration."),
]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="cpu or cuda.")]
ThreadsFlag = Annotated[int | None, typer.Option("--threads", help="onnxruntime threads; 0: one a core.")]
ServedFlag = Annotated[
    str | None, typer.Option("--generator", help="A generator that the bundle has; default: the bundle's own.")
]
ReaderFlag = Annotated[
    str | None, typer.Option("--reader", help="Reader (see `gliaflow plugins`); default: the first that knows it.")
]
HighFlag = Annotated[str | None, typer.Option("--high", help="WHO grades that are high; default: III,IV. BraTS: IV.")]
GradesFlag = Annotated[Path | None, typer.Option("--grades", help="A CSV or TSV of grades by patient.")]
PatientColumnFlag = Annotated[str | None, typer.Option("--patient-column", help="Its column of patients.")]
GradeColumnFlag = Annotated[str | None, typer.Option("--grade-column", help="Its column of grades.")]
ProfileFlag = Annotated[
    str, typer.Option("--profile", help="demo: minutes on two cores. small: hours. paper: the paper's sizes, on a GPU.")
]
InitFlag = Annotated[
    Path | None, typer.Option("--init", help="Fine-tune the U-Net of this bundle; it must not have seen this cohort.")
]
OptionFlag = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the variants, as name=value, or of one, VARIANT.name=value; repeat."),
]
TapFlag = Annotated[
    str | None, typer.Option("--tap", help="Where features are read: enc5 (the paper's), enc4, dec1, dec2 or dec3.")
]
CropFlag = Annotated[
    bool | None,
    typer.Option("--crop/--no-crop", help="Crop features to the tumour found; default: the profile's."),
]
ClassifierFlag = Annotated[
    str | None, typer.Option("--classifier", help="Classifier (see `gliaflow plugins`); default: the profile's.")
]
PreprocessFlag = Annotated[
    list[str] | None,
    typer.Option("--preprocess", help="A step before slices are cut, name or name:option=value,…; repeat, in order."),
]
TorchDeviceFlag = Annotated[str, typer.Option("--device", help="cpu or cuda; several GPUs: torchrun -m gliaflow_cli.")]
SeedFlag = Annotated[int, typer.Option("--seed", help="Seed: the same seed gives the same result.", min=0)]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the scans, answers and report.html.")],
    patients: Annotated[int, typer.Option("--patients", help="Phantom patients to make.", min=2)] = 6,
    seed: SeedFlag = 20_26,
    broker: BrokerFlag = None,
    bundle: BundleFlag = None,
) -> None:
    """Make phantom scans, stream them through all four stages, and write a report with pictures."""
    from gliaflow_cli.commands.demo import run_demo

    run_demo(out, patients, seed, _settings(broker=broker, bundle=bundle), console)


@app.command()
def serve(
    stage: Annotated[Service, typer.Argument(help="Which stage to run.")],
    broker: BrokerFlag = None,
    bundle: BundleFlag = None,
    device: DeviceFlag = None,
    threads: ThreadsFlag = None,
    generator: ServedFlag = None,
    health_port: Annotated[
        int | None, typer.Option("--health-port", help="Port for /livez, /readyz, /metrics.")
    ] = None,
    prefetch: Annotated[int | None, typer.Option("--prefetch", help="Messages held at a time.")] = None,
    root: Annotated[
        list[str] | None, typer.Option("--root", help="Where a scan URI may point; repeat for more.")
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", help="trainer: folder of the feature store.")] = None,
    bundles: Annotated[Path | None, typer.Option("--bundles", help="trainer: folder for new bundles.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="trainer: as for `gliaflow train`.")] = None,
    config: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting with its value and exit.")
    ] = False,
) -> None:
    """Run one stage on a broker until SIGTERM, which drains it.

    The trainer records the features of labelled scans and fits new bundles on them; it needs the extra "train".
    """
    from gliaflow_runner.pipeline import serve as serve_stage
    from gliaflow_runtime.broker.interface import without_password
    from gliaflow_runtime.logs import configure_logging

    settings = _settings(
        broker=broker,
        bundle=bundle,
        device=device,
        threads=threads,
        generator=generator,
        health_port=health_port,
        prefetch=prefetch,
        roots=root or None,
        store=store,
        bundles=bundles,
        train_profile=profile,
    )
    if config:
        for name, field in type(settings).model_fields.items():
            value = getattr(settings, name)
            shown = without_password(value) if name == "broker" else value
            console.print(f"{name} = {shown}  # {field.description}", soft_wrap=True)
        return
    if settings.broker.startswith("memory:"):
        raise typer.BadParameter(
            "memory:// is one process's own broker, so a stage alone on it would never get a message; "
            f"name a RabbitMQ: --broker amqp://{stage.value}@localhost/"
        )
    configure_logging(settings.log_level, settings.log_format)
    serve_stage(stage.value, settings)


@app.command()
def submit(
    paths: Annotated[
        list[str],
        typer.Argument(help="Scans (NIfTI), folders, globs, s3://… of such; or a cohort.", metavar="PATH…"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions.csv and <scan>_seg.nii.gz.")],
    grade: Annotated[str | None, typer.Option("--grade", help="The known grade of these scans: HGG or LGG.")] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", help="4-D scans: number of the FLAIR volume, from 0.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Pass over scans that DIR has an answer to.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Give up after so many seconds without any answer.")
    ] = 1800,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="PATH is one cohort (see `gliaflow cohort`): send its labels too.")
    ] = False,
    reader: ReaderFlag = None,
    high: HighFlag = None,
    grades: GradesFlag = None,
    patient_column: PatientColumnFlag = None,
    grade_column: GradeColumnFlag = None,
    broker: BrokerFlag = None,
    bundle: BundleFlag = None,
    device: DeviceFlag = None,
    threads: ThreadsFlag = None,
) -> None:
    """Send scans through the pipeline; get a grade, a mask and a row of predictions.csv for each."""
    from gliaflow_cli.commands.learn import CohortChoice
    from gliaflow_cli.commands.run import run_submit

    of_cohort = (reader, high, grades, patient_column, grade_column)
    if labelled and (len(paths) != 1 or grade is not None):
        raise typer.BadParameter("--labelled takes one cohort, which tells the grades: no other PATH, no --grade")
    if not labelled and any(flag is not None for flag in of_cohort):
        raise typer.BadParameter("how a cohort is read goes with --labelled")
    chosen = CohortChoice(Path(paths[0]), *of_cohort) if labelled else None
    settings = _settings(broker=broker, bundle=bundle, device=device, threads=threads)
    failed = run_submit(paths, out, grade, channel, resume, timeout, settings, console, labelled=chosen)
    raise typer.Exit(1 if failed else 0)


@app.command()
def watch(
    inbox: Annotated[Path, typer.Argument(help="Folder in which scans appear.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the answers.")],
    broker: BrokerFlag = None,
) -> None:
    """Answer each scan that is dropped into INBOX, until SIGTERM."""
    from gliaflow_runtime.logs import configure_logging

    from gliaflow_cli.commands.watch import watch as watch_folder

    settings = _settings(broker=broker)
    configure_logging(settings.log_level, settings.log_format)
    watch_folder(inbox, out, settings)


@app.command()
def generate(
    grade: Annotated[str, typer.Option("--grade", help="Class of the features: HGG or LGG.")],
    count: Annotated[int, typer.Option("--count", help="How many.", min=1)],
    out: Annotated[Path, typer.Option("--out", help="A .safetensors file: features [N, C, H, W], label [N].")],
    seed: SeedFlag = 0,
    generator: ServedFlag = None,
    broker: BrokerFlag = None,
    bundle: BundleFlag = None,
) -> None:
    """Draw synthetic features of one class, only those that the critic puts into it."""
    from gliaflow_cli.commands.run import run_generate

    run_generate(grade, count, seed, out, _settings(broker=broker, bundle=bundle, generator=generator), console)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write the cohort to (BraTS 2018 layout).")],
    patients: Annotated[int, typer.Option("--patients", help="How many patients.", min=1)] = 20,
    seed: SeedFlag = 0,
    hgg_share: Annotated[float, typer.Option("--hgg-share", help="Share of high grade.", min=0, max=1)] = 0.6,
) -> None:
    """Write a cohort of phantom scans with masks and grades."""
    from gliaflow_cli.commands.run import run_phantom

    run_phantom(out, patients, seed, hgg_share, console)


@app.command()
def cohort(
    folder: Annotated[Path, typer.Argument(help="A folder of labelled scans, or a CSV of them.", metavar="DIR")],
    reader: ReaderFlag = None,
    high: HighFlag = None,
    grades: GradesFlag = None,
    patient_column: PatientColumnFlag = None,
    grade_column: GradeColumnFlag = None,
    check: Annotated[bool, typer.Option("--check", help="Open every scan and mask too.")] = False,
) -> None:
    """Say what is understood of a folder: layout, scans, patients, grades, masks, problems."""
    from gliaflow_cli.commands.cohort import show_cohort

    code = show_cohort(
        folder,
        console,
        reader=reader,
        high=high,
        grades=grades,
        patient_column=patient_column,
        grade_column=grade_column,
        check=check,
    )
    raise typer.Exit(code)


@app.command()
def train(
    cohort: Annotated[Path, typer.Argument(help="A folder of labelled scans (see `gliaflow cohort`).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the new bundle.")],
    profile: ProfileFlag = "demo",
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            help="Generator variants (see `gliaflow plugins`), with commas; the first is the bundle's own.",
        ),
    ] = "infogan",
    option: OptionFlag = None,
    augmentation: Annotated[
        list[str] | None,
        typer.Option("--augmentation", help="Instead of the profile's: a name, name:option=value,… or a TOML; repeat."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Of the U-Net; default: the profile's.", min=1)] = None,
    init: InitFlag = None,
    tap: TapFlag = None,
    crop: CropFlag = None,
    classifier: ClassifierFlag = None,
    preprocess: PreprocessFlag = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle; default: the folder's.")] = None,
    seed: SeedFlag = 0,
    device: TorchDeviceFlag = "cpu",
    reader: ReaderFlag = None,
    high: HighFlag = None,
    grades: GradesFlag = None,
    patient_column: PatientColumnFlag = None,
    grade_column: GradeColumnFlag = None,
) -> None:
    """Fit U-Net, generator and classifier on a cohort and write a bundle. Needs the extra "train".

    What is done so far is kept in OUT.work: the same command goes on there after it was cut off.
    """
    from gliaflow_cli.commands.learn import CohortChoice, run_train

    chosen = CohortChoice(cohort, reader, high, grades, patient_column, grade_column)
    run_train(
        chosen,
        out,
        profile,
        console,
        generators=generator,
        option=option or [],
        augmentation=augmentation or [],
        epochs=epochs,
        init=init,
        tap=tap,
        crop=crop,
        classifier=classifier,
        preprocess=preprocess or [],
        name=name,
        seed=seed,
        device=device,
    )


@app.command()
def evaluate(
    cohort: Annotated[Path, typer.Argument(help="A folder of labelled scans (see `gliaflow cohort`).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and metrics.json.")],
    profile: ProfileFlag = "demo",
    protocol: Annotated[
        str, typer.Option("--protocol", help="grouped: folds by patient. paper: one split, with the paper's shares.")
    ] = "grouped",
    task: Annotated[
        str, typer.Option("--task", help="grade: HGG or LGG. tumour: slices with tumour or without.")
    ] = "grade",
    folds: Annotated[int, typer.Option("--folds", help="Folds of the protocol grouped.", min=2)] = 5,
    seeds: Annotated[int, typer.Option("--seeds", help="How often all but the U-Net is fitted anew.", min=1)] = 5,
    generators: Annotated[
        str, typer.Option("--generators", help='Variants to compare, with commas; "": comparators only.')
    ] = "infogan",
    option: OptionFlag = None,
    counts: Annotated[
        str, typer.Option("--counts", help="How many synthetic samples to add, with commas; the rare class first.")
    ] = "100,400",
    scarce: Annotated[
        str, typer.Option("--scarce", help="Patients of the rare class to learn from, with commas: a series each.")
    ] = "",
    init: InitFlag = None,
    unet: Annotated[
        Path | None,
        typer.Option("--unet", help="Use the U-Net of this bundle as it is; it must not have seen this cohort."),
    ] = None,
    tap: TapFlag = None,
    crop: CropFlag = None,
    classifier: ClassifierFlag = None,
    preprocess: PreprocessFlag = None,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels/--no-shuffle-labels", help="The control, which must give chance.")
    ] = True,
    seed: SeedFlag = 0,
    device: TorchDeviceFlag = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", help="Processes; 0: one a core.", min=0)] = 0,
    deadline: Annotated[
        float, typer.Option("--deadline", help="Seconds after which a fit of an installed generator is ended.", min=1)
    ] = 86400,
    reader: ReaderFlag = None,
    high: HighFlag = None,
    grades: GradesFlag = None,
    patient_column: PatientColumnFlag = None,
    grade_column: GradeColumnFlag = None,
) -> None:
    """Find out whether synthetic features help to grade this cohort, on patients that nothing was fitted on.

    What is fitted is kept in OUT/work: the same command goes on there after it was cut off. Needs the extra "train".
    """
    from gliaflow_cli.commands.learn import CohortChoice, run_evaluate

    chosen = CohortChoice(cohort, reader, high, grades, patient_column, grade_column)
    run_evaluate(
        chosen,
        out,
        profile,
        console,
        protocol=protocol,
        task=task,
        folds=folds,
        seeds=seeds,
        generators=generators,
        option=option or [],
        counts=counts,
        scarce=scarce,
        init=init,
        unet=unet,
        tap=tap,
        crop=crop,
        classifier=classifier,
        preprocess=preprocess or [],
        shuffle=shuffle_labels,
        seed=seed,
        device=device,
        jobs=jobs,
        deadline_s=deadline,
    )


@plugins_app.callback()
def plugins(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="What each option means, and each file.")] = False,
) -> None:
    """List what is installed: from where, with which options, and what failed to load and why."""
    from gliaflow_cli.commands.plugins import show_plugins

    if context.invoked_subcommand is None:
        raise typer.Exit(show_plugins(console, verbose))


@plugins_app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Its name: lower-case letters, digits, dashes.")],
    kind: Annotated[
        str, typer.Option("--kind", help="generator, classifier, augmentation, step or reader.")
    ] = "generator",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: gliaflow-NAME.")] = None,
) -> None:
    """Write a plugin to begin from: a package that installs, and that passes `pytest` as it is."""
    from gliaflow_cli.commands.plugins_new import write_plugin

    folder = out or Path(f"gliaflow-{name}")
    for path in write_plugin(name, kind, folder):
        console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"next:  cd {folder} && pip install -e . && pytest && gliaflow plugins", soft_wrap=True)


@app.command()
def augment(
    scan: Annotated[Path, typer.Argument(help="A scan (NIfTI).")],
    out: Annotated[Path, typer.Option("--out", help="A PNG: the slice as it is, and after each draw.")],
    augmentation: Annotated[
        list[str] | None, typer.Option("--augmentation", help="Name, or name:option=value,…; repeat, in order.")
    ] = None,
    pipeline: Annotated[Path | None, typer.Option("--pipeline", help="A TOML file of augmentations.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Its mask, whose outline is drawn too.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="4-D scans: number of the volume, from 0.")] = None,
    slice_number: Annotated[int | None, typer.Option("--slice", help="Which slice; default: the fullest.")] = None,
    count: Annotated[int, typer.Option("--count", help="How many draws.", min=1, max=64)] = 7,
    seed: SeedFlag = 0,
) -> None:
    """Look at what augmentations do to a scan. Without any named: the paper's Table 1."""
    from gliaflow_cli.commands.augment import draw_augmented

    draw_augmented(scan, out, augmentation or [], pipeline, mask, channel, slice_number, count, seed, console)


@app.command()
def doctor(
    broker: BrokerFlag = None,
    management: ManagementFlag = None,
    bundle: BundleFlag = None,
    device: DeviceFlag = None,
    inbox: Annotated[Path | None, typer.Option("--inbox", help="Look at this inbox too.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="And at this folder for answers.")] = None,
) -> None:
    """Look for the usual mistakes and say what to do about each. Exit code 1: something is wrong."""
    from gliaflow_cli.commands.doctor import run_doctor

    settings = _settings(broker=broker, management=management, bundle=bundle, device=device)
    raise typer.Exit(run_doctor(settings, console, inbox=inbox, out=out))


@app.command()
def status(
    broker: BrokerFlag = None,
    management: ManagementFlag = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every two seconds, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Queues, rates, time left, and which stages run."""
    from gliaflow_cli.commands.status import show_status

    settings = _settings(broker=broker, management=management)
    raise typer.Exit(show_status(settings, console, as_json=as_json, watch=watch))


@dead_app.command("list")
def dead_list(broker: BrokerFlag = None) -> None:
    """One line for each dead letter."""
    from gliaflow_cli.commands.dead import list_letters

    list_letters(_settings(broker=broker), console)


@dead_app.command("show")
def dead_show(
    message: Annotated[str, typer.Argument(help="The message's id, or the start of it.", metavar="ID")],
    broker: BrokerFlag = None,
) -> None:
    """All that is known of a dead letter."""
    from gliaflow_cli.commands.dead import show_letter

    show_letter(message, _settings(broker=broker), console)


@dead_app.command("replay")
def dead_replay(
    messages: Annotated[list[str] | None, typer.Argument(help="Ids, or the start of them.", metavar="[ID]…")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    broker: BrokerFlag = None,
) -> None:
    """Send dead letters back to the stage that gave them up, once the cause is mended."""
    from gliaflow_cli.commands.dead import replay_letters

    replay_letters(messages or [], every, _settings(broker=broker), console)


def _settings(**flags: object):  # type: ignore[no-untyped-def]  # its type would import pydantic for --help
    from gliaflow_runtime.settings import load_settings

    return load_settings(flags)


def main() -> None:
    """Run the command; an error that a person can mend is told in one line."""
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"gliaflow: {error}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)


def _exit_code(error: Exception) -> int | None:
    """2 for what the person asked wrongly, 1 for what could not be done, None for a bug."""
    from gliaflow.submission import NoStage
    from gliaflow_plugins.contracts import PluginError
    from gliaflow_runtime.broker.interface import BrokerError
    from gliaflow_runtime.bundle.manifest import BundleError
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.inference import DeviceError
    from gliaflow_runtime.settings import SettingsError

    if isinstance(error, UsageError | SettingsError | PluginError | BundleError | DeviceError):
        return 2
    if isinstance(error, BrokerError | NoStage | OSError):
        return 1
    return None
