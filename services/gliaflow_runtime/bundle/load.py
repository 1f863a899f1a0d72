"""Load a bundle from a folder, a URL or the package, and check its digests."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from gliaflow_runtime.bundle.manifest import (
    MANIFEST,
    MANIFEST_SCHEMA,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_BYTES,
    BundleError,
    Manifest,
    check_digest,
    parse_manifest,
)
from gliaflow_runtime.files import UnsafeFile, read_within, write_whole


class Bundle:
    """A bundle. Each file's digest is checked when the file is read.

    Parameters
    ----------
    folder: has ``manifest.json`` and the ONNX files.
    tap: where features are read; by default the tap on which the bundle's generators and classifier were fitted.
    sha256: the digest that the manifest must have (the manifest has the digests of all files); empty: any.

    Raises
    ------
    BundleError: a file is missing, too large, outside the folder, or has another digest than in the manifest.
    """

    def __init__(self, folder: Path, tap: str = "", sha256: str = "") -> None:
        self.folder = folder
        raw = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
        digest = hashlib.sha256(raw).hexdigest()
        if sha256 and digest != sha256:
            raise BundleError(
                f"{folder / MANIFEST}: its sha256 is {digest}, but bundle_sha256 pins {sha256}: this is not the "
                "approved bundle; restore that one, or pin this one"
            )
        self.sha256 = digest
        self.manifest = parse_manifest(raw, str(folder / MANIFEST))
        self.tap = tap or self.manifest.tap
        for name in (self.manifest.tap, self.tap):
            if name not in self.manifest.taps:
                taps = ", ".join(self.manifest.taps)[:300]
                raise BundleError(f"{folder / MANIFEST}: tap: {name[:80]!r} is not one of {taps}")
        self.id = f"{self.manifest.name}@{digest[:12]}"

    def model(self, network: str) -> bytes:
        """The ONNX file of a network, with its digest checked. Raises BundleError as the class does."""
        return self.read(f"{network}.onnx")

    def read(self, name: str) -> bytes:
        """The bytes of a file of the manifest, with its digest checked. Raises BundleError as the class does."""
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(
                f"{self.folder / MANIFEST}: files: {name} is missing, so this bundle has no {Path(name).stem}"
            )
        data = _read(self.folder, name, MAX_MODEL_BYTES)
        check_digest(str(self.folder / name), hashlib.sha256(data).hexdigest(), expected)
        return data

    @property
    def tap_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the features that the bundle's networks were fitted on."""
        return self.features_shape(self.manifest.cropped)

    def features_shape(self, cropped: bool) -> tuple[int, int, int]:
        """[C, H, W] of the features: of the tap, or half its height and width if features are cropped."""
        channels, height, width = self.manifest.taps[self.tap]
        return (channels, height // 2, width // 2) if cropped else (channels, height, width)

    @property
    def trained_on(self) -> str:
        """What the U-Net learned from: ``phantoms``, ``patients``, or nothing if the manifest does not say it."""
        cohort = self.manifest.training.get("cohort")
        drawn = isinstance(cohort, dict) and "made_by" in cohort  # as manifests without the field say it
        return self.manifest.trained_on or ("phantoms" if drawn else "")

    @property
    def phantoms(self) -> list[dict[str, Any]]:
        """The phantoms that it, and the bundles that its U-Net comes from, learned from, as their folders say."""
        training = self.manifest.training
        cohort, earlier = training.get("cohort"), training.get("phantoms")
        own = cohort.get("made_by") if isinstance(cohort, dict) else None
        return [each for each in [own, *(earlier if isinstance(earlier, list) else [])] if isinstance(each, dict)]

    def require_own_tap(self, network: str) -> None:
        """Raise BundleError if features come from another tap than ``network`` was fitted on."""
        if self.tap != self.manifest.tap:
            raise BundleError(f"tap: {network} of {self.id} was fitted on {self.manifest.tap}, not on {self.tap}")

    def require_generator(self, name: str) -> str:
        """``name``, or the bundle's own generator if empty. Raises BundleError if the bundle does not have it."""
        chosen = name or self.manifest.generator
        if chosen not in self.manifest.generators:
            names = ", ".join(self.manifest.generators)[:300] or "none"
            raise BundleError(f"generator: {self.id} has no {chosen!r}; there is: {names}")
        return chosen

    def slices_per_part(self, max_bytes: int) -> int:
        """How many slices (1–16) fit into a message: fp16 slices, or features and masks, within ``max_bytes``."""
        channels, height, width = self.tap_shape
        rows, columns = self.manifest.input.size
        each = max(2 * channels * height * width, (2 * len(self.manifest.input.channels) - 1) * rows * columns)
        each += rows * columns
        return max(1, min(16, (max_bytes - 64 * 2**10) // each))


def load_bundle(
    where: str | Path | None, tap: str = "", sha256: str = "", state: Path = Path(), bundles: Path | None = None
) -> Bundle:
    """The bundle that ``find_bundle`` finds, or the one at a URL, which is downloaded into ``state``.

    Raises BundleError as ``Bundle`` and ``find_bundle`` do, or if the download fails.
    """
    if "://" in str(where):
        from gliaflow_runtime.bundle.download import fetch_bundle  # it loads fsspec

        folder = fetch_bundle(str(where), state / "fetched")
    else:
        folder = find_bundle(where, bundles)
    return Bundle(folder, tap, sha256)


def find_bundle(where: str | Path | None, bundles: Path | None = None) -> Path:
    """The folder of a bundle. None: the shipped demonstration.

    Parameters
    ----------
    where: a path; or a name: of a folder here, of a folder in ``bundles``, or ``demo``, the shipped demonstration.

    Raises
    ------
    BundleError: no bundle has that name, or two have it.
    """
    if where is None:
        return demo_bundle()
    name = str(where)
    if Path(name).name != name:  # a path
        return Path(name)
    places = [Path(name), *([bundles / name] if bundles else []), *([demo_bundle()] if name == "demo" else [])]
    known = [folder for folder in places if (folder / MANIFEST).exists()]
    if not known:
        others = sorted(path.parent.name for path in bundles.glob(f"*/{MANIFEST}")) if bundles else []
        inside = f" or in {bundles} (which has {', '.join(others[:20]) or 'no bundle'})" if bundles else ""
        raise BundleError(
            f"no bundle {name!r}: there is no {name}/{MANIFEST} in {Path.cwd()}{inside}; name a folder that `gliaflow "
            "train` wrote, or demo, the shipped demonstration"
        )
    if len({os.path.realpath(folder) for folder in known}) > 1:
        paths = " or ".join(str(folder.absolute()) for folder in known)
        raise BundleError(f"bundle {name!r} may be {paths}: write the path of the one that you mean")
    return known[0]


def demo_bundle() -> Path:
    """The folder of the shipped demonstration bundle. It was trained on phantoms and is not a clinical model."""
    return Path(str(files("gliaflow_runtime") / "demo_bundle"))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> Bundle:
    """Write the manifest of the networks in ``folder``, with their digests, and load the bundle."""
    networks = sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".safetensors"))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in networks}
    checked = Manifest.model_validate({**manifest, "schema": MANIFEST_SCHEMA, "files": digests})
    fp32 = checked.quantization is None  # then without the field, which earlier versions do not know
    dumped = checked.model_dump(mode="json", by_alias=True, exclude={"quantization"} if fp32 else None)
    text = json.dumps(dumped, indent=2) + "\n"
    write_whole(folder / MANIFEST, text)
    return Bundle(folder)


def _read(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    try:
        if Path(os.path.realpath(path)).parent != Path(os.path.realpath(folder)):
            raise BundleError(f"{path}: leads out of the bundle's folder")
        return read_within(folder, path, limit)
    except UnsafeFile as error:
        raise BundleError(f"{path}: {error}") from None
    except FileNotFoundError:
        hint = "" if name != MANIFEST else " (a bundle is a folder that `gliaflow train` wrote)"
        raise BundleError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
