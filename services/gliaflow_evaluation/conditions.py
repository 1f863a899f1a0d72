"""What must be the same in all processes of a run that spans machines, checked where a task runs.

Figures depend on it to the last digit: the versions of libraries, our code and that of plugins, the bundles, and the
files of the cohort and of the run.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import torch
from gliaflow_plugins.code_digest import digest
from gliaflow_plugins.contracts import Volume
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_trainer.run_folder import LIBRARIES

from gliaflow_evaluation.protocol import Plan

ON_CLUSTERS = ("dask", "distributed", "cloudpickle")
PACKAGES = ("proto", "plugins", "runtime", "preprocessor", "extractor", "store", "trainer", "evaluation")
SAME = "install the same there, or run all from one image"


@dataclass(frozen=True)
class Conditions:
    """What the process that starts a run has."""

    run: str  # a name that no other run has
    work: Path
    versions: Mapping[str, str]
    code: str  # a digest of gliaflow's own modules
    plugins: Mapping[tuple[str, str], str]  # digests of code by kind and name
    bundles: Mapping[Path, str]  # ids
    mask: Volume  # a file of the cohort
    mask_digest: str
    device: str
    third_party: bool  # a generator needs a process of its own

    @property
    def marker(self) -> Path:
        """A file that exists while the run does."""
        return self.work / f".run-{self.run}"


@contextmanager
def conditions_of(plan: Plan, mask: Volume) -> Iterator[Conditions]:
    """The conditions of a run in this process; its marker exists for the block."""
    variants = [("classifier", plan.classifier), *(("generator", each) for each in plan.generators)]
    conditions = Conditions(
        run=uuid4().hex[:12],
        work=plan.work,
        versions={name: _version(name) for name in (*LIBRARIES, *ON_CLUSTERS, "python")},
        code=_own_code(),
        plugins={(kind, each.name): each.code for kind, each in variants if each.code},
        bundles={path: Bundle(path).id for path in (plan.init, plan.unet) if path is not None},
        mask=mask,
        mask_digest=hashlib.sha256(mask.read()).hexdigest(),
        device=plan.device,
        third_party=any(generator.third_party for generator in plan.generators),
    )
    conditions.marker.touch()
    try:
        yield conditions
    finally:
        conditions.marker.unlink(missing_ok=True)


def problems(conditions: Conditions) -> list[str]:
    """Why this process must not run a task of that run, each with the remedy; none: it may."""
    software = other_versions(conditions.versions, conditions.code)
    return [*software, *_other_plugins(conditions), *_other_files(conditions)]


def other_versions(versions: Mapping[str, str], code: str) -> Iterator[str]:
    """How libraries and gliaflow differ in this process."""
    for name, wanted in versions.items():
        if (found := _version(name)) != wanted:
            yield f"{name} is {found} there and {wanted} here: {SAME}"
    if _own_code() != code:
        yield f"its gliaflow {_version('gliaflow')} has other code than this one: {SAME}"


def processor() -> str:
    """What of the processor the last digits depend on: the instructions that torch uses."""
    sixteen_bit = " with bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ""
    return f"{torch.backends.cpu.get_cpu_capability()}{sixteen_bit}"


def _other_plugins(conditions: Conditions) -> Iterator[str]:
    registry = load_registry()
    for (kind, name), code in conditions.plugins.items():
        if registry.code_of(kind, name) != code:
            yield f"{kind} {name!r} is missing there, or has other code: {SAME} (plugins too: GLIAFLOW_PLUGINS)"
    if conditions.device == "cuda" and not torch.cuda.is_available():
        yield "torch finds no GPU there: start workers on machines with one, or leave out --device cuda"


def _other_files(conditions: Conditions) -> Iterator[str]:
    work = conditions.work
    if not conditions.marker.exists():
        yield f"{work} is not the folder that it is here: --out must name storage that all share under this path"
    elif not os.access(work, os.W_OK):
        yield f"{work} cannot be written there: run workers as a user who can (here it belongs to {work.stat().st_uid})"
    try:
        same = hashlib.sha256(conditions.mask.read()).hexdigest() == conditions.mask_digest
    except (OSError, ValueError) as error:
        yield f"{error}: COHORT must be on storage that all share under this path"
    else:
        if not same:
            yield f"{conditions.mask} is another file there than here: COHORT must be on storage that all share"
    for path, wanted in conditions.bundles.items():
        try:
            if (found := Bundle(path).id) != wanted:
                yield f"{path} is the bundle {found} there and {wanted} here: put one copy on storage that all share"
        except (BundleError, OSError) as error:
            yield f"{error}: put the bundle on storage that all share under this path"


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


@cache
def _own_code() -> str:
    folders = (Path(import_module(f"gliaflow_{name}").__path__[0]) for name in PACKAGES)
    return " ".join(digest(folder.rglob("*.py")) for folder in folders)  # one each: their order differs by installation
