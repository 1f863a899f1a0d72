"""Which plugins there are. Each is loaded by itself, so that a broken one takes down nothing but itself.

What ships comes first and through the same hooks. What went wrong with a plugin is kept in ``problems`` and
told when somebody asks for a name that is not there: only then does it matter.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from pydantic import BaseModel

from gliaflow_plugins import hookspecs
from gliaflow_plugins.contracts import Augmentation, ClassifierVariant, GeneratorVariant, PluginError, Reader, Step
from gliaflow_plugins.hookspecs import GROUP

SHIPPED = "gliaflow_plugins.shipped"
FOLDER = "GLIAFLOW_PLUGINS"  # in the environment alone: no file that lies about may make us run another
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of a file's name
T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a plugin came from: its entry point, distribution and version, and the file it was found in."""

    plugin: str
    distribution: str
    version: str
    file: str

    def __str__(self) -> str:
        return f"{self.plugin} of {self.distribution} {self.version} ({self.file})"


@dataclass(frozen=True)
class Problem:
    """A plugin, or one thing in it, that cannot be used. ``error`` is one line, for a person."""

    origin: Origin
    error: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.error}"


@dataclass
class Registry:
    """What there is, by name. ``origins`` is keyed by kind ("generator", …) and name."""

    augmentations: dict[str, Augmentation] = field(default_factory=dict)
    generators: dict[str, GeneratorVariant] = field(default_factory=dict)
    classifiers: dict[str, ClassifierVariant] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)

    def augmentation(self, name: str) -> Augmentation:
        """The augmentation of this name. Raises PluginError where there is none that works."""
        return self._select("augmentation", self.augmentations, name)

    def generator(self, name: str) -> GeneratorVariant:
        """The generator variant of this name. Raises PluginError where there is none that works."""
        return self._select("generator", self.generators, name)

    def classifier(self, name: str) -> ClassifierVariant:
        """The classifier variant of this name. Raises PluginError where there is none that works."""
        return self._select("classifier", self.classifiers, name)

    def step(self, name: str) -> Step:
        """The preprocessing step of this name. Raises PluginError where there is none that works."""
        return self._select("step", self.steps, name)

    def reader(self, name: str) -> Reader:
        """The reader of this name. Raises PluginError where there is none that works."""
        return self._select("reader", self.readers, name)

    def ships(self, kind: str, name: str) -> bool:
        """Whether this one comes with gliaflow (or was put here by hand, so that no other process would know it)."""
        origin = self.origins.get((kind, name))
        return origin is None or origin.plugin == "shipped"

    def code_of(self, kind: str, name: str) -> str:
        """A digest of its code: its file, or every ``.py`` of the package that it is in. Empty: not known."""
        if (kind, name) not in self.origins:
            return ""
        file = Path(self.origins[kind, name].file)
        package = (file.parent / "__init__.py").exists()
        found = hashlib.sha256()
        for path in sorted(file.parent.rglob("*.py")) if package else [file]:
            found.update(path.read_bytes() if path.is_file() else str(path).encode())
        return found.hexdigest()[:16]

    def add(self, plugin: object, origin: Origin) -> None:
        """Call the hooks of one plugin. Whatever it gets wrong becomes a problem; what it gets right stays."""
        # A manager a plugin: pluggy calls the implementations of a hook in one sweep that the first exception
        # ends, and it does not say which plugin registered what.
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin, origin.plugin)
            manager.check_pending()  # a misspelt hook would otherwise do nothing, silently
        except Exception as error:
            self.fail(origin, error)
            return
        self._collect(manager.hook.register_augmentations, "augmentation", Augmentation, self.augmentations, origin)
        self._collect(manager.hook.register_generators, "generator", GeneratorVariant, self.generators, origin)
        self._collect(manager.hook.register_classifiers, "classifier", ClassifierVariant, self.classifiers, origin)
        self._collect(manager.hook.register_steps, "step", Step, self.steps, origin)
        self._collect(manager.hook.register_readers, "reader", Reader, self.readers, origin)
        if origin not in self.origins.values() and not any(problem.origin == origin for problem in self.problems):
            self.fail(origin, PluginError("it registers nothing: has no function of it @hookimpl?"))

    def load(self, entry_point: EntryPoint) -> None:
        """Import the plugin behind an entry point and add it; a failure to import becomes a problem."""
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:
            self.fail(_origin(entry_point), error)
        else:
            self.add(plugin, _origin(entry_point, plugin))

    def _collect(self, hook: Callable[..., Any], kind: str, of: Any, into: dict[str, T], origin: Origin) -> None:
        def register(thing: T) -> None:
            try:
                name = _checked_name(thing, kind, of)
            except PluginError as error:
                self.fail(origin, error)
                return
            if (kind, name) not in self.origins:
                self.origins[kind, name] = origin
                into[name] = thing
                return
            # Taking either would hide the other, so the name stands for nothing until one of them goes: but what ships
            # stays what it is.
            first = self.origins[kind, name]
            if not self.ships(kind, name):
                into.pop(name, None)
            self.fail(origin, PluginError(f"{kind} {name!r} is registered already, by {first}; rename or remove one"))

        try:
            hook(register=register)
        except (Exception, SystemExit) as error:
            self.fail(origin, error)

    def fail(self, origin: Origin, error: BaseException) -> None:
        """Keep what went wrong with a plugin."""
        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        self.problems.append(Problem(origin, " ".join(text.split())))

    def _select(self, kind: str, among: Mapping[str, T], name: str) -> T:
        try:
            return among[name]
        except KeyError:
            there_is = ", ".join(sorted(among)) or "none"
            broken = "".join(f"\n  failed: {problem}" for problem in self.problems)
            raise PluginError(f"no usable {kind} {name!r}; there is: {there_is}{broken}") from None


def load_registry() -> Registry:
    """What ships, what is installed under the entry-point group ``gliaflow``, and what lies in a folder of plugins.

    Raises
    ------
    PluginError: GLIAFLOW_PLUGINS names no folder. For a plugin nothing is raised: see ``problems``.
    """
    from gliaflow_plugins import shipped

    registry = Registry()
    registry.add(shipped, Origin("shipped", "gliaflow", _own_version(), str(shipped.__file__)))
    for entry_point in entry_points(group=GROUP):
        if entry_point.value != SHIPPED:  # installed, gliaflow announces it too
            registry.load(entry_point)
    if os.environ.get(FOLDER):
        _load_folder(registry, Path(os.environ[FOLDER]).resolve())
    return registry


def _load_folder(registry: Registry, folder: Path) -> None:
    """Each module and package in ``folder``, in the order of their names; not those that begin with ``_`` or ``.``."""
    if not folder.is_dir():
        raise PluginError(f"{FOLDER}: {folder} is no folder")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # behind all else: a file there can stand for no library
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")) or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
            continue
        origin = Origin(path.stem, folder.name, "in a folder", str(path))
        try:
            module = importlib.import_module(path.stem)
            if not Path(str(module.__file__)).is_relative_to(folder):
                raise PluginError(f"its name is that of {module.__file__}; rename it")
        except (Exception, SystemExit) as error:
            registry.fail(origin, error)
        else:
            registry.add(module, origin)


def _checked_name(thing: object, kind: str, of: Any) -> str:
    # A class in place of an instance, or a missing method, is told now rather than in the middle of a training.
    if isinstance(thing, type) or not isinstance(thing, of):
        raise PluginError(f"{thing!r} is no {kind}: register an instance with what {of.__name__} asks for")
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(f"{kind} {name!r} of {thing!r}: a name is of letters, digits and -._, and at most 64 long")
    options = getattr(thing, "options", None)
    if of is not Reader and not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise PluginError(f"{kind} {name!r}: options must be a pydantic model class, not {options!r}")
    fields = options.model_fields if isinstance(options, type) and issubclass(options, BaseModel) else {}
    if bare := [option for option, field in fields.items() if field.is_required()]:
        raise PluginError(f"{kind} {name!r}: options without a default: {', '.join(bare)}")
    return name


def _origin(entry_point: EntryPoint, plugin: object = None) -> Origin:
    dist = entry_point.dist
    name, release = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
    if isinstance(plugin, ModuleType):
        return Origin(entry_point.name, name, release, str(plugin.__file__))
    try:  # of the top-level package alone: asking for more would import it
        spec = find_spec(entry_point.module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    return Origin(entry_point.name, name, release, str(spec.origin) if spec is not None else entry_point.value)


def _own_version() -> str:
    try:
        return version("gliaflow")
    except Exception:  # run from a checkout that is not installed
        return "unknown"
