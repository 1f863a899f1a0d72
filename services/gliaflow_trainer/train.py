"""``gliaflow train``: a cohort of labelled scans becomes a model bundle.

U-Net, generator and classifier are fitted in that order, each on what the one before leaves. Patients are split
once; what is fitted, normalised or chosen never sees a patient of the test part, on which the metrics are measured.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gliaflow_extractor.extractor import UNet as ServedUNet
from gliaflow_plugins.base import PluginError, parse_options
from gliaflow_plugins.generators import ArrayFeatures, Fitted
from gliaflow_plugins.pipeline import PAPER_STEPS, Pipeline
from gliaflow_plugins.readers import Case
from gliaflow_plugins.registry import load_registry
from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.slices import UnusableScan, prepare, prepare_mask
from gliaflow_runtime.bundle import Bundle, InputSpec, write_manifest
from numpy.typing import NDArray
from rich.progress import Progress

from gliaflow_trainer.cohort import read_cohort
from gliaflow_trainer.export import export, export_generator
from gliaflow_trainer.grading import Classifier, fit_classifier, patient_scores, slice_logits
from gliaflow_trainer.phantom import COHORT_FILE
from gliaflow_trainer.segmentation import fit_unet
from gliaflow_trainer.unet import TAPS, UNetOutput

CLASSES = ("HGG", "LGG")
TAP = "enc5"  # the paper's: the fifth block's output after ReLU
NOTICE = "Not a clinical model: it must not be used to diagnose or treat anybody."
LIBRARIES = ("gliaflow", "torch", "onnx", "onnxruntime", "numpy", "scipy", "nibabel")
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Profile:
    """A size of networks, and the options with which ``fit_unet``, ``acgan`` and ``fit_classifier`` are called."""

    width: int  # of the U-Net's first block; 64 in the paper
    norm: bool  # batch normalisation in the U-Net; the paper has none
    unet: Mapping[str, Any]
    augmentations: tuple[tuple[str, Mapping[str, Any]], ...]
    acgan: Mapping[str, Any]
    classifier: Mapping[str, Any]


PROFILES = {
    "demo": Profile(
        width=8,
        norm=True,
        unet={
            "epochs": 18,
            "epoch_slices": 1000,
            "batch": 16,
            "learning_rate": 4e-3,
            "cosine": True,
            "loss": "dice+bce",
            "randomise": True,
            "crop": 128,
            "crop_share": 0.67,
            "grade_weight": 0.2,
        },
        augmentations=(),  # ``randomise`` moves whole batches, in a fraction of the time
        acgan={"epochs": 15},
        classifier={"epochs": 30},
    ),
    "paper": Profile(
        width=64,
        norm=False,
        unet={"epochs": 100, "batch": 10, "learning_rate": 1e-4, "betas": (0.9, 0.999)},
        augmentations=PAPER_STEPS,
        acgan={"ngf": 512, "ndf": 512, "epochs": 50},
        classifier={"epochs": 50},
    ),
}


@dataclass(frozen=True)
class Slices:
    """All slices of a cohort: images float16 [N, H, W] (scaled, not normalised), masks uint8 [N, H, W].

    ``case`` [N] says which case each slice is of.
    """

    image: NDArray[np.float16]
    mask: NDArray[np.uint8]
    case: NDArray[np.int64]


def train(
    folder: Path,
    out: Path,
    profile: Profile,
    *,
    generator: str = "acgan",
    options: Mapping[str, Any] | None = None,
    augmentations: Sequence[str] = (),
    name: str,
    seed: int = 0,
    device: str = "cpu",
    bar: Progress,
) -> Bundle:
    """Fit the three networks on the cohort in ``folder`` and write a bundle to ``out``.

    Parameters
    ----------
    generator, options: the variant and its options, over the profile's.
    augmentations: names, in place of the profile's.
    name: of the bundle.
    bar: shows the progress of each step.

    Raises
    ------
    PluginError: the variant, an option or the folder's layout is not known, or too few scans can be used.
    """
    registry = load_registry()
    variant = registry.generator(generator)
    chosen = parse_options(variant, {**(profile.acgan if generator == "acgan" else {}), **(options or {})})
    augment = Pipeline(registry, [(step, {}) for step in augmentations] or profile.augmentations)
    cohort = read_cohort(folder, registry)
    cases = [case for case in cohort.cases if case.mask is not None and case.grade in CLASSES]
    plain = InputSpec()
    slices, cases = _load(cases, plain, bar)
    split = split_patients([(case.patient, str(case.grade)) for case in cases], seed)
    part = np.array([split[case.patient] for case in cases])[slices.case]
    spec = _statistics(plain, slices.image[part == "train"])

    patients = np.array([case.patient for case in cases])[slices.case]
    labels = np.array([CLASSES.index(str(case.grade)) for case in cases])[slices.case]
    fitting = np.flatnonzero(part != "test")
    task = bar.add_task("U-Net", total=profile.unet.get("epochs"))
    unet, unet_history = fit_unet(
        _normalised(slices.image[fitting], spec).astype(np.float16),
        slices.mask[fitting],
        patients[fitting].tolist(),
        np.unique(patients[part == "validation"]).tolist(),
        width=profile.width,
        norm=profile.norm,
        augment=augment if augment.steps else None,
        air=-spec.mean / spec.std,
        grades=labels[fitting],
        seed=seed,
        device=device,
        progress=_shown(bar, task),
        **profile.unet,
    )
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.onnx"):
        old.unlink()
    example = torch.from_numpy(_normalised(slices.image[fitting[:5]], spec))
    export(unet, [example], out / "unet.onnx", ["image"], UNetOutput._fields)
    with torch.no_grad():
        taps = {tap: list(getattr(unet(example), tap).shape[1:]) for tap in TAPS}
    manifest: dict[str, Any] = {
        "name": name,
        "notice": f"Trained on {len(split)} {'phantoms' if _made_by(folder) else 'patients'}. {NOTICE}",
        "input": spec.model_dump(),
        "classes": list(CLASSES),
        "taps": taps,
        "tap": TAP,
        "generator": generator,
        "generator_options": chosen.model_dump(mode="json"),
        "noise": 1,
        "training": {},
        "metrics": {},
        "versions": {library: version(library) for library in LIBRARIES} | {"python": platform.python_version()},
    }

    # from here on features come from the ONNX file, through the extractor's own code
    features, found = _extract(ServedUNet(write_manifest(out, manifest)), slices.image, spec, bar)
    kept = np.flatnonzero(found.any(axis=(1, 2)))  # as in serving: a slice without tumour says nothing of the grade
    source = ArrayFeatures(features[kept], labels[kept], CLASSES)
    index = {which: np.flatnonzero(part[kept] == which) for which in SHARES}
    fitted = _fit_generator(variant, source, index["train"], chosen, seed, device, bar)
    manifest["noise"] = fitted.nz
    export_generator(fitted, out, source.shape)

    task = bar.add_task("classifier", total=profile.classifier["epochs"])
    classifier, classifier_history = fit_classifier(
        source,
        index["train"],
        index["validation"],
        patients[kept].tolist(),
        seed=seed,
        device=device,
        progress=_shown(bar, task),
        **profile.classifier,
    )
    bar.update(task, completed=profile.classifier["epochs"])  # it may have stopped early
    example = torch.from_numpy(source.batch(index["train"][:5]))
    export(classifier, [example], out / "classifier.onnx", ["features"], ["logit"])

    manifest["training"] = {
        "profile": asdict(profile),
        "seed": seed,
        "device": device,
        "cohort": _made_by(folder) | {"layout": cohort.layout, "patients": _count(split, cases)},
        "history": {"unet": unet_history, "generator": fitted.history, "classifier": classifier_history},
    }
    test = part == "test"
    manifest["metrics"] = {
        "segmentation": _dice(cases, slices, found, test),
        "grading": _grading(classifier, source, index["test"], patients[kept]),
        "synthetic": _synthetic(fitted, classifier, seed),
    }
    return write_manifest(out, manifest)


def split_patients(patients: Sequence[tuple[str, str]], seed: int) -> dict[str, str]:
    """Each patient's part, ``train``, ``validation`` or ``test``: by SHARES of each grade, at random, once.

    Raises
    ------
    PluginError: a grade has fewer than 4 patients, so that a part would be empty.
    """
    rng = np.random.default_rng(seed)
    split: dict[str, str] = {}
    for grade in CLASSES:
        of_grade = sorted({patient for patient, its in patients if its == grade})
        if len(of_grade) < 4:
            raise PluginError(f"{len(of_grade)} patients of grade {grade} have scan and mask; at least 4 are needed")
        test, validation = (max(1, round(SHARES[which] * len(of_grade))) for which in ("test", "validation"))
        for place, index in enumerate(rng.permutation(len(of_grade))):
            which = "test" if place < test else "validation" if place < test + validation else "train"
            split.setdefault(of_grade[index], which)
    return split


def _load(cases: Sequence[Case], spec: InputSpec, bar: Progress) -> tuple[Slices, list[Case]]:
    """Every slice of every case that can be read; the others are named and passed over."""
    task = bar.add_task("reading scans", total=len(cases))

    def read(case: Case) -> tuple[NDArray[np.float16], NDArray[np.uint8]] | str:
        assert case.mask is not None
        try:
            volume, affine = read_nifti(case.scan.read_bytes())
            mask, _ = read_nifti(case.mask.read_bytes())
            if mask.shape != volume.shape:
                return f"{case.mask}: shape {mask.shape}, but its scan has {volume.shape}"
            prepared = prepare(volume, affine, spec)
        except (NiftiError, UnusableScan, OSError) as error:
            return f"{case.scan}: {error}"
        finally:
            bar.advance(task)
        return prepared.image.astype(np.float16), prepare_mask(mask, prepared.geometry)

    with ThreadPoolExecutor(2) as pool:
        read_cases = list(zip(cases, pool.map(read, cases), strict=True))
    usable = []
    for case, result in read_cases:
        if isinstance(result, str):
            bar.console.print(f"passed over  {result}", style="yellow", soft_wrap=True)
        else:
            usable.append((case, *result))
    if not usable:
        raise PluginError("no scan with a mask and a known grade could be read")
    counts = [len(image) for _, image, _ in usable]
    return (
        Slices(
            np.concatenate([image for _, image, _ in usable]),
            np.concatenate([mask for _, _, mask in usable]),
            np.repeat(np.arange(len(usable)), counts),
        ),
        [case for case, _, _ in usable],
    )


def _statistics(spec: InputSpec, images: NDArray[np.float16]) -> InputSpec:
    """Mean and standard deviation of all pixels (paper section 3.5), here of the training patients alone."""
    mean = float(images.mean(dtype=np.float64))
    square = float(np.mean([np.square(image, dtype=np.float32).mean(dtype=np.float64) for image in images]))
    return spec.model_copy(update={"mean": mean, "std": (square - mean**2) ** 0.5})


def _normalised(images: NDArray[np.float16], spec: InputSpec) -> NDArray[np.float32]:
    normalised: NDArray[np.float32] = ((images.astype(np.float32) - spec.mean) / spec.std)[:, None]
    return normalised


def _extract(
    unet: ServedUNet, images: NDArray[np.float16], spec: InputSpec, bar: Progress
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Features FP16 [N, C, H, W] and masks UINT8 [N, rows, columns] of all slices."""
    task = bar.add_task("extracting features", total=len(images))
    parts = []
    for start in range(0, len(images), 64):
        parts.append(unet(_normalised(images[start : start + 64], spec)))
        bar.advance(task, len(parts[-1][1]))
    return np.concatenate([f for f, _ in parts]), np.concatenate([m for _, m in parts])


def _fit_generator(
    variant: Any, source: ArrayFeatures, index: NDArray[Any], options: Any, seed: int, device: str, bar: Progress
) -> Fitted:
    """On the training patients alone."""
    task = bar.add_task(f"generator {variant.name}", total=None)
    known = ArrayFeatures(source.batch(index).astype(np.float16), source.labels[index], source.classes)
    fitted: Fitted = variant.fit(known, options, seed=seed, device=device, progress=_shown(bar, task))
    return fitted


def _dice(cases: Sequence[Case], slices: Slices, found: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Dice by test patient, over all slices of a patient on the network's grid."""
    scores = []
    for case in np.unique(slices.case[chosen]):
        truth, mask = slices.mask[slices.case == case] > 0, found[slices.case == case] > 0
        scores.append(2 * float((truth & mask).sum()) / max(1, int(truth.sum() + mask.sum())))
    return {"dice_mean": _rounded(np.mean(scores)), "dice_median": _rounded(np.median(scores)), "patients": len(scores)}


def _grading(
    classifier: Classifier, source: ArrayFeatures, index: NDArray[np.int64], patients: NDArray[np.str_]
) -> dict[str, Any]:
    """By test patient: mean logit over the slices with tumour. Patients in whom no tumour was found have no score."""
    scores = patient_scores(
        slice_logits(classifier, source, index), source.labels[index], [str(p) for p in patients[index]]
    )
    return {
        "auc": _rounded(scores.auc),
        "balanced_accuracy": _rounded(scores.balanced_accuracy),
        "patients": len(scores.patients),
    }


def _synthetic(fitted: Fitted, classifier: Classifier, seed: int) -> dict[str, Any]:
    """How many synthetic features its critic, and a classifier that never saw any, put into the right class."""
    torch.manual_seed(seed)
    label = torch.arange(256) % len(CLASSES)
    with torch.inference_mode():
        features = fitted.generator(torch.randn(len(label), fitted.nz), label)
        _, logits = fitted.critic(features)
        graded = (classifier(features) < 0).long()
    return {
        "critic_accuracy": _rounded((logits.argmax(1) == label).float().mean()),
        "classifier_accuracy": _rounded((graded == label).float().mean()),
        "samples": len(label),
    }


def _made_by(folder: Path) -> dict[str, Any]:
    """What ``gliaflow phantom`` wrote of how it made the cohort; nothing for another."""
    try:
        made = json.loads((folder / COHORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"made_by": made} if isinstance(made, dict) else {}


def _count(split: Mapping[str, str], cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Patients of each grade in each part. Counts, never names: the bundle may be given away."""
    grade = {case.patient: case.grade for case in cases}
    return {which: {g: sum(split[p] == which and grade[p] == g for p in split) for g in CLASSES} for which in SHARES}


def _shown(bar: Progress, task: Any) -> Callable[[int, int, Mapping[str, float]], None]:
    def show(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        bar.update(task, completed=epoch, total=epochs)
        if not bar.console.is_terminal:  # a log shows no bar
            told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            bar.console.print(f"{bar.tasks[task].description} {epoch}/{epochs}: {told}", soft_wrap=True)

    return show


def _rounded(value: Any) -> float:
    return round(float(value), 4)
