"""The variants of a run with their options, and a guarded fit of one: an error names the variant."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gliaflow_plugins.contracts import (
    ClassifierVariant,
    FeatureSource,
    FitContext,
    FitSamples,
    Fitted,
    FittedClassifier,
    GeneratorVariant,
    PluginError,
    parse_options,
)
from gliaflow_plugins.moved import advice
from gliaflow_plugins.registry import Registry
from pydantic import BaseModel

from gliaflow_trainer.profiles import Profile

T = TypeVar("T")
TRIED = 8  # samples to try fitted networks on


@dataclass(frozen=True)
class Variants:
    """Generators by name with their options, of which the first is the bundle's own; and the classifier.

    ``synthetic``: how many samples of the first generator a bundle's classifier learns from, beside the real ones.
    """

    registry: Registry
    generators: Mapping[str, BaseModel]
    classifier: str
    classifier_options: BaseModel
    synthetic: int = 0

    def require_source(self, given: bool) -> None:
        """Raise PluginError if a generator needs labelled scans of another cohort, and none are given."""
        for name in self.generators:
            if learns_from_source(self.registry.generator(name)) and not given:
                raise PluginError(
                    f"generator {name!r} needs labelled scans of another cohort, which --source FOLDER gives"
                )


def learns_from_source(variant: GeneratorVariant) -> bool:
    """Whether a generator needs labelled features of another cohort (``FitContext.source``)."""
    return bool(getattr(variant, "source", False))


def choose(registry: Registry, generators: str, profile: Profile, options: Mapping[str, Any] | None = None) -> Variants:
    """These generators and the profile's classifier. options replace the profile's options, and those the defaults.

    Parameters
    ----------
    generators: names with commas between.
    options: ``k`` is for all generators, ``NAME.k`` for one of them or for the classifier.

    Raises
    ------
    PluginError: a variant or one of its options is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in generators.split(",") if name.strip()))
    classifier = profile.classifier
    chosen: dict[str, dict[str, Any]] = {name: dict(profile.generators.get(name, {})) for name in names}
    graded = dict(profile.classifiers.get(classifier, {}))
    for key, value in sorted((options or {}).items(), key=lambda option: "." in option[0]):
        name, dot, option = key.rpartition(".")
        if name == classifier:
            graded[option] = value
        elif dot and name not in chosen:
            raise PluginError(f"option {key}: {name!r} is not one of the variants, {', '.join([*names, classifier])}")
        else:
            for each in [name] if dot else names:
                chosen[each][option] = value
    return Variants(
        registry,
        {name: parse_options(registry.generator(name), values) for name, values in chosen.items()},
        classifier,
        parse_options(registry.classifier(classifier), graded),
    )


def fit_generator(
    variant: GeneratorVariant, features: FeatureSource, options: BaseModel, context: FitContext
) -> Fitted:
    """``variant.fit``, guarded: it may be third-party code.

    Raises
    ------
    PluginError: see ``_guarded``; or the networks return other shapes than the contract, or only infinite features.
    """
    import torch  # not above: serving imports this module for ``choose``, without torch

    def check(fitted: Fitted) -> None:
        for label in range(len(features.classes)):
            labels = torch.full((TRIED,), label)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                z = torch.randn(TRIED, fitted.nz)
            with torch.inference_mode():
                maps = fitted.generator(z, labels)
                source, classes = fitted.critic(maps)
            shape = (TRIED, *features.shape)
            _require(tuple(maps.shape) == shape, f"its generator returned {list(maps.shape)}, not {list(shape)}")
            _require(bool(maps.isfinite().flatten(1).all(1).any()), "its generator returned NaN, or infinite features")
            shapes = [list(source.shape), list(classes.shape)]
            wanted = [[TRIED], [TRIED, len(features.classes)]]
            _require(shapes == wanted, f"its critic returned {shapes} for {TRIED} features")

    return _guarded("generator", variant, Fitted, lambda: variant.fit(features, options, context), check)


def fit_classifier(
    variant: ClassifierVariant, features: FeatureSource, options: BaseModel, samples: FitSamples, context: FitContext
) -> FittedClassifier:
    """``variant.fit``, guarded: it may be third-party code.

    Raises
    ------
    PluginError: see ``_guarded``; or the network does not return [n] finite logits for n features.
    """
    import torch

    def check(fitted: FittedClassifier) -> None:
        some = samples.learn[:TRIED]
        with torch.inference_mode():
            logit = fitted.module(torch.from_numpy(features.batch(some)))
        _require(tuple(logit.shape) == some.shape, f"it returned {list(logit.shape)} for {len(some)} features")
        _require(bool(logit.isfinite().all()), "it returned NaN, or an infinite logit")

    return _guarded(
        "classifier", variant, FittedClassifier, lambda: variant.fit(features, options, samples, context), check
    )


def _guarded(kind: str, variant: Any, of: type[T], fit: Callable[[], object], check: Callable[[T], None]) -> T:
    """The result of ``fit``, after ``check`` has accepted its networks.

    Raises
    ------
    PluginError: ``fit`` raised an error (SystemExit too) or returned another type, or the networks are unusable. The
        text has the last line of the plugin's own code, if there is one.
    """
    try:
        fitted = fit()
        if not isinstance(fitted, of):
            raise PluginError(f"fit returned {type(fitted).__name__}, not {of.__name__}")
        check(fitted)
    except PluginError as error:
        raise PluginError(f"{kind} {variant.name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = getattr(sys.modules.get(type(variant).__module__), "__file__", None)
        last = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
        text = " ".join(f"{type(error).__name__}: {error} ({last.filename}:{last.lineno}) {advice(error)}".split())
        raise PluginError(f"{kind} {variant.name!r} could not be fitted: {text}") from error
    return fitted


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise PluginError(otherwise)
