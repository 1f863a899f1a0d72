"""The U-Net that a fit starts from: a bundle's, for the sequences of the profile."""

from __future__ import annotations

from pathlib import Path

import torch
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import BundleError

from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.unet import UNet
from gliaflow_trainer.unet_bundle import load_weights


def unet_to_fine_tune(folder: Path, profile: Profile) -> UNet:
    """The U-Net of the bundle in ``folder``, with all sequences of the profile.

    The kernels of those that are new to it begin at 0, so that it computes the same masks. Their mean and deviation are
    NaN, which ``fit_unet`` replaces.

    Raises
    ------
    BundleError: the bundle has no torch weights; or its U-Net takes a sequence that the profile's does not, or is of
        another size.
    """
    bundle = Bundle(folder)
    net, _ = load_weights(bundle)
    known, wanted = bundle.manifest.input.channels, profile.input.channels
    if not set(known) <= set(wanted):
        raise BundleError(
            f"{folder}: its U-Net takes {', '.join(known)}, and not {', '.join(wanted)}; give "
            f"--channels {','.join(known)}, or fine-tune another bundle"
        )
    if (net.width, net.norm) != (profile.width, profile.norm):
        raise BundleError(
            f"{folder}: its U-Net has width {net.width}{' and batch norm' if net.norm else ''}, the profile needs "
            f"{profile.width}{' and batch norm' if profile.norm else ''}; choose the profile it was trained with"
        )
    sources = [known.index(channel) if channel in known else None for channel in wanted]
    return _with_sequences(net, sources)


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
