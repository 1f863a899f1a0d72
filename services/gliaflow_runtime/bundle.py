"""The model bundle: a folder with ``manifest.json`` and the ONNX files that it vouches for.

A bundle is untrusted until its digests match. Files are read once, checked, and kept as bytes, so that what was
checked is what is run.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gliaflow_runtime.files import UnsafeFile, read_within

MANIFEST = "manifest.json"
CLASSES = ("HGG", "LGG")  # of every bundle, in the order of a critic's logits; a classifier's logit is of the first
MANIFEST_SCHEMA = "gliaflow-bundle/1"
MAX_MANIFEST_BYTES = 2**20
MAX_MODEL_BYTES = 2 * 2**30

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=2048)]
Millimetres = Annotated[float, Field(ge=0.05, le=100)]
Channels = Annotated[int, Field(ge=1, le=65536)]


class BundleError(ValueError):
    """A bundle that cannot be used. The text names the file and the field."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StepSpec(Strict):
    """A preprocessing step by its name, with its options; see ``gliaflow_plugins.steps``."""

    name: str
    options: dict[str, Any] = {}


class InputSpec(Strict):
    """What the U-Net takes: in-plane size in pixels, spacing in mm, and the statistics that normalise a pixel."""

    size: tuple[Side, Side] = (240, 240)
    spacing: tuple[Millimetres, Millimetres] = (1.0, 1.0)
    mean: float = Field(default=0.0, ge=-1e4, le=1e4)
    std: float = Field(default=1.0, ge=1e-4, le=1e4)
    steps: tuple[StepSpec, ...] = Field(default=(), description="what is done to a scan before, in this order")


class GeneratorSpec(Strict):
    """A generator in a bundle: the files ``generator-NAME.onnx`` and ``critic-NAME.onnx``."""

    options: dict[str, Any]
    noise: int = Field(gt=0, le=65536, description="length of the noise vector z")


class Manifest(Strict):
    """``manifest.json``. ``files`` gives the SHA-256 of each file; ``taps`` the shape [C, H, W] of each tap."""

    schema_: Literal["gliaflow-bundle/1"] = Field(alias="schema")
    name: Name
    notice: str
    files: dict[FileName, Digest] = Field(max_length=256)
    input: InputSpec
    classes: tuple[Literal["HGG"], Literal["LGG"]]  # CLASSES
    taps: dict[Name, tuple[Channels, Side, Side]] = Field(max_length=64)
    tap: str
    cropped: bool = Field(default=False, description="whether features are cropped to the tumour that the U-Net found")
    generator: str = Field(description="the one that is served unless another is asked for; empty where there is none")
    generators: dict[Name, GeneratorSpec] = Field(max_length=64)
    training: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]

    @field_validator("files")
    @classmethod
    def _names_differ(cls, files: dict[str, str]) -> dict[str, str]:
        if len({name.casefold() for name in files}) < len(files):
            raise ValueError("two names are the same where case does not count")
        return files


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
        from gliaflow_runtime.remote_bundle import fetch_bundle  # which loads fsspec

        folder = fetch_bundle(str(where), state / "fetched")
    else:
        folder = Path(where)
    return Bundle(folder, tap, sha256)


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest in ``raw``. Raises BundleError, which says ``where`` it is from, when it is none."""
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(f"{where}: {_first(error)}") from None


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


def _first(error: ValidationError) -> str:
    """The first thing that is wrong with a manifest; that it is of another version before all else."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["loc"] == ("schema",)), errors[0])
    field = ".".join(str(part)[:80] for part in first["loc"]) or "the file"
    if first["type"] == "literal_error" and field == "schema":
        found = str(first["input"])[:40]
        return f"schema: {found!r}, but this gliaflow reads {MANIFEST_SCHEMA!r}: the bundle is of another version of it"
    if first["type"] == "extra_forbidden":
        return f"{field}: no field that this gliaflow knows: is the bundle of a later version? Upgrade, then serve it"
    return f"{field}: {first['msg'][:300]}"


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
