"""A bundle that holds a U-Net alone: fitted, written with its torch weights, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gliaflow_plugins.networks.export import export
from gliaflow_proto import CLASSES
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import MANIFEST, TAPS, BundleError
from gliaflow_runtime.files import whole_file
from safetensors.torch import load, save_file
from torch import Tensor, nn

from gliaflow_trainer.distributed import is_first
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.run_folder import versions
from gliaflow_trainer.slices import Slices
from gliaflow_trainer.unet import UNet, UNetOutput
from gliaflow_trainer.unet_fit import Augment, UNetOptions, fit_unet, measure

WEIGHTS = "unet.safetensors"  # for ``--init``: ONNX cannot be fine-tuned


@dataclass(frozen=True)
class UNetRecipe:
    """How a bundle's U-Net is made.

    Parameters
    ----------
    name: of the bundle.
    augment: applied to each training sample.
    start: the network to fine-tune (``fine_tuning``); None: a new one is fitted.
    """

    name: str
    profile: Profile
    augment: Augment | None = None
    start: UNet | None = None

    @property
    def options(self) -> UNetOptions:
        profile = self.profile
        fine_tune = profile.fine_tune if self.start is not None else {}
        return UNetOptions(profile.width, profile.norm, **{**profile.unet, **fine_tune})


def fit_unet_bundle(
    slices: Slices, split: Mapping[str, str], recipe: UNetRecipe, folder: Path, context: RunContext
) -> Bundle | None:
    """Fit the U-Net on the patients of the part ``train`` and write a bundle with it to ``folder``.

    A bundle that is already there is returned as it is.

    Parameters
    ----------
    split: each patient's part. The part ``validation`` chooses the epoch. The scores of all parts are reported.

    Returns
    -------
    The bundle; None in torchrun's other processes, whose share of the work ends here. ``metrics["unet"]`` has, for each
    part, the soft-dice loss, hard Dice and IoU over all its pixels (Eq. 3–5, the paper's Table 2),
    ``training["history"]["unet"]`` the figures of each epoch.
    """
    if (folder / MANIFEST).exists():
        return Bundle(folder) if is_first() else None
    folder.mkdir(parents=True, exist_ok=True)
    profile, options, checkpoint = recipe.profile, recipe.options, folder / "unet.checkpoint"
    numbers = {part: slices.of([p for p in split if split[p] == part]) for part in dict.fromkeys(split.values())}
    train, validation = numbers["train"], numbers.get("validation", np.zeros(0, dtype=np.int64))
    with context.fit("U-Net", options.epochs, checkpoint) as fit:
        unet, history = fit_unet(slices, train, validation, options, fit, augment=recipe.augment, start=recipe.start)
    if not is_first():
        return None
    scores = {part: measure(unet, slices, of_part, context.device) for part, of_part in numbers.items()}
    example = torch.from_numpy(np.stack([slices.images[i] for i in train[:5]]).astype(np.float32))
    served = _Mirrored(unet) if profile.mirror else unet
    export(served, [example], folder / "unet.onnx", ["image"], UNetOutput._fields)
    _save_weights(unet, profile.mirror, folder / WEIGHTS)
    with torch.no_grad():
        output = unet(example)
    manifest = {
        "name": recipe.name,
        "notice": "A U-Net alone: it segments and gives features, and grades nothing.",
        "input": profile.input.model_dump(),
        "classes": list(CLASSES),
        "taps": {tap: list(getattr(output, tap).shape[1:]) for tap in TAPS},
        "tap": profile.tap,
        "cropped": profile.cropped,
        "generator": "",
        "generators": {},
        "training": {"history": {"unet": history}},
        "metrics": {"unet": scores},
        "versions": versions(),
    }
    bundle = write_manifest(folder, manifest)
    checkpoint.unlink(missing_ok=True)
    return bundle


def load_served_unet(bundle: Bundle) -> nn.Module:
    """The torch module of which ``unet.onnx`` is the export. Raises BundleError: the bundle has no torch weights."""
    unet, mirror = load_weights(bundle)
    return _Mirrored(unet) if mirror else unet


class _Mirrored(nn.Module):
    """A U-Net whose mask is the mean of the slice's and its mirror image's (left–right is along the rows)."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor) -> UNetOutput:
        plain: UNetOutput = self.unet(image)
        mirrored = torch.sigmoid(self.unet.logit_and_taps(image.flip(2))[0]).flip(2)
        return plain._replace(mask=(plain.mask + mirrored) / 2)


def _save_weights(unet: UNet, mirror: bool, path: Path) -> None:
    """Kernels are kept as fp16: half the size, and no loss for fine-tuning."""
    state = {key: value.half() if value.ndim == 4 else value for key, value in unet.state_dict().items()}
    state |= {"width": torch.tensor(unet.width), "norm": torch.tensor(unet.norm), "mirror": torch.tensor(mirror)}
    with whole_file(path, sweep=True) as part:
        save_file({key: value.contiguous() for key, value in state.items()}, part)


def load_weights(bundle: Bundle) -> tuple[UNet, bool]:
    """The network, and whether it is served with the mirror image's mask. Raises BundleError: no torch weights."""
    if (made := bundle.manifest.quantization) is not None:
        raise BundleError(
            f"{bundle.folder}: its U-Net is int8, and only {made.source}, from which it was made, has weights in "
            "torch: name that bundle"
        )
    state = load(bundle.read(WEIGHTS))
    mirror = bool(state.pop("mirror", False))
    channels = bundle.manifest.input.channels
    net = UNet(int(state.pop("width")), bool(state.pop("norm")), [0.0] * len(channels), [1.0] * len(channels))
    net.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return net, mirror
