"""From features to a bundle that grades: fit generators and classifier, measure them, and publish the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gliaflow_plugins.contracts import FeatureSource, FitContext, FitSamples, Fitted, FittedClassifier, PluginError
from gliaflow_plugins.features import Joined
from gliaflow_plugins.networks.cnn import PatientScores, patient_scores, slice_logits
from gliaflow_plugins.networks.export import export, export_generator
from gliaflow_proto import CLASSES, message_id
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import MANIFEST
from gliaflow_store.feature_store import FeatureStore, Samples
from torch import nn

from gliaflow_trainer.features import FeaturesWithSlices
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.run_folder import versions
from gliaflow_trainer.source import require_both_classes
from gliaflow_trainer.synthetic import draw, shares, synthetic
from gliaflow_trainer.unet_bundle import WEIGHTS
from gliaflow_trainer.variants import Variants, fit_classifier, fit_generator, learns_from_source

NOTICE = "Not a clinical model: it must not be used to diagnose or treat anybody."


@dataclass(frozen=True)
class SplitFeatures:
    """Features of slices, and each patient's part: ``train``, ``validation`` or ``test``.

    Parameters
    ----------
    base: the bundle of the U-Net that the features come from.
    slices: the folder of the slices that the features come from; None: they are not known.
    unlabelled: features of other patients' slices, whose labels mean nothing.
    source: features of slices of another cohort's labelled scans, for the generators.
    """

    samples: Samples
    split: Mapping[str, str]
    base: Bundle
    slices: Path | None = None
    unlabelled: Samples | None = None
    source: FeatureStore | None = None

    def of(self, *parts: str) -> Samples:
        """The samples of these parts in which the U-Net found tumour: serving grades by no others."""
        part = np.array([self.split[patient] for patient in self.samples.patients])
        return self.samples.select(np.isin(part, parts) & (self.samples.tumour > 0))

    def require_both_classes(self) -> None:
        """Raise PluginError if there is nothing to grade by."""
        if len(set(self.of("train").labels)) < len(CLASSES):
            raise PluginError(
                "the U-Net found tumour in one class of training patients only, so there is nothing to grade by: "
                "give it more --epochs, or start from another bundle's by --init"
            )


def fit_graders(
    features: SplitFeatures, variants: Variants, manifest: dict[str, Any], work: Path, out: Path, context: RunContext
) -> Bundle:
    """Fit generators and classifier, and publish them with the base's U-Net as the bundle ``out``.

    Parameters
    ----------
    manifest: the base's, with what is known of the training so far. Without a part ``test``, its grading scores stay.
    work: keeps the networks and the checkpoints.

    Raises
    ------
    PluginError: a fit or an export fails, or the U-Net found tumour in one class of training patients only.
    """
    base = features.base
    work.mkdir(parents=True, exist_ok=True)
    features.require_both_classes()
    for left in work.glob("*.onnx"):  # of a run with other generators
        left.unlink()
    fitted = _fit_generators(features, variants, work, context)
    graded = _fit_classifier(features, variants, context, next(iter(fitted.values())))
    with _exporting("classifier", variants.classifier):
        train = features.of("train")
        example = torch.from_numpy(train.batch(np.arange(min(5, len(train)))))
        export(graded.module, [example], work / "classifier.onnx", ["features"], ["logit"])
    for file in ("unet.onnx", WEIGHTS):
        if file in base.manifest.files:  # older bundles have no weights to fine-tune
            (work / file).write_bytes(base.read(file))
    manifest |= {
        "generator": next(iter(variants.generators)),
        "generators": {
            name: {"options": options.model_dump(mode="json"), "noise": fitted[name].nz}
            for name, options in variants.generators.items()
        },
        "versions": versions(),
    }
    manifest["training"]["classifier"] = {
        "name": variants.classifier,
        "options": variants.classifier_options.model_dump(mode="json"),
        "synthetic": variants.synthetic,
    }
    manifest["training"].setdefault("history", {}).update(
        generator={name: each.history for name, each in fitted.items()}, classifier=graded.history
    )
    manifest["metrics"]["synthetic"] = {
        name: _accuracies(each, None if variants.synthetic else graded.module, context.seed)
        for name, each in fitted.items()
    }
    if "test" in features.split.values():
        manifest["metrics"]["grading"] = _grading(_scores(graded.module, features.of("test")))
    return publish(work, out, manifest)


def _fit_generators(features: SplitFeatures, variants: Variants, work: Path, context: RunContext) -> dict[str, Fitted]:
    """Fit each generator on the training patients and export it with its critic."""
    registry, shape = variants.registry, features.samples.shape
    fitted = {}
    for name, options in variants.generators.items():
        source = features.source.folder.name if features.source is not None else ""
        same_fit = message_id(options.model_dump_json(), registry.code_of("generator", name), source)
        with context.fit(f"generator {name}", checkpoint=work / f"{name}-{same_fit[:12]}.checkpoint") as fit:
            fitted[name] = _fit_generator(features, variants, name, fit)
        with _exporting("generator", name):
            export_generator(fitted[name], work, shape, name)
    return fitted


def _fit_generator(features: SplitFeatures, variants: Variants, name: str, fit: FitContext) -> Fitted:
    train, base, others = features.of("train"), features.base, features.source
    slices = features.slices
    known = train if slices is None else FeaturesWithSlices(train, slices, base, base.manifest.cropped)
    variant = variants.registry.generator(name)
    if others is not None and learns_from_source(variant):
        with_tumour = others.select(others.tumour > 0)
        require_both_classes(with_tumour, "--source: ")
        fit = replace(fit, source=with_tumour)
    return fit_generator(variant, known, variants.generators[name], fit)


def _fit_classifier(
    features: SplitFeatures, variants: Variants, context: RunContext, generator: Fitted | None
) -> FittedClassifier:
    """Fit the classifier on the training patients, and on samples of ``generator`` if the variants say how many.

    A plugin never gets the features of test patients.
    """
    name, samples = variants.classifier, features.of("train", "validation")
    part = np.array([features.split[patient] for patient in samples.patients])
    learn, choose = np.flatnonzero(part == "train"), np.flatnonzero(part == "validation")
    sources: list[FeatureSource] = [samples]
    patients, without = samples.patients.tolist(), features.unlabelled
    if without is not None:
        sources.append(without := without.select(without.tumour > 0))
        patients += without.patients.tolist()
    unlabelled = np.arange(len(samples), len(patients))
    if generator is not None and variants.synthetic:
        counts = shares(samples.labels[learn], variants.synthetic)
        sources.append(made := draw(generator, counts, context.seed, samples.classes))
        learn = np.concatenate([learn, np.arange(len(patients), len(patients) + len(made))])
        patients += [""] * len(made)  # of no patient
    split = FitSamples(learn, choose, patients, "balanced", unlabelled)
    source = Joined(*sources) if len(sources) > 1 else samples
    with context.fit(f"classifier {name}") as fit:
        variant = variants.registry.classifier(name)
        return fit_classifier(variant, source, variants.classifier_options, split, fit)


def grade_test_patients(features: SplitFeatures, variants: Variants, context: RunContext) -> dict[str, float]:
    """Fit a classifier on the training patients: the mean logit of each test patient in whom the U-Net found tumour.

    Raises
    ------
    PluginError: the fit fails, or the U-Net found tumour in one class of training patients only.
    """
    features.require_both_classes()
    generator = None
    if variants.synthetic:
        name = next(iter(variants.generators))
        with context.fit(f"generator {name}") as fit:
            generator = _fit_generator(features, variants, name, fit)
    scores = _scores(_fit_classifier(features, variants, context, generator).module, features.of("test"))
    return dict(zip(scores.patients.tolist(), scores.logits.tolist(), strict=True))


def publish(work: Path, out: Path, manifest: Mapping[str, Any]) -> Bundle:
    """Complete the bundle in ``work`` and copy it to ``out``: a reader finds the old bundle or the new one."""
    bundle = write_manifest(work, {key: value for key, value in manifest.items() if key not in ("schema", "files")})
    new, old = (out.with_name(f".{which}-{out.name}") for which in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(work / name, new / name)
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.replace(old)
    new.replace(out)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle(out)


@contextmanager
def _exporting(kind: str, name: str) -> Iterator[None]:
    """Raises PluginError if a plugin's network cannot be exported, for example because ONNX lacks an operation."""
    try:
        yield
    except Exception as error:
        raise PluginError(f"{kind} {name!r} cannot be exported: {' '.join(str(error).split())[:500]}") from error


def _scores(classifier: nn.Module, tested: Samples) -> PatientScores:
    """By patient: the mean logit of the slices with tumour. A patient without any has no score."""
    logits = slice_logits(classifier, tested, np.arange(len(tested)))
    return patient_scores(logits, tested.labels, [str(patient) for patient in tested.patients])


def _grading(scores: PatientScores) -> dict[str, Any]:
    return {
        "auc": rounded(scores.auc),
        "balanced_accuracy": rounded(scores.balanced_accuracy),
        "patients": len(scores.patients),
    }


def _accuracies(fitted: Fitted, classifier: nn.Module | None, seed: int) -> dict[str, Any]:
    """The shares of synthetic features that the critic, and the classifier, put into the right class.

    The classifier gets those that the critic accepts, as serving publishes them. None: it learned from synthetic
    features, so its share says nothing.
    """
    accepted, right, samples = [], [], 0
    for label in range(len(CLASSES)):
        features, share = synthetic(fitted, label, 128, seed + label)
        accepted.append(share)
        samples += len(features)
        if classifier is None:
            continue
        with torch.inference_mode():
            graded = (classifier(torch.from_numpy(features)) < 0).long() == label
        right.append(float(graded.float().mean()) if len(features) else 0.0)
    return {
        "critic_accuracy": rounded(np.mean(accepted)),
        "classifier_accuracy": rounded(np.mean(right)) if classifier is not None else None,
        "samples": samples,
    }


def rounded(value: Any) -> float | None:
    """Four digits; None for NaN, which JSON does not have."""
    return round(float(value), 4) if np.isfinite(value) else None
