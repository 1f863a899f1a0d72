"""Finds the plugins: those that ship, installed ones, and those in the folder GLIAFLOW_PLUGINS.

Each plugin is loaded on its own, so that a broken plugin does not affect the others. The registry keeps each failure
in ``problems`` and reports it when a requested name is missing: only then does it matter.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from pydantic import BaseModel

from gliaflow_plugins import contracts, hookspecs
from gliaflow_plugins.code_digest import digest, imported_files
from gliaflow_plugins.contracts import PluginError
from gliaflow_plugins.hookspecs import GROUP
from gliaflow_plugins.kinds import KINDS, PluginKind
from gliaflow_plugins.moved import UPGRADING, advice
from gliaflow_plugins.own_files import who_else_may_write

SHIPPED = "gliaflow_plugins.shipped"
FOLDER = "GLIAFLOW_PLUGINS"  # in the environment alone: no settings file may make us run code from another folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of file names
BUNDLED = {"samples": contracts.FitSamples, "context": contracts.FitContext}  # once keywords of ``fit``
T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: its entry point, distribution and version, and its file."""

    plugin: str
    distribution: str
    version: str
    file: str

    def __str__(self) -> str:
        return f"{self.plugin} of {self.distribution} {self.version} ({self.file})"


@dataclass(frozen=True)
class Problem:
    """A plugin, or one thing that it registers, that cannot be used. ``error`` is one line of text."""

    origin: Origin
    error: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.error}"


@dataclass
class Registry:
    """The usable plugins of each kind, by name. ``origins`` is keyed by kind ("generator", …) and name."""

    augmentations: dict[str, contracts.Augmentation] = field(default_factory=dict)
    generators: dict[str, contracts.GeneratorVariant] = field(default_factory=dict)
    classifiers: dict[str, contracts.ClassifierVariant] = field(default_factory=dict)
    steps: dict[str, contracts.Step] = field(default_factory=dict)
    readers: dict[str, contracts.Reader] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)

    def augmentation(self, name: str) -> contracts.Augmentation:
        """The augmentation of this name. Raises PluginError if there is no usable one; so do the next four."""
        return self._select("augmentation", self.augmentations, name)

    def generator(self, name: str) -> contracts.GeneratorVariant:
        """The generator variant of this name."""
        return self._select("generator", self.generators, name)

    def classifier(self, name: str) -> contracts.ClassifierVariant:
        """The classifier variant of this name."""
        return self._select("classifier", self.classifiers, name)

    def step(self, name: str) -> contracts.Step:
        """The preprocessing step of this name."""
        return self._select("step", self.steps, name)

    def reader(self, name: str) -> contracts.Reader:
        """The reader of this name."""
        return self._select("reader", self.readers, name)

    def of(self, kind: PluginKind) -> dict[str, Any]:
        """The usable plugins of a kind, by name."""
        plugins: dict[str, Any] = getattr(self, kind.plural)
        return plugins

    def ships(self, kind: str, name: str) -> bool:
        """Whether this plugin comes with gliaflow. One without an origin (a test's) is only in this process: True."""
        origin = self.origins.get((kind, name))
        return origin is None or origin.plugin == "shipped"

    def code_of(self, kind: str, name: str) -> str:
        """A digest of the code that this plugin depends on; empty for a plugin without an origin.

        For a shipped plugin: its module and the ``gliaflow_plugins`` modules that it imports. For others: the plugin's
        file, or each ``.py`` file of its package.
        """
        origin = self.origins.get((kind, name))
        if origin is None:
            return ""
        if self.ships(kind, name):
            module = type(self.of(KINDS[kind])[name]).__module__
            return digest(imported_files(module, Path(__file__).parents[1]))
        file = Path(origin.file)
        return digest(file.parent.rglob("*.py") if (file.parent / "__init__.py").exists() else [file])

    def add(self, plugin: object, origin: Origin) -> None:
        """Call the hooks of one plugin. Each thing that cannot be used becomes a problem; the others are registered."""
        # One manager for each plugin: pluggy calls all implementations of a hook in one sweep, the first exception
        # ends the sweep, and the manager does not say which plugin registered what.
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin, origin.plugin)
            manager.check_pending()  # a misspelt hook would otherwise do nothing, without a word
        except Exception as error:
            self.fail(origin, error)
            return
        for kind in KINDS.values():
            self._collect(getattr(manager.hook, kind.hook), kind, origin)
        if origin not in self.origins.values() and not any(problem.origin == origin for problem in self.problems):
            self.fail(origin, PluginError("it registers nothing: is @hookimpl missing?"))

    def load(self, entry_point: EntryPoint) -> None:
        """Import the plugin of an entry point and add it; a failed import becomes a problem."""
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:
            self.fail(_origin(entry_point), error)
        else:
            self.add(plugin, _origin(entry_point, plugin))

    def fail(self, origin: Origin, error: BaseException) -> None:
        """Keep the failure of a plugin."""
        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        hint = advice(error)
        self.problems.append(Problem(origin, " ".join(f"{text}{hint and f' ({hint})'}".split())))

    def _collect(self, hook: Callable[..., Any], kind: PluginKind, origin: Origin) -> None:
        def register(thing: Any) -> None:
            try:
                name = _checked_name(thing, kind)
            except PluginError as error:
                self.fail(origin, error)
                return
            key = (kind.name, name)
            if key not in self.origins:
                self.origins[key] = origin
                self.of(kind)[name] = thing
                return
            # Either of two plugins would hide the other, so neither may have the name. A shipped plugin keeps its name.
            first = self.origins[key]
            if not self.ships(*key):
                self.of(kind).pop(name, None)
            text = f"{kind.name} {name!r} is registered already, by {first}; rename or remove one"
            self.fail(origin, PluginError(text))

        try:
            hook(register=register)
        except (Exception, SystemExit) as error:
            self.fail(origin, error)

    def _select(self, kind: str, among: Mapping[str, T], name: str) -> T:
        try:
            return among[name]
        except KeyError:
            usable = ", ".join(sorted(among)) or "none"
            broken = "".join(f"; failed: {problem}" for problem in self.problems)
            raise PluginError(f"no usable {kind} {name!r}; there is: {usable}{broken}") from None


def load_registry() -> Registry:
    """The shipped plugins, those installed under the entry-point group ``gliaflow``, and those in GLIAFLOW_PLUGINS.

    Raises
    ------
    PluginError: GLIAFLOW_PLUGINS is not the absolute path of a folder, or another user may change what is in it. A
        broken plugin raises nothing (``problems``).
    """
    shipped = importlib.import_module(SHIPPED)  # by name, as every plugin: a plugin may import the registry
    registry = Registry()
    registry.add(shipped, Origin("shipped", "gliaflow", _own_version(), str(shipped.__file__)))
    for entry_point in entry_points(group=GROUP):
        if entry_point.value != SHIPPED:  # an installed gliaflow announces it too
            registry.load(entry_point)
    if os.environ.get(FOLDER):
        _load_folder(registry, Path(os.environ[FOLDER]))
    return registry


def _load_folder(registry: Registry, folder: Path) -> None:
    """Add each module and package in ``folder``, by name, except those whose names begin with ``_`` or ``.``."""
    if not folder.is_absolute():
        raise PluginError(f"{FOLDER}: {folder} is not an absolute path: write the whole path, from /")
    folder = folder.resolve()
    if not folder.is_dir():
        raise PluginError(f"{FOLDER}: {folder} is not a folder")
    if fault := who_else_may_write(folder):
        raise PluginError(f"{FOLDER}: no plugin is loaded: {fault}")
    sys.dont_write_bytecode = True  # with a umask of 002, the next start would refuse Python's own cache
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that a file in it cannot replace a library
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")) or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
            continue
        origin = Origin(path.stem, folder.name, "in a folder", str(path))
        try:
            module = importlib.import_module(path.stem)
            if not Path(str(module.__file__)).is_relative_to(folder):
                raise PluginError(f"{module.__file__} has the same name; rename the plugin")
        except (Exception, SystemExit) as error:
            registry.fail(origin, error)
        else:
            registry.add(module, origin)


def _checked_name(thing: Any, kind: PluginKind) -> str:
    """The name of a thing that a plugin registers. A wrong thing fails here, and not in the middle of a training."""
    if isinstance(thing, type) or not isinstance(thing, kind.protocol):
        needs = f"register an instance with the attributes of {kind.protocol.__name__}"
        raise PluginError(f"{thing!r} is not a valid {kind.name}: {needs}")
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        rule = "a name consists of letters, digits and -._, and has at most 64 characters"
        raise PluginError(f"{kind.name} {name!r} of {thing!r}: {rule}")
    title, options = f"{kind.name} {name!r}", getattr(thing, "options", None)
    if isinstance(options, type) and issubclass(options, BaseModel):
        if required := [option for option, about in options.model_fields.items() if about.is_required()]:
            raise PluginError(f"{title}: options without a default: {', '.join(required)}")
    elif kind.has_options:
        raise PluginError(f"{title}: options must be a pydantic model class, not {options!r}")
    _check_signature(getattr(thing, kind.method), kind, title)
    return name


def _check_signature(method: Callable[..., Any], kind: PluginKind, title: str) -> None:
    """Refuse a method that cannot be called as the contract says: one written to an older contract, say."""
    signature = inspect.signature(method)
    bundles = {name: [part.name for part in fields(BUNDLED[name])] for name in kind.parameters if name in BUNDLED}
    try:
        signature.bind(*kind.parameters)
        if not any(name in signature.parameters for names in bundles.values() for name in names):
            return
    except TypeError:
        pass
    more = "".join(f"; {name} has {', '.join(names)}" for name, names in bundles.items()) + f"; {UPGRADING}"
    contract = f"{kind.method}({', '.join(kind.parameters)})"
    raise PluginError(f"{title}: {kind.method}({', '.join(signature.parameters)}) must be {contract}{more}")


def _origin(entry_point: EntryPoint, plugin: object = None) -> Origin:
    dist = entry_point.dist
    name, release = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
    if isinstance(plugin, ModuleType):
        return Origin(entry_point.name, name, release, str(plugin.__file__))
    try:  # the top-level package alone: finding a submodule would import it
        spec = find_spec(entry_point.module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    return Origin(entry_point.name, name, release, str(spec.origin) if spec is not None else entry_point.value)


def _own_version() -> str:
    try:
        return version("gliaflow")
    except Exception:  # run from a checkout that is not installed
        return "unknown"
