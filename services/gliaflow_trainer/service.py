"""The trainer: what the recorder has stored becomes a new bundle, each time that there is more of it.

It fits in a process of its own. So recording goes on meanwhile, the memory goes back afterwards, and SIGTERM ends a
fit at once; the next start goes on with it.
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
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from gliaflow_plugins.contracts import PluginError
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.settings import Settings
from gliaflow_store.feature_store import FeatureStore, Samples, StoreError, origin_of

from gliaflow_trainer.processes import end_with_parent
from gliaflow_trainer.profiles import PROFILES
from gliaflow_trainer.variants import choose

LEAST = 4  # patients of a class: one to choose with, one to measure on, two to learn from

log = structlog.get_logger()


class Trainer:
    """Looks at the store and fits where there is something new to learn from. ``look`` never waits.

    Parameters
    ----------
    base: what the extractor serves; a new bundle has its U-Net.
    settings: ``store``, ``bundles``, ``seed``, ``device``, ``threads`` and those that begin with ``train_``.

    Raises
    ------
    PluginError: the profile, the variant or one of its options is not known.
    OSError: no bundle could be written.
    """

    def __init__(self, base: Bundle, settings: Settings) -> None:
        if settings.train_profile not in PROFILES:
            raise PluginError(f"train_profile: {settings.train_profile!r} is not one of {', '.join(PROFILES)}")
        choose(load_registry(), settings.train_generator, PROFILES[settings.train_profile], settings.train_options)
        settings.bundles.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.bundles, os.W_OK):
            raise PermissionError(f"{settings.bundles}: new bundles could not be written here")
        self._base, self._settings = base, settings
        self._seen = 0.0  # when the store had been written to at the last look
        self._fit: BaseProcess | None = None
        self._began = 0.0  # when the fit was started

    def look(self) -> None:
        """Start a fit if one is due; say what became of the last. To be called again and again."""
        if self._fit is not None:
            if self._fit.is_alive() and time.monotonic() - self._began <= self._settings.train_deadline_s:
                return
            if self._fit.is_alive():
                log.error("fit ended", reason=f"longer than train_deadline_s, {self._settings.train_deadline_s} s")
                self.abandon()
                return
            if self._fit.exitcode == -signal.SIGKILL:
                log.error("fit killed", reason="most likely it took more memory than there is")
            if self._fit.exitcode:  # it has said why, unless it was killed
                log.warning("no bundle until the store changes", exitcode=self._fit.exitcode)
            self._fit = None
        written = self._settings.store.stat().st_mtime  # every part that is recorded is a new name in the folder
        if written == self._seen or time.time() - written < self._settings.train_after_s:
            return
        self._seen = written
        if missing := self._missing():
            log.info("waiting", missing=missing)
            return
        self._fit = multiprocessing.get_context("spawn").Process(target=_fit, args=[self._settings], daemon=True)
        self._fit.start()
        self._began = time.monotonic()

    def abandon(self) -> None:
        """End a fit that is under way. What it has done so far stays for the next."""
        if self._fit is not None and self._fit.is_alive():
            log.info("fit abandoned")
            self._fit.terminate()
            self._fit.join(5)
            self._fit.kill()
            self._fit.join()
        self._fit = None

    def _missing(self) -> str | None:
        """What there must be before a fit makes sense; None: all is there."""
        try:
            store = open_store(self._settings.store, self._base)
        except StoreError as error:
            return str(error)
        for problem in store.problems:
            log.warning("not learnt from", problem=problem)
        samples = of_one_class(store)
        patients = _patients(samples)
        log.info("recorded", scans=len(np.unique(store.scans)), slices=len(store), patients=patients)
        few = [f"{LEAST - count} more patients of {label}" for label, count in patients.items() if count < LEAST]
        if few:
            return ", ".join(few)
        last, _ = _last(self._settings.bundles, self._base)
        if last is not None and last.manifest.training.get("store", {}).get("digest") == self._digest(samples):
            return f"scans that {last.id} has not seen, or another profile or generator"
        return None

    def _digest(self, samples: Samples) -> str:
        settings = self._settings
        return digest(samples, self._base, settings.train_profile, settings.train_generator, settings.train_options)


def require_own(base: Bundle, store: Path) -> None:
    """Raise BundleError where the store holds features of another bundle or tap: they do not mix."""
    origin = origin_of(store)
    if origin is not None and (origin.bundle, origin.tap) != (base.id, base.tap):
        raise BundleError(f"{store} holds {origin}, but this is tap {base.tap} of {base.id}; name another store")


def open_store(folder: Path, base: Bundle) -> FeatureStore:
    """The store of features of this bundle. Raises StoreError: it has none, or they are of another bundle or tap."""
    store = FeatureStore(folder, base.manifest.classes)
    if (store.bundle, store.tap) != (base.id, base.tap):
        raise StoreError(
            f"{folder}: features of tap {store.tap} of {store.bundle}, but this is tap {base.tap} of {base.id}; "
            "give extractor and trainer the same bundle, and the trainer a new store"
        )
    return store


def of_one_class(store: FeatureStore) -> Samples:
    """The samples of patients with one label: who has two is left out, and named in ``store.problems``."""
    labels = Counter(patient for patient, _ in {*zip(store.patients.tolist(), store.labels.tolist(), strict=True)})
    odd = [patient for patient, count in labels.items() if count > 1]
    if odd:
        store.problems.append(f"{store.folder}: {len(odd)} patients with scans of both classes")
    return store.select(~np.isin(store.patients, odd))


def digest(samples: Samples, base: Bundle, profile: str, generators: str, options: Mapping[str, Any]) -> str:
    """Stands for a fit: of these scans with these labels, seen by this bundle, by these variants."""
    known = {*zip(samples.scans.tolist(), samples.patients.tolist(), samples.labels.tolist(), strict=True)}
    how = [profile, generators, json.dumps(options, sort_keys=True)]
    text = "\n".join([base.id, base.tap, *how, *("\x1f".join(map(str, each)) for each in sorted(known))])
    return hashlib.sha256(text.encode()).hexdigest()


def fit_store(
    folder: Path,
    base: Bundle,
    out: Path,
    profile: str,
    generators: str,
    options: Mapping[str, Any],
    *,
    seed: int,
    device: str,
) -> Bundle:
    """Fit generator and classifier on a store and write them, with the base's U-Net, as the bundle ``out``.

    Called again after it was cut off, it goes on, as long as the store is the same.

    Parameters
    ----------
    base: what the features in ``folder`` come from.
    profile, generators, options: as for ``gliaflow train``.

    Raises
    ------
    StoreError: the features are of another bundle, or there are none.
    PluginError: the profile, variant or option is not known, or a class has too few patients.
    """
    from rich.progress import Progress

    from gliaflow_trainer.steps import same_run
    from gliaflow_trainer.train import NOTICE, SHARES, fit_graders, split_patients

    variants = choose(load_registry(), generators, PROFILES[profile], options)
    samples = of_one_class(open_store(folder, base))
    classes = base.manifest.classes
    label_of = {p: classes[label] for p, label in zip(samples.patients.tolist(), samples.labels.tolist(), strict=True)}
    split = split_patients(sorted(label_of.items()), seed)
    run = {
        "store": digest(samples, base, profile, generators, options),
        "profile": profile,
        "seed": seed,
    }
    work = out.with_name(f".{out.name}.work")
    try:
        same_run(work, run)
    except PluginError:  # there are other scans now: what was begun is of no use
        shutil.rmtree(work)
        same_run(work, run)
    scans = len(np.unique(samples.scans))
    log.info("fitting", bundle=out.name, scans=scans, patients=_patients(samples), generators=generators)
    counts = {
        which: {label: sum(split[p] == which and label_of[p] == label for p in split) for label in classes}
        for which in SHARES
    }
    manifest = base.manifest.model_dump(mode="json", exclude={"schema_", "files"})
    history = base.manifest.training.get("history", {})
    manifest |= {
        "name": out.name,
        "notice": f"Grader and generator of {len(split)} patients, on the U-Net of {base.id}. {NOTICE}",
        "tap": base.tap,
        "training": {
            "base": base.id,
            "store": {"digest": run["store"], "scans": scans, "patients": counts},
            "profile": profile,
            "seed": seed,
            "device": device,
            "history": {"unet": history["unet"]} if "unet" in history else {},
        },
        # of the U-Net, which is the same
        "metrics": {
            key: base.manifest.metrics[key] for key in ("unet", "segmentation") if key in base.manifest.metrics
        },
    }
    with Progress(disable=True) as bar:
        bundle = fit_graders(samples, split, base, work, out, manifest, variants, seed, device, bar)
    shutil.rmtree(work)
    return bundle


def _fit(settings: Settings) -> None:
    """A fit, in a process that ends when it is done, is told to, or its parent is no more."""
    end_with_parent()  # two that write the same bundle would be one too many
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: stages compute beside us
    configure_logging(settings.log_level, settings.log_format)
    try:
        if settings.threads:
            import torch

            torch.set_num_threads(settings.threads)
        base = load_bundle(settings.bundle, settings.tap, settings.bundle_sha256, settings.state)
        _, number = _last(settings.bundles, base)
        out = settings.bundles / f"{base.manifest.name[:56]}-{number + 1}"
        bundle = fit_store(
            settings.store,
            base,
            out,
            settings.train_profile,
            settings.train_generator,
            settings.train_options,
            seed=settings.seed,
            device=settings.device,
        )
    except (PluginError, StoreError, BundleError) as error:
        log.error("fit failed", reason=str(error))
        sys.exit(1)
    except Exception:
        log.exception("fit failed")
        sys.exit(1)
    metrics = {key: bundle.manifest.metrics[key] for key in ("grading", "synthetic")}
    log.info("bundle written", bundle=bundle.id, path=str(out), **metrics)


def _patients(samples: Samples) -> dict[str, int]:
    """How many patients of each class."""
    return {
        name: len(np.unique(samples.patients[samples.labels == label])) for label, name in enumerate(samples.classes)
    }


def _last(bundles: Path, base: Bundle) -> tuple[Bundle | None, int]:
    """The newest of the bundles that were fitted on this one, and its number."""
    prefix = f"{base.manifest.name[:56]}-"
    names = [path.name.removeprefix(prefix) for path in bundles.glob(f"{prefix}*")]
    number = max((int(name) for name in names if name.isdecimal()), default=0)
    try:
        return Bundle(bundles / f"{prefix}{number}"), number
    except BundleError:  # there is none yet, or it is not whole: then it is not counted on
        return None, number
