"""The synthesizer gives as many accepted features as requested, the same for a seed, or says why it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gliaflow_generator.synthesis import GeneratorError, Synthesizer
from gliaflow_runtime.bundle.load import load_bundle


@pytest.fixture
def synthesizer() -> Synthesizer:
    return Synthesizer(load_bundle(None), threads=1)


def test_features_are_fp16_and_the_same_for_the_same_seed(synthesizer: Synthesizer) -> None:
    first, again, other = (synthesizer.draw("LGG", 20, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (first.dtype, len(first)) == (np.float16, 20)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda features: np.zeros_like(features), r"0 of 800 features were accepted as LGG; train it further"),
        (lambda features: features * np.nan, r"0 of 800 features were accepted as LGG \(800 were not finite\)"),
    ],
    ids=["empty", "not finite"],
)
def test_a_generator_of_which_nothing_is_accepted_is_an_error(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    generator = synthesizer._generator
    monkeypatch.setattr(synthesizer, "_generator", lambda **inputs: [change(generator(**inputs)[0])])
    with pytest.raises(GeneratorError, match=message):
        synthesizer.draw("LGG", 1, np.random.default_rng(0))


def test_a_class_that_is_not_known_is_an_error(synthesizer: Synthesizer) -> None:
    with pytest.raises(GeneratorError, match="label: 'III' is not one of HGG, LGG"):
        synthesizer.draw("III", 1, np.random.default_rng(0))
