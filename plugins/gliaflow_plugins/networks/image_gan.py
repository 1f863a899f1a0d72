"""The extractor's work (slices to features) in torch, as a part of the generator ``acgan-image``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TapExtractor(nn.Module):
    """slices [n, C, H, W] → features [n, C, h, w] of one tap of a U-Net, cropped to the tumour that it finds or not.

    ``unet``: slices → a named tuple of the taps and the ``mask``, as in serving.
    """

    def __init__(self, unet: nn.Module, tap: str, cropped: bool) -> None:
        super().__init__()
        self.unet, self.tap, self.cropped = unet.eval().requires_grad_(False), tap, cropped

    def forward(self, slices: Tensor) -> Tensor:
        output = self.unet(slices)
        features: Tensor = getattr(output, self.tap)
        return crop(features, output.mask[:, 0] > 0.5) if self.cropped else features


def crop(features: Tensor, mask: Tensor) -> Tensor:
    """Features [n, C, H, W] cropped to a mask [n, rows, columns], [n, C, H/2, W/2], as the extractor stage does."""
    _, channels, height, width = features.shape
    squares = (mask.shape[1] // height, mask.shape[2] // width)
    share = F.avg_pool2d(mask[:, None].to(features.dtype), squares)
    cropped = features * share
    for axis, side in ((2, height), (3, width)):
        along = (share > 0).sum(dim=5 - axis)[:, 0].to(features.dtype)  # positions with tumour in each row or column
        total = along.sum(dim=1)
        middle = (along * torch.arange(side, dtype=along.dtype, device=along.device)).sum(dim=1) / total.clamp_min(1)
        low = torch.where(total > 0, middle.round().long() - side // 4, (side - side // 2) // 2)
        index = low[:, None] + torch.arange(side // 2, device=along.device)
        inside = ((index >= 0) & (index < side)).to(features.dtype)
        shape = [-1, 1, 1, 1]
        shape[axis] = side // 2
        index, inside = index.clamp(0, side - 1).view(shape), inside.view(shape)
        sizes = [-1, channels, cropped.shape[2], cropped.shape[3]]
        sizes[axis] = side // 2
        cropped = cropped.gather(axis, index.expand(sizes)) * inside
    return cropped
