"""``adapted``: another cohort's samples, moved to where this cohort's common class lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from gliaflow_plugins.contracts import FitContext, PluginError  # noqa: E402
from gliaflow_plugins.features import ArrayFeatures  # noqa: E402
from gliaflow_plugins.generators.adapted import Adapted, AdaptedOptions  # noqa: E402
from gliaflow_plugins.networks.bank import Bank  # noqa: E402

CLASSES = ("HGG", "LGG")
SPREAD = np.array([0.5, 1.0, 2.0])[:, None, None]
LEVEL = np.array([8.0, 9.0, 12.0])[:, None, None]


def cohort(rare: int, common: int, gain: float = 1.0, offset: float = 0.0, cropped: bool = False) -> ArrayFeatures:
    """The rare class (0) is 4 above the common one in the first channel; the scanner multiplies and adds."""
    labels = np.repeat([0, 1], [rare, common])
    maps = LEVEL + SPREAD * np.random.default_rng(rare + common).standard_normal((len(labels), 3, 6, 6))
    maps[labels == 0, 0] += 4
    maps = gain * maps + offset
    if cropped:
        maps[:, :, :2] = 0
    return ArrayFeatures(maps.astype(np.float32), labels, CLASSES)


def draw(bank: Bank, label: int, count: int = 200) -> np.ndarray:
    z = torch.randn(count, bank.nz, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return np.asarray(bank(z, torch.full((count,), label)).numpy())


@pytest.mark.parametrize("cropped", [False, True])
def test_the_rare_class_comes_out_as_this_scanner_would_show_it(cropped: bool) -> None:
    """One patient of the rare class is here; 300 are there, seen by a scanner of another gain and offset."""
    here, there = cohort(1, 300, cropped=cropped), cohort(300, 310, gain=3, offset=5, cropped=cropped)
    bank = Bank(there, here, 2000)
    for label, above in ((0, 4), (1, 0)):
        drawn = draw(bank, label)
        inside = drawn[:, :, 2:] if cropped else drawn
        expected = LEVEL[:, 0, 0] + [above, 0, 0]
        assert inside.mean(axis=(0, 2, 3)) == pytest.approx(expected, abs=0.05)
        assert inside.std(axis=(0, 2, 3)) == pytest.approx(SPREAD[:, 0, 0], rel=0.05)
        assert not cropped or not drawn[:, :, :2].any(), "what is cropped away stays 0"
    assert len(bank.moved()) == 610


@pytest.mark.parametrize("dead", ["here", "there"])
def test_a_channel_that_does_not_vary_in_one_of_the_cohorts_gets_the_mean_of_the_common_class(dead: str) -> None:
    here, there = cohort(2, 50), cohort(50, 50, offset=3)
    maps = {"here": here.batch(np.arange(52)), "there": there.batch(np.arange(100))}
    maps[dead][(here if dead == "here" else there).labels == 1, 2] = 7  # the rare class may vary in it
    here, there = (ArrayFeatures(maps[name], of.labels, CLASSES) for name, of in (("here", here), ("there", there)))
    expected = maps["here"][here.labels == 1, 2].mean()
    for label in (0, 1):
        assert draw(Bank(there, here, 99), label)[:, 2] == pytest.approx(expected, abs=0.01)


def test_a_channel_that_varies_little_keeps_its_differences() -> None:
    """The classifier standardises: a channel of a thousandth of the largest spread may tell the classes apart."""
    little = np.array([0.001, 1, 1], np.float32)[:, None, None]
    here, there = (cohort(*numbers) for numbers in ((1, 50), (50, 60)))
    here, there = (ArrayFeatures(of.batch(np.arange(len(of))) * little, of.labels, CLASSES) for of in (here, there))
    high, low = (draw(Bank(there, here, 99), label)[:, 0].mean() for label in (0, 1))
    assert high - low == pytest.approx(0.004, rel=0.05)


def test_no_channel_is_stretched_without_bound() -> None:
    here, there = cohort(2, 50), cohort(50, 50)
    maps = there.batch(np.arange(100))
    maps[there.labels == 1, 2] = 12 + 0.02 * (maps[there.labels == 1, 2] - 12)
    moved = Bank(ArrayFeatures(maps, there.labels, CLASSES), here, 99)
    assert float(moved.scale.max()) == 10


def test_the_bank_keeps_no_more_than_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow_plugins.networks.bank.MOST_BYTES", 5 * 2 * 3 * 6 * 6 * 2)
    assert Bank(cohort(9, 9), cohort(2, 3), 2000).counts.tolist() == [5, 5]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_each_class_keeps_as_many_samples_as_it_has_up_to_the_limit(rare: int, common: int, kept: int) -> None:
    bank = Bank(cohort(rare, common), cohort(2, 3), kept)
    assert bank.counts.tolist() == [min(rare, kept), min(common, kept)]
    for label in (0, 1):
        drawn, known = draw(bank, label, 20), bank.moved()
        of_class = known.batch(np.flatnonzero(known.labels == label))
        assert all(np.abs(of_class - each).max(axis=(1, 2, 3)).min() < 0.02 for each in drawn)


def test_without_another_cohort_or_with_another_network_it_says_so() -> None:
    with pytest.raises(PluginError, match="labelled scans of another cohort, which --source FOLDER gives"):
        Adapted().fit(cohort(2, 3), AdaptedOptions(), FitContext(0))
    other = ArrayFeatures(np.ones((4, 5, 6, 6), np.float32), np.array([0, 0, 1, 1]), CLASSES)
    with pytest.raises(ValueError, match=r"the other cohort's features are \(5, 6, 6\), and not \(3, 6, 6\)"):
        Adapted().fit(cohort(2, 3), AdaptedOptions(), FitContext(0, source=other))
