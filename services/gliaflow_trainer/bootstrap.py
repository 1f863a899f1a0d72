"""Intervals over patients: which patients each draw of a bootstrap has."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000


def bootstrap(strata: ArrayLike, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """How often each patient is in each draw [P, 1 + draws]; the first draw has each patient once.

    Parameters
    ----------
    strata: each patient's stratum [P], the class if there is one. Each draw has as many of a stratum as there are.
    """
    strata = np.asarray(strata)
    rng = np.random.default_rng(seed)
    weights = np.ones((len(strata), 1 + draws))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        weights[members, 1:] = rng.multinomial(len(members), share, size=draws).T
    return weights
