"""The variants that a run is asked for, with their options; and a fit of one, whose failure names it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gliaflow_plugins.contracts import (
    ClassifierVariant,
    FeatureSource,
    Fitted,
    FittedClassifier,
    GeneratorVariant,
    PluginError,
    parse_options,
)
from gliaflow_plugins.registry import Registry
from pydantic import BaseModel

from gliaflow_trainer.profiles import Profile

T = TypeVar("T")
TRIED = 8  # samples that what was fitted is tried on


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
    """``variant.fit`` with these arguments. It may be anybody's code.

    Raises
    ------
    PluginError: as ``_checked`` does; or what the networks answer is of another shape than the contract says, or a
        class's features are all not finite.
    """

    import torch  # here: the services that serve read this module's ``choose``, and have none

    def answer(fitted: Fitted) -> None:
        for label in range(len(features.classes)):
            labels = torch.full((TRIED,), label)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                z = torch.randn(TRIED, fitted.nz)
            with torch.inference_mode():
                made = fitted.generator(z, labels)
                source, classes = fitted.critic(made)
            shape = (TRIED, *features.shape)
            _require(tuple(made.shape) == shape, f"its generator made {list(made.shape)}, not {list(shape)}")
            _require(bool(made.isfinite().flatten(1).all(1).any()), "its generator made NaN, or infinite features")
            shapes = [list(source.shape), list(classes.shape)]
            _require(shapes == [[TRIED], [TRIED, len(features.classes)]], f"its critic answered {shapes} to 8 features")

    return _checked("generator", variant, Fitted, lambda: variant.fit(features, options, **how), answer)


def fit_classifier(
    variant: ClassifierVariant, features: FeatureSource, options: BaseModel, **how: Any
) -> FittedClassifier:
    """``variant.fit`` with these arguments. It may be anybody's code.

    Raises
    ------
    PluginError: as ``_checked`` does; or the network does not answer [n] finite logits to n features.
    """

    import torch

    def answer(fitted: FittedClassifier) -> None:
        with torch.inference_mode():
            logit = fitted.module(torch.from_numpy(features.batch(how["learn"][:TRIED])))
        wanted = (min(TRIED, len(how["learn"])),)
        _require(tuple(logit.shape) == wanted, f"it answered {list(logit.shape)} to {wanted[0]} features")
        _require(bool(logit.isfinite().all()), "it answered NaN, or an infinite logit")

    return _checked("classifier", variant, FittedClassifier, lambda: variant.fit(features, options, **how), answer)


def _checked(kind: str, variant: Any, of: type[T], fit: Callable[[], object], answer: Callable[[T], None]) -> T:
    """What ``fit`` returns, once ``answer`` has found its networks fit for use.

    Raises
    ------
    PluginError: it raised something, SystemExit too, returned something else, or its networks will not do. The text
        has the last line of the plugin's own code, if any.
    """
    try:
        fitted = fit()
        if not isinstance(fitted, of):
            raise PluginError(f"fit returned {type(fitted).__name__}, not {of.__name__}")
        answer(fitted)
    except PluginError as error:
        raise PluginError(f"{kind} {variant.name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = getattr(sys.modules.get(type(variant).__module__), "__file__", None)
        last = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
        said = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{kind} {variant.name!r} could not be fitted: {said} ({last.filename}:{last.lineno})"
        raise PluginError(text) from error
    return fitted


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise PluginError(otherwise)
