"""The trainer service: labelled scans that pass through the pipeline become a new bundle.

The way of a scan's features, in the order of this file:

1. The ``Recorder`` (``gliaflow_store``), a stage in this process, writes them to the feature store.
2. ``Trainer.poll`` sees that the store has changed and is quiet again, and starts a fit if it has enough patients.
3. ``_fit_process`` runs the fit in a process of its own: recording continues meanwhile, the memory is free afterwards,
   and SIGTERM ends a fit at once. The next start resumes it.
4. ``fit_store`` fits generators and classifier on the store and publishes them, with the base's U-Net, in ``bundles``.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import structlog
from gliaflow_plugins.contracts import PluginError
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import Settings
from gliaflow_store.feature_store import FeatureStore, Samples
from gliaflow_store.part_file import StoreError, origin_of

from gliaflow_trainer.processes import end_with_parent
from gliaflow_trainer.profiles import PROFILES
from gliaflow_trainer.variants import choose

SHOWN = 20  # of a store's problems, in the log
MIN_PATIENTS = 4  # of a class: one to choose with, one to measure on, two to learn from

log = structlog.get_logger()


def require_own(base: Bundle, store: Path) -> None:
    """Raise BundleError if the store holds features of another bundle or tap: they cannot be mixed."""
    origin = origin_of(store)
    if origin is not None and (origin.bundle, origin.tap) != (base.id, base.tap):
        raise BundleError(
            f"{store} holds {origin}, but this is tap {base.tap} of {base.id}; give extractor and trainer the same "
            "bundle, or name another store"
        )


class Trainer:
    """Starts a fit whenever the store has something new to learn from.

    Parameters
    ----------
    base: the bundle that the extractor serves. A new bundle has its U-Net.
    settings: ``store``, ``bundles``, ``seed``, ``device``, ``threads`` and those that begin with ``train_``.

    Raises
    ------
    PluginError: the profile, the variant or one of its options is not known.
    OSError: ``bundles`` cannot be written.
    """

    def __init__(self, base: Bundle, settings: Settings) -> None:
        if settings.train_profile not in PROFILES:
            raise PluginError(f"train_profile: {settings.train_profile!r} is not one of {', '.join(PROFILES)}")
        profile = PROFILES[settings.train_profile]
        choose(load_registry(), settings.train_generator, profile, settings.train_options).require_source(False)
        settings.bundles.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.bundles, os.W_OK):
            raise PermissionError(f"{settings.bundles}: new bundles could not be written here")
        self._base, self._settings = base, settings
        self._seen = 0.0  # the store's time of change when it was last read
        self._fit: BaseProcess | None = None
        self._started = 0.0  # when the fit was started

    def poll(self) -> None:
        """Log how the last fit ended, and start a fit if one is due. Called again and again; it never waits."""
        settings = self._settings
        if self._fit is not None:
            if self._fit.is_alive():
                if time.monotonic() - self._started > settings.train_deadline_s:
                    log.error("fit ended", reason=f"longer than train_deadline_s, {settings.train_deadline_s} s")
                    self.abandon()
                return
            if self._fit.exitcode == -signal.SIGKILL:
                log.error("fit killed", reason="most likely it took more memory than there is")
            if self._fit.exitcode:  # unless it was killed, the process has logged the reason
                log.warning("no bundle until the store changes", exitcode=self._fit.exitcode)
            self._fit = None
        written = settings.store.stat().st_mtime  # each part that is recorded is a new name in the folder
        if written == self._seen or time.time() - written < settings.train_after_s:
            return
        self._seen = written
        if missing := self._missing():
            log.info("waiting", missing=missing)
            return
        self._fit = multiprocessing.get_context("spawn").Process(target=_fit_process, args=[settings], daemon=True)
        self._fit.start()
        self._started = time.monotonic()

    def abandon(self) -> None:
        """End a fit that is running. Its work so far stays for the next one."""
        if self._fit is not None and self._fit.is_alive():
            log.info("fit abandoned")
            self._fit.terminate()
            self._fit.join(5)
            self._fit.kill()
            self._fit.join()
        self._fit = None

    def _missing(self) -> str | None:
        """What the store lacks for a fit; None: nothing."""
        try:
            store = _open_store(self._settings.store, self._base)
        except (StoreError, BundleError) as error:
            return str(error)
        samples = _without_contradictions(store)
        for problem in store.problems[:SHOWN]:
            log.warning("not learnt from", problem=problem)
        if len(store.problems) > SHOWN:
            log.warning("not learnt from", problem=f"and {len(store.problems) - SHOWN} more")
        patients = _count_patients(samples)
        log.info("recorded", scans=len(np.unique(store.scans)), slices=len(store), patients=patients)
        few = [f"{MIN_PATIENTS - n} more patients of {label}" for label, n in patients.items() if n < MIN_PATIENTS]
        if few:
            return ", ".join(few)
        last, _ = _last_bundle(self._settings.bundles, self._base)
        digest = _digest(store, samples, self._base, self._settings)
        if last is not None and last.manifest.training.get("store", {}).get("digest") == digest:
            return f"scans that {last.id} has not seen, or another profile or generator"
        return None


def _fit_process(settings: Settings) -> None:
    """One fit. The process ends when the fit ends, on SIGTERM, or with its parent."""
    end_with_parent()  # or two processes might write the same bundle
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: the stages need the cores too
    configure_logging(settings.log_level, settings.log_format)
    try:
        if settings.threads:
            import torch

            torch.set_num_threads(settings.threads)
        base = load_bundle(settings.bundle, settings.tap, settings.bundle_sha256, settings.state, settings.bundles)
        _, number = _last_bundle(settings.bundles, base)
        out = settings.bundles / f"{base.manifest.name[:56]}-{number + 1}"
        bundle = fit_store(settings, base, out)
    except (PluginError, StoreError, BundleError) as error:
        log.error("fit failed", reason=str(error))
        sys.exit(1)
    except Exception:
        log.exception("fit failed")
        sys.exit(1)
    metrics = {key: bundle.manifest.metrics[key] for key in ("grading", "synthetic")}
    log.info("bundle written", bundle=bundle.id, path=str(out), **metrics)


def fit_store(settings: Settings, base: Bundle, out: Path) -> Bundle:
    """Fit generators and classifier on ``settings.store`` and write them, with the base's U-Net, as the bundle ``out``.

    Called again after an interruption, it resumes if the store is the same.

    Parameters
    ----------
    base: the bundle that the stored features come from.

    Raises
    ------
    StoreError, BundleError: the store has no features, or those of another bundle.
    PluginError: the profile, variant or option is not known, or a class has too few patients.
    """
    from rich.progress import Progress

    from gliaflow_trainer.graders import NOTICE, SplitFeatures, fit_graders
    from gliaflow_trainer.run_context import RunContext
    from gliaflow_trainer.run_folder import same_run
    from gliaflow_trainer.train import patients_by_part, split_patients

    variants = choose(
        load_registry(), settings.train_generator, PROFILES[settings.train_profile], settings.train_options
    )
    store = _open_store(settings.store, base)
    samples = _without_contradictions(store)
    labels = zip(samples.patients.tolist(), samples.labels.tolist(), strict=True)
    label_of = {patient: samples.classes[label] for patient, label in labels}
    split = split_patients(sorted(label_of.items()), settings.seed)
    digest = _digest(store, samples, base, settings)
    run = {"store": digest, "profile": settings.train_profile, "seed": settings.seed}
    work = out.with_name(f".{out.name}.work")
    try:
        same_run(work, run)
    except PluginError:  # it was begun on other scans
        shutil.rmtree(work)
        same_run(work, run)
    scans, patients = len(np.unique(samples.scans)), _count_patients(samples)
    log.info("fitting", bundle=out.name, scans=scans, patients=patients, generators=settings.train_generator)
    history = base.manifest.training.get("history", {})
    manifest = base.manifest.model_dump(mode="json", exclude={"schema_", "files"})
    manifest |= {
        "name": out.name,
        "notice": f"Grader and generator of {len(split)} patients, on the U-Net of {base.id}. {NOTICE}",
        "tap": base.tap,
        "training": {
            "base": base.id,
            "phantoms": base.phantoms,
            "store": {
                "digest": digest,
                "scans": scans,
                "left_out": len(store.contradicting),
                "submissions": _submissions(store, samples),
                "patients": patients_by_part(split, label_of),
            },
            "profile": settings.train_profile,
            "seed": settings.seed,
            "device": settings.device,
            "history": {"unet": history["unet"]} if "unet" in history else {},
        },
        # the scores of the U-Net, which is the same
        "metrics": {
            key: base.manifest.metrics[key] for key in ("unet", "segmentation") if key in base.manifest.metrics
        },
    }
    with Progress(disable=True) as bar:
        context = RunContext(settings.seed, settings.device, bar)
        bundle = fit_graders(SplitFeatures(samples, split, base), variants, manifest, work, out, context)
    shutil.rmtree(work)
    return bundle


def _open_store(folder: Path, base: Bundle) -> FeatureStore:
    """The store of this bundle's features. Raises BundleError as ``require_own``; StoreError: it has no features."""
    require_own(base, folder)
    return FeatureStore(folder, base.manifest.classes)


def _without_contradictions(store: FeatureStore) -> Samples:
    """The samples of scans that contradict no other scan and are no copies; ``store.problems`` names the others."""
    store.problems += [f"scan {scan}: {reason}" for scan, reason in sorted(store.contradicting.items())]
    return store.select(~np.isin(store.scans, list(store.contradicting)))


def _submissions(store: FeatureStore, samples: Samples) -> dict[str, dict[str, int]]:
    """How many scans of each class come from each submission. ``gliaflow store`` shows their cohorts."""
    counts: dict[str, Counter[str]] = {}
    for scan, label in sorted({*zip(samples.scans.tolist(), samples.labels.tolist(), strict=True)}):
        counts.setdefault(store.submissions[scan], Counter())[samples.classes[label]] += 1
    return {submission: dict(labels) for submission, labels in sorted(counts.items())}


def _digest(store: FeatureStore, samples: Samples, base: Bundle, settings: Settings) -> str:
    """Identifies a fit: scans with label, submission and features, the bundle that extracted them, and the settings."""
    known = {
        (scan, patient, label, store.submissions[scan], *store.digests[scan])
        for scan, patient, label in zip(
            samples.scans.tolist(), samples.patients.tolist(), samples.labels.tolist(), strict=True
        )
    }
    options = json.dumps(settings.train_options, sort_keys=True)
    fit = [base.id, base.tap, settings.train_profile, settings.train_generator, options]
    text = "\n".join([*fit, *("\x1f".join(map(str, each)) for each in sorted(known))])
    return hashlib.sha256(text.encode()).hexdigest()


def _count_patients(samples: Samples) -> dict[str, int]:
    """How many patients each class has."""
    return {
        name: len(np.unique(samples.patients[samples.labels == label])) for label, name in enumerate(samples.classes)
    }


def _last_bundle(bundles: Path, base: Bundle) -> tuple[Bundle | None, int]:
    """The newest bundle that was fitted on ``base``, and its number; None: there is none, or it cannot be read."""
    prefix = f"{base.manifest.name[:56]}-"
    names = [path.name.removeprefix(prefix) for path in bundles.glob(f"{prefix}*")]
    number = max((int(name) for name in names if name.isdecimal()), default=0)
    try:
        return Bundle(bundles / f"{prefix}{number}"), number
    except BundleError:
        return None, number
