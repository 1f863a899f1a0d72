"""The paper's U-Net (section 3.2) and the loss that it is fitted with (Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from gliaflow_runtime.bundle.manifest import TAPS
from torch import Tensor, nn

SMOOTH = 1e-5


class UNetOutput(NamedTuple):
    """``mask`` [n, 1, H, W], the probability of tumour, and the taps, from which features are read.

    With width w: ``enc5`` [n, 16w, H/16, W/16] (the paper's 15×15×1024), ``enc4`` [n, 8w, H/8, W/8], ``dec1`` [n, 8w,
    H/8, W/8] (30×30×512), ``dec2`` [n, 4w, H/4, W/4], ``dec3`` [n, 2w, H/2, W/2] (120×120×128). All taps are ≥ 0.
    """

    mask: Tensor
    enc5: Tensor
    enc4: Tensor
    dec1: Tensor
    dec2: Tensor
    dec3: Tensor


assert UNetOutput._fields == ("mask", *TAPS)


class UNet(nn.Module):
    """The U-Net of Dong et al. 2017, as the paper uses it. Image [n, C, H, W] → ``UNetOutput``; H, W multiples of 16.

    Parameters
    ----------
    width: channels of the first block; 64 in the paper (34.5 M parameters), doubled at each of four poolings.
    norm: batch normalisation after each convolution. The paper has none; narrow networks trained in minutes need it.
        The ONNX export folds it into the convolutions, so it costs nothing in serving.
    mean, std: of a pixel in the training patients, for each sequence (paper section 3.5); their number is C. They are
        part of the network, so that all networks, those of every fold too, take the same slices.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, width: int = 64, norm: bool = False, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        self.width, self.norm, self.channels = width, norm, len(mean)
        shape = (len(mean), 1, 1) if len(mean) > 1 else ()  # of one sequence a number, as in earlier versions
        self.register_buffer("mean", torch.tensor(mean).reshape(shape))
        self.register_buffer("std", torch.tensor(std).reshape(shape))
        w = [width * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(_block(a, b, norm) for a, b in zip([self.channels, *w], w, strict=False))
        self.pool = nn.MaxPool2d(2)
        # Each doubles the resolution and halves the channels. Its block takes its output and the encoder's.
        up = [(w[level], w[level - 1]) for level in (4, 3, 2, 1)]
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1) for a, b in up)
        self.decoder = nn.ModuleList(_block(2 * b, b, norm) for _, b in up)
        self.head = nn.Conv2d(width, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> UNetOutput:
        logit, taps = self.logit_and_taps(image)
        return UNetOutput(torch.sigmoid(logit), *taps)

    def logit_and_taps(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The mask before the sigmoid [n, 1, H, W], from which a loss is numerically stable, and the taps."""
        x, skips = (image - self.mean) / self.std, []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        enc5, enc4 = skips[4], skips[3]
        decoded = []
        for upsample, block, skip in zip(self.upsample, self.decoder, reversed(skips[:4]), strict=True):
            x = block(torch.cat([upsample(x), skip], dim=1))
            decoded.append(x)
        logit: Tensor = self.head(x)
        return logit, [enc5, enc4, *decoded[:3]]


def _block(channels_in: int, channels_out: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers.append(nn.Conv2d(channels, channels_out, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(channels_out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def soft_dice_loss(probability: Tensor, mask: Tensor, smooth: float = SMOOTH) -> Tensor:
    """1 − the Sørensen–Dice coefficient (Eq. 3) of probabilities and a 0/1 mask of the same shape.

    The sums run over the whole batch, as in TensorLayer's ``dice_coe``: a slice without tumour has no gradient of its
    own. The terms of the denominator are not squared.
    """
    overlap = (probability * mask).sum()
    return 1 - (2 * overlap + smooth) / (probability.sum() + mask.sum() + smooth)
