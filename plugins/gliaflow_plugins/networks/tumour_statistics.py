"""What features are like within the tumour: each channel's mean, standard deviation and maximum there.

The grader tells the class by these, and so does the discriminator of ``acgan``. With torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

EDGE = 0.1  # of a map's largest sum over channels: below it lies no tumour
DEAD = 1e-3  # of the largest standard deviation: a statistic that varies less is rounding, and is left out


def pooled(features: Tensor) -> Tensor:
    """features [n, C, H, W] → mean, standard deviation and maximum of each channel over the tumour [n, 3C].

    The tumour is where the channels' sum is over a share of its maximum, not merely over 0: what a generator makes may
    be nearly 0 outside it. In a map that is not cropped, it is nearly everywhere.
    """
    total = features.sum(dim=1, keepdim=True)
    inside = (total > EDGE * total.amax(dim=(2, 3), keepdim=True)).to(features.dtype)
    count = inside.sum(dim=(2, 3)).clamp_min(1)
    mean = (features * inside).sum(dim=(2, 3)) / count
    apart = (features - mean[:, :, None, None]) * inside
    spread = ((apart * apart).sum(dim=(2, 3)) / count + 1e-12).sqrt()
    return torch.cat([mean, spread, features.amax(dim=(2, 3))], dim=1)


def inverse_spread(std: Tensor) -> Tensor:
    """1 / ``std`` of statistics [d], and 0 for those that hardly vary."""
    alive = std > max(float(std.max()) * DEAD, 1e-6)
    return torch.where(alive, 1 / std, 0)
