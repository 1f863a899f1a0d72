"""From slices to features as the extractor makes them, in torch, so that it becomes part of a generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ThroughExtractor(nn.Module):
    """z [n, nz], label [n] → a synthetic slice [n, 1, H, W] → its features [n, C, h, w]."""

    def __init__(self, slices: nn.Module, extractor: nn.Module) -> None:
        super().__init__()
        self.slices, self.extractor = slices, extractor

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        features: Tensor = self.extractor(self.slices(z, label))
        return features


class Extractor(nn.Module):
    """slices [n, 1, H, W] → features [n, C, h, w] of one tap of a U-Net, cropped to the tumour it finds or not.

    ``unet``: slices → a named tuple of the taps and the ``mask``, as it is served.
    """

    def __init__(self, unet: nn.Module, tap: str, cropped: bool) -> None:
        super().__init__()
        self.unet, self.tap, self.cropped = unet.eval().requires_grad_(False), tap, cropped

    def forward(self, slices: Tensor) -> Tensor:
        output = self.unet(slices)
        features: Tensor = getattr(output, self.tap)
        return crop(features, output.mask[:, 0] > 0.5) if self.cropped else features


def crop(features: Tensor, mask: Tensor) -> Tensor:
    """Features [n, C, H, W] cropped to a mask [n, rows, columns], [n, C, H/2, W/2]: as the extractor serves them."""
    _, channels, height, width = features.shape
    squares = (mask.shape[1] // height, mask.shape[2] // width)
    share = F.avg_pool2d(mask[:, None].to(features.dtype), squares)
    found = features * share
    for axis, side in ((2, height), (3, width)):
        along = (share > 0).sum(dim=5 - axis)[:, 0].to(features.dtype)  # positions with tumour in each row, or column
        total = along.sum(dim=1)
        middle = (along * torch.arange(side, dtype=along.dtype, device=along.device)).sum(dim=1) / total.clamp_min(1)
        low = torch.where(total > 0, middle.round().long() - side // 4, (side - side // 2) // 2)
        index = low[:, None] + torch.arange(side // 2, device=along.device)
        inside = ((index >= 0) & (index < side)).to(features.dtype)
        shape = [-1, 1, 1, 1]
        shape[axis] = side // 2
        index, inside = index.clamp(0, side - 1).view(shape), inside.view(shape)
        sizes = [-1, channels, found.shape[2], found.shape[3]]
        sizes[axis] = side // 2
        found = found.gather(axis, index.expand(sizes)) * inside
    return found
