"""One rule that places the threshold between the classes in all arms with added samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit


def balanced_offset(logits: ArrayLike, positive: ArrayLike) -> float:
    """What to add to logits so that their log-loss is least where both classes count alike; at most 30 either way.

    More samples of a class move the threshold between the classes, which is no merit of the samples: so one rule places
    it in all arms with added samples. 0 where there is one class only. NaN, not graded, is left out.
    """
    scores, kind = np.asarray(logits, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    kind, scores = kind[~np.isnan(scores)], scores[~np.isnan(scores)]
    if len(np.unique(kind)) < 2:
        return 0.0

    def slope(offset: float) -> float:
        missing = kind - expit(scores + offset)
        return float(missing[kind].mean() + missing[~kind].mean())

    return float(brentq(slope, -30, 30)) if slope(-30) > 0 > slope(30) else 30.0 * np.sign(slope(0))
