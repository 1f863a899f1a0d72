"""The U-Net that a fit starts from: a bundle's, as wide as the profile's, and for the profile's sequences."""

from __future__ import annotations

from pathlib import Path

import torch
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import BundleError

from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.unet import UNet
from gliaflow_trainer.unet_bundle import load_weights

NOISE = 0.1  # between the copies of a kernel, as a share of it: without it, they would learn the same


def unet_to_fine_tune(folder: Path, profile: Profile) -> UNet:
    """The U-Net of the bundle in ``folder``, which computes the same masks with the width and sequences of the profile.

    It may become wider (Chen et al. 2016, "Net2Net"), and learn more sequences: their kernels begin at 0, and their
    mean and deviation are NaN, which ``fit_unet`` replaces.

    Raises
    ------
    BundleError: the bundle has no torch weights; or its U-Net takes a sequence that the profile's does not, or its
        width does not divide the profile's, or one of the two has batch normalisation and the other has not.
    """
    bundle = Bundle(folder)
    net, _ = load_weights(bundle)
    known, wanted = bundle.manifest.input.channels, profile.input.channels
    if not set(known) <= set(wanted):
        raise BundleError(
            f"{folder}: its U-Net takes {', '.join(known)}, and not {', '.join(wanted)}; give "
            f"--channels {','.join(known)}, or fine-tune another bundle"
        )
    if profile.width % net.width or net.norm != profile.norm:
        raise BundleError(
            f"{folder}: its U-Net has width {net.width}{' and batch norm' if net.norm else ''}, the profile needs "
            f"{profile.width}{' and batch norm' if profile.norm else ''}; choose the profile it was trained with"
        )
    sources = [known.index(channel) if channel in known else None for channel in wanted]
    return _with_sequences(_wider(net, profile.width // net.width), sources)


def _wider(net: UNet, times: int) -> UNet:
    """Each channel so many times, and each kernel's weight divided among the copies of the channel that it reads."""
    if times == 1:
        return net
    wider = UNet(net.width * times, net.norm, [0.0] * net.channels, [1.0] * net.channels)
    shapes = {name: value.shape for name, value in wider.state_dict().items()}
    chance = torch.Generator().manual_seed(0)
    state = {}
    for name, value in net.state_dict().items():
        if value.ndim < 4:
            state[name] = value if value.shape == shapes[name] else value.repeat(times)
            continue
        reads = 0 if name.startswith("upsample") else 1  # the axis of what a kernel reads; the other: of what it gives
        joined = name.startswith("decoder") and name.endswith(".0.weight")  # reads what was upsampled, then the skip
        for axis in (0, 1):
            if value.shape[axis] != shapes[name][axis]:
                parts = value.chunk(2 if axis == reads and joined else 1, axis)
                copies = torch.cat([part for part in parts for _ in range(times)], axis)
                value = copies / times if axis == reads else copies
        state[name] = value * (1 + NOISE * torch.randn(value.shape, generator=chance))
    wider.load_state_dict(state)
    return wider


def _with_sequences(net: UNet, sources: list[int | None]) -> UNet:
    """``sources``: for each channel of the new U-Net, the old one's that it is; None: a new sequence."""
    if sources == list(range(net.channels)):
        return net
    old, mean, std = net.encoder[0][0].weight, net.mean.reshape(-1), net.std.reshape(-1)  # type: ignore[index]
    grown = UNet(
        net.width,
        net.norm,
        [float("nan") if k is None else float(mean[k]) for k in sources],
        [float("nan") if k is None else float(std[k]) for k in sources],
    )
    kernels = [torch.zeros_like(old[:, :1]) if k is None else old[:, k : k + 1] for k in sources]
    statistics = {"mean": grown.mean, "std": grown.std}
    grown.load_state_dict({**net.state_dict(), **statistics, "encoder.0.0.weight": torch.cat(kernels, 1)})
    return grown
