"""The variants that a run is asked for, with their options; and a fit of one, whose failure names it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gliaflow_plugins.base import PluginError, parse_options
from gliaflow_plugins.classifiers import ClassifierVariant, FittedClassifier
from gliaflow_plugins.generators import FeatureSource, Fitted, GeneratorVariant
from gliaflow_plugins.registry import Registry
from pydantic import BaseModel

from gliaflow_trainer.profiles import Profile

T = TypeVar("T")


@dataclass(frozen=True)
class Variants:
    """Generators by name with their options, the first a bundle's own; and the classifier."""

    registry: Registry
    generators: Mapping[str, BaseModel]
    classifier: str
    classifier_options: BaseModel


def choose(registry: Registry, generators: str, profile: Profile, options: Mapping[str, Any] | None = None) -> Variants:
    """These generators and the profile's classifier, a variant's options over its defaults: the profile's, then these.

    Parameters
    ----------
    generators: names with commas between.
    options: ``k`` is of all generators, ``NAME.k`` of one of them or of the classifier.

    Raises
    ------
    PluginError: a variant or one of its options is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in generators.split(",") if name.strip()))
    mine: dict[str, dict[str, Any]] = {name: dict(profile.generators.get(name, {})) for name in names}
    classifier = profile.classifier
    grading = dict(profile.classifiers.get(classifier, {}))
    for key, value in sorted((options or {}).items(), key=lambda option: "." in option[0]):
        of, dot, option = key.rpartition(".")
        if of == classifier:
            grading[option] = value
        elif dot and of not in mine:
            raise PluginError(f"option {key}: {of!r} is not one of those asked for, {', '.join([*names, classifier])}")
        else:
            for name in [of] if dot else names:
                mine[name][option] = value
    return Variants(
        registry,
        {name: parse_options(registry.generator(name), values) for name, values in mine.items()},
        classifier,
        parse_options(registry.classifier(classifier), grading),
    )


def fit_generator(variant: GeneratorVariant, features: FeatureSource, options: BaseModel, **how: Any) -> Fitted:
    """``variant.fit`` with these arguments. It may be anybody's code: raises PluginError, as ``_checked`` does."""
    return _checked("generator", variant.name, Fitted, lambda: variant.fit(features, options, **how))


def fit_classifier(
    variant: ClassifierVariant, features: FeatureSource, options: BaseModel, **how: Any
) -> FittedClassifier:
    """``variant.fit`` with these arguments. It may be anybody's code: raises PluginError, as ``_checked`` does."""
    return _checked("classifier", variant.name, FittedClassifier, lambda: variant.fit(features, options, **how))


def _checked(kind: str, name: str, of: type[T], fit: Callable[[], object]) -> T:
    """What ``fit`` returns.

    Raises
    ------
    PluginError: it raised something, or returned something else. The text has the line where.
    """
    try:
        fitted = fit()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{kind} {name!r} could not be fitted: {said} ({last.filename}:{last.lineno})") from error
    if not isinstance(fitted, of):
        raise PluginError(f"{kind} {name!r}: fit returned {type(fitted).__name__}, not {of.__name__}")
    return fitted
