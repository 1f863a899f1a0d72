"""The steps of a training, which ``train`` and ``evaluate`` share: U-Net, features, generator, classifier.

Each leaves what it made in a folder of its own and does nothing where that lies there, so that a run that was cut
off goes on with the step it was at (the U-Net and the generators with the epoch).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gliaflow_extractor.extractor import Extractor
from gliaflow_extractor.extractor import UNet as ServedUNet
from gliaflow_plugins.contracts import Fitted, PluginError
from gliaflow_plugins.networks.export import export
from gliaflow_proto import CLASSES, MAX_MESSAGE_BYTES
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.recorder import Recorder
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import load, save_file
from torch import Tensor, nn

from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.slices import CutScan, Slices
from gliaflow_trainer.stream import stream
from gliaflow_trainer.unet import TAPS, UNet, UNetOutput
from gliaflow_trainer.unet_fit import Augment, fit_unet, measure

WEIGHTS = "unet.safetensors"  # the U-Net as torch has it, for ``--init``
FP16 = float(np.finfo(np.float16).max)
LIBRARIES = ("gliaflow", "torch", "onnx", "onnxruntime", "numpy", "scipy", "nibabel", "scikit-learn")


def same_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` the work folder of the run with these settings, or check that it is.

    Raises
    ------
    PluginError: it holds the work of a run with other settings.
    """
    file = folder / "run.json"
    text = json.dumps(settings, indent=1, sort_keys=True, default=str)
    if file.exists():
        before = file.read_text(encoding="utf-8")
        if before != text:
            known = json.loads(before)
            differ = sorted(k for k in {*known, *settings} if known.get(k) != json.loads(text).get(k))
            raise PluginError(
                f"{folder}: holds the work of a run that differs in {', '.join(differ)}; remove it, or take another out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def fit_unet_bundle(
    slices: Slices,
    split: Mapping[str, str],
    profile: Profile,
    folder: Path,
    *,
    name: str,
    seed: int,
    device: str,
    bar: Progress,
    augment: Augment | None = None,
    start: UNet | None = None,
) -> Bundle:
    """Fit the U-Net on the patients whose part is ``train`` and write a bundle that holds it alone.

    Parameters
    ----------
    split: each patient's part; those of ``validation`` choose the epoch, others are only measured on.
    start: fine-tune this network (``initial``) instead of fitting a new one.

    Returns
    -------
    The bundle. ``metrics["unet"]`` has, for each part, the soft-dice loss, hard Dice and IoU over all its pixels
    (Eq. 3–5, the paper's Table 2), ``training["history"]["unet"]`` the figures of each epoch.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if (folder / "manifest.json").exists():
        if not first:
            raise SystemExit(0)
        return Bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {part: slices.of([p for p in split if split[p] == part]) for part in dict.fromkeys(split.values())}
    none = np.zeros(0, dtype=np.int64)
    options = {**profile.unet, **(profile.fine_tune if start is not None else {})}
    task = bar.add_task("U-Net", total=options["epochs"])
    unet, history = fit_unet(
        slices.images,
        slices.masks,
        numbers["train"],
        numbers.get("validation", none),
        width=profile.width,
        norm=profile.norm,
        augment=augment,
        start=start,
        seed=seed,
        device=device,
        checkpoint=folder / "unet.checkpoint",
        progress=shown(bar, task),
        **options,
    )
    bar.remove_task(task)
    if not first:
        raise SystemExit(0)  # the rest is one process's work
    measures = {part: measure(unet, slices.images, slices.masks, some, device) for part, some in numbers.items()}
    example = torch.from_numpy(np.stack([slices.images[i] for i in numbers["train"][:5]]).astype(np.float32))[:, None]
    served = _Mirrored(unet) if profile.mirror else unet
    export(served, [example], folder / "unet.onnx", ["image"], UNetOutput._fields)
    _save_weights(unet, profile.mirror, folder / WEIGHTS)
    with torch.no_grad():
        shapes = {tap: list(getattr(unet(example), tap).shape[1:]) for tap in TAPS}
    manifest = {
        "name": name,
        "notice": "A U-Net alone: it segments and gives features, and grades nothing.",
        "input": profile.input.model_dump(),
        "classes": list(CLASSES),
        "taps": shapes,
        "tap": profile.tap,
        "cropped": profile.cropped,
        "generator": "",
        "generators": {},
        "training": {"history": {"unet": history}},
        "metrics": {"unet": measures},
        "versions": versions(),
    }
    bundle = write_manifest(folder, manifest)
    (folder / "unet.checkpoint").unlink(missing_ok=True)
    return bundle


def blank_bundle(profile: Profile, folder: Path) -> Bundle:
    """A bundle without networks: all that the preprocessor needs."""
    rows, columns = profile.input.size
    manifest = {
        "name": "blank",
        "notice": "No networks.",
        "input": profile.input.model_dump(),
        "classes": list(CLASSES),
        "taps": {"enc5": [16 * profile.width, rows // 16, columns // 16]},
        "tap": "enc5",
        "generator": "",
        "generators": {},
        "training": {},
        "metrics": {},
        "versions": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    return write_manifest(folder, manifest)


def extract(
    scans: Sequence[CutScan],
    bundle: Bundle,
    folder: Path,
    *,
    cropped: bool,
    device: str,
    threads: int = 0,
    bar: Progress,
) -> FeatureStore:
    """Send slices through the extractor and record the features of every slice in ``folder``.

    Parameters
    ----------
    bundle: with the tap to read. cropped: to the tumour that its U-Net finds.
    """
    done = folder / "complete"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        task = bar.add_task("features", total=len(scans))
        unet = ServedUNet(bundle, batch=16, cropped=cropped, device=device, threads=threads)
        per_part = bundle.slices_per_part(MAX_MESSAGE_BYTES)
        if bundle.manifest.cropped and not cropped:
            per_part = max(1, per_part // 4)  # whole maps are four times as large
        failed: list[str] = []

        def answered(scan: str, reason: str | None) -> None:
            bar.advance(task)
            if reason is not None:
                failed.append(f"{scan}: {reason}")

        messages = (message for scan in scans for message in scan.messages(per_part))
        stream(messages, [lambda _: Extractor(bundle, unet)], Recorder(folder, bundle.manifest.classes), answered)
        bar.remove_task(task)
        if failed:  # slices that were fit to be cut are fit for this: it is our fault, or the disk's
            raise RuntimeError(f"features of {len(failed)} scans could not be recorded, the first: {failed[0]}")
        done.touch()
    return FeatureStore(folder)


def initial(folder: Path, profile: Profile) -> UNet:
    """The U-Net of a bundle, to fine-tune.

    Raises
    ------
    BundleError: the bundle has no torch weights, or its U-Net is of another size than the profile's.
    """
    net = load_unet(Bundle(folder))
    if (net.width, net.norm) != (profile.width, profile.norm):
        raise BundleError(
            f"{folder}: its U-Net has width {net.width}{' and batch norm' if net.norm else ''}, the profile asks for "
            f"{profile.width}{' and batch norm' if profile.norm else ''}; choose the profile it was trained with"
        )
    return net


def load_unet(bundle: Bundle) -> UNet:
    """A bundle's U-Net, in torch. Raises BundleError: it has no torch weights."""
    return _loaded(bundle)[0]


def load_served(bundle: Bundle) -> nn.Module:
    """A bundle's U-Net as it is served, with the mirror image's mask where that counts too. Raises as ``load_unet``."""
    unet, mirror = _loaded(bundle)
    return _Mirrored(unet) if mirror else unet


def _loaded(bundle: Bundle) -> tuple[UNet, bool]:
    state = load(bundle.read(WEIGHTS))
    mirror = bool(state.pop("mirror", False))
    net = UNet(int(state.pop("width")), bool(state.pop("norm")))
    net.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return net, mirror


def shown(bar: Progress, task: Any) -> Callable[[int, int, Mapping[str, float]], None]:
    """A ``progress`` that moves ``task``; where there is no terminal, it prints a line an epoch."""

    def show(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        bar.update(task, completed=epoch, total=epochs)
        if not bar.console.is_terminal and not bar.disable:
            told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            name = next(shown.description for shown in bar.tasks if shown.id == task)
            bar.console.print(f"{name} {epoch}/{epochs}: {told}", soft_wrap=True)

    return show


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a result depends on."""
    return {library: version(library) for library in LIBRARIES} | {"python": platform.python_version()}


def synthetic(
    fitted: Fitted, label: int, count: int, seed: int, judged: bool = True
) -> tuple[NDArray[np.float32], float]:
    """``count`` features [count, C, H, W] of one class that the critic puts into it, and the share that it does.

    As in serving, and as in the paper: "only those whose class the discriminator predicts right". Fewer come where
    the critic accepts less than one in twenty. Where it is not asked (``judged``), all are taken. Empty ones are never
    taken: a slice without tumour is not graded.
    """
    chance = torch.Generator().manual_seed(seed)
    kept: list[NDArray[np.float32]] = []
    drawn = accepted = 0
    with torch.inference_mode():
        while (accepted < count or not kept) and drawn < 20 * count + 256:
            z = torch.randn(64, fitted.nz, generator=chance)
            features = fitted.generator(z, torch.full((64,), label))
            right = fitted.critic(features)[1].argmax(1) == label if judged else torch.ones(64, dtype=torch.bool)
            right &= features.isfinite().flatten(1).all(1)  # a generator that diverged
            right &= features.flatten(1).any(1)
            features = features.clamp(-FP16, FP16)  # as the store, and messages, hold them
            drawn, accepted = drawn + 64, accepted + int(right.sum())
            kept.append(features[right].numpy())
    return np.concatenate(kept)[:count], accepted / max(1, drawn)


class _Mirrored(nn.Module):
    """A U-Net whose mask is the mean of the slice's and of its mirror image's (left–right is along the rows)."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor) -> UNetOutput:
        plain: UNetOutput = self.unet(image)
        mirrored = torch.sigmoid(self.unet.logits(image.flip(2))).flip(2)
        return plain._replace(mask=(plain.mask + mirrored) / 2)


def _save_weights(unet: UNet, mirror: bool, path: Path) -> None:
    """Kernels as fp16, the rest as it is: half the size, and fine-tuning does not notice."""
    state = {key: value.half() if value.ndim > 1 else value for key, value in unet.state_dict().items()}
    state |= {"width": torch.tensor(unet.width), "norm": torch.tensor(unet.norm), "mirror": torch.tensor(mirror)}
    part = path.with_name(f".part-{path.name}")
    save_file({key: value.contiguous() for key, value in state.items()}, part)
    part.replace(path)
