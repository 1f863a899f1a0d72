"""A bundle whose digests were checked: from a folder, from a URL, or the one that ships."""

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
    parse_manifest,
)
from gliaflow_runtime.files import UnsafeFile, read_within


class Bundle:
    """A bundle whose digests were checked.

    Parameters
    ----------
    folder: where ``manifest.json`` and the ONNX files are.
    tap: where features are read from; by default where generator and classifier of this bundle expect them.
    sha256: of the manifest that is expected, and so of all that it vouches for; empty: any.

    Raises
    ------
    BundleError: a file is missing, too large, outside the folder, or not the one that the manifest vouches for.
    """

    def __init__(self, folder: Path, tap: str = "", sha256: str = "") -> None:
        self.folder = folder
        raw = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
        found = hashlib.sha256(raw).hexdigest()
        if sha256 and found != sha256:
            raise BundleError(
                f"{folder / MANIFEST}: its sha256 is {found}, but bundle_sha256 pins {sha256}: another bundle than the "
                "one that was approved; put that one back, or pin this one"
            )
        self.manifest = parse_manifest(raw, str(folder / MANIFEST))
        self.tap = tap or self.manifest.tap
        for name in (self.manifest.tap, self.tap):
            if name not in self.manifest.taps:
                there_is = ", ".join(self.manifest.taps)[:300]
                raise BundleError(f"{folder / MANIFEST}: tap: {name[:80]!r} is not one of {there_is}")
        self.id = f"{self.manifest.name}@{found[:12]}"

    def model(self, network: str) -> bytes:
        """The bytes of one network's ONNX file, whose digest matched. Raises BundleError as the class does."""
        return self.read(f"{network}.onnx")

    def read(self, name: str) -> bytes:
        """The bytes of one of the manifest's files, whose digest matched.

        Raises
        ------
        BundleError: as for the class.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            what = Path(name).stem
            raise BundleError(f"{self.folder / MANIFEST}: files: {name} is missing, so this bundle has no {what}")
        data = _read(self.folder, name, MAX_MODEL_BYTES)
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise BundleError(
                f"{self.folder / name}: its sha256 is {found[:12]}…, the manifest says {expected[:12]}…: "
                "the file was changed or cut short; copy the bundle again"
            )
        return data

    @property
    def tap_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the features: of the tap, or of a window half as high and wide where they are cropped."""
        channels, height, width = self.manifest.taps[self.tap]
        return (channels, height // 2, width // 2) if self.manifest.cropped else (channels, height, width)

    def require_own_tap(self, what: str) -> None:
        """Raise BundleError where features come from another tap than ``what`` was fitted on."""
        if self.tap != self.manifest.tap:
            raise BundleError(f"tap: {what} of {self.id} was fitted on {self.manifest.tap}, not on {self.tap}")

    def require_generator(self, name: str) -> str:
        """``name``, or the bundle's own where that is empty. Raises BundleError: there is no such generator."""
        chosen = name or self.manifest.generator
        if chosen not in self.manifest.generators:
            there_is = ", ".join(self.manifest.generators)[:300] or "none"
            raise BundleError(f"generator: {self.id} has no {chosen!r}; there is: {there_is}")
        return chosen

    def slices_per_part(self, max_bytes: int) -> int:
        """How many slices fit a message: as many as leave its fp16 features and masks within ``max_bytes``, 1–16."""
        channels, height, width = self.tap_shape
        rows, columns = self.manifest.input.size
        each = 2 * channels * height * width + rows * columns
        return max(1, min(16, (max_bytes - 64 * 2**10) // each))


def load_bundle(where: str | Path | None, tap: str = "", sha256: str = "", state: Path = Path()) -> Bundle:
    """The bundle in a folder or behind a URL, which is kept in ``state``; or the demonstration that ships.

    Raises
    ------
    BundleError: as for ``Bundle``; or it cannot be fetched.
    """
    if where is None:
        folder = demo_bundle()
    elif "://" in str(where):
        from gliaflow_runtime.bundle.download import fetch_bundle  # which loads fsspec

        folder = fetch_bundle(str(where), state / "fetched")
    else:
        folder = Path(where)
    return Bundle(folder, tap, sha256)


def demo_bundle() -> Path:
    """Where the shipped demonstration bundle lies. It is trained on phantoms: not a clinical model."""
    return Path(str(files("gliaflow_runtime") / "demo_bundle"))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> Bundle:
    """Complete a bundle: add the digests of the networks in ``folder``, write the manifest, and load it back."""
    networks = sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".safetensors"))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in networks}
    checked = Manifest.model_validate({**manifest, "schema": MANIFEST_SCHEMA, "files": digests})
    text = json.dumps(checked.model_dump(mode="json", by_alias=True), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
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
