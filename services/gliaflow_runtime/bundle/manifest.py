"""``manifest.json``: the contents of a model bundle and the SHA-256 of each of its files.

A bundle is untrusted until its digests match. Each file is read once, checked, and used from memory, so that the
checked bytes are the ones that run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from gliaflow_proto import SEQUENCES
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from gliaflow_runtime.errors import UsageError

MANIFEST = "manifest.json"
TAPS = ("enc5", "enc4", "dec1", "dec2", "dec3")
"""The outputs of the U-Net where features can be read. ``enc5`` is the paper's."""
MANIFEST_SCHEMA = "gliaflow-bundle/1"
MAX_MANIFEST_BYTES = 2**20
MAX_MODEL_BYTES = 2 * 2**30

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=2048)]
Millimetres = Annotated[float, Field(ge=0.05, le=100)]
Channels = Annotated[int, Field(ge=1, le=65536)]
Channel = Literal["flair", "t1", "t1ce", "t2"]  # SEQUENCES
Statistic = Literal["filled", "noise", "flat", "bright_fluid", "bright_lines", "dark_cortex"]
"""How a scan looks: see ``gliaflow_preprocessor.typical``."""


class BundleError(UsageError):
    """The bundle cannot be used. The text names the file and the field."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StepSpec(Strict):
    """A preprocessing step: its name and options (see ``gliaflow_plugins.steps``)."""

    name: str
    options: dict[str, Any] = {}


class InputSpec(Strict):
    """The U-Net's input: in-plane size in pixels, spacing in mm, mean and standard deviation of the pixels; sequences.

    All channels are scaled and normalised alike, each by itself. The fields of several sequences are written only if
    there are several, since earlier versions do not know them.
    """

    size: tuple[Side, Side] = (240, 240)
    spacing: tuple[Millimetres, Millimetres] = (1.0, 1.0)
    mean: float = Field(default=0.0, ge=-1e4, le=1e4)
    std: float = Field(default=1.0, ge=1e-4, le=1e4)
    steps: tuple[StepSpec, ...] = Field(default=(), description="preprocessing steps, in order, of each sequence")
    channels: tuple[Channel, ...] = Field(default=("flair",), description="sequences, in the order of SEQUENCES")
    optional: tuple[Channel, ...] = Field(
        default=(), description="channels that a scan may lack: they are 0 (air) then, as in a part of the training"
    )
    scale: Literal["air 0, median of the head 1"] = Field(
        default="air 0, median of the head 1", description="of each channel's intensities, before mean and std"
    )

    @field_validator("channels")
    @classmethod
    def _begin_with_flair(cls, channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
        if channels[:1] != SEQUENCES[:1] or channels != tuple(name for name in SEQUENCES if name in channels):
            raise ValueError(f"expected flair, and then some of {', '.join(SEQUENCES[1:])} in this order")
        return channels

    @field_validator("optional")
    @classmethod
    def _are_channels(cls, optional: tuple[Channel, ...], info: ValidationInfo) -> tuple[Channel, ...]:
        if not set(optional) <= {*info.data.get("channels", optional)} - {"flair"}:
            raise ValueError("expected some of the channels, and not flair")
        return optional

    @model_serializer(mode="wrap")
    def _without_new_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: fields[name] for name, _ in self.__repr_args__() if name in fields}

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """So that the work folder of a run of an earlier version, which has this text, is that of the same run."""
        several = ("channels", "optional", "scale") if self.channels == ("flair",) else ()
        return [(name, value) for name, value in self.__dict__.items() if name not in several]


class GeneratorSpec(Strict):
    """A generator in a bundle: the files ``generator-NAME.onnx`` and ``critic-NAME.onnx``."""

    options: dict[str, Any]
    noise: int = Field(gt=0, le=65536, description="length of the noise vector z")


class Quantization(Strict):
    """How ``gliaflow quantize`` made the U-Net int8, and what that changed in the answers."""

    source: str = Field(description="id of the bundle in fp32")
    source_sha256: Digest = Field(description="digest of its manifest")
    method: dict[str, str]
    calibration: dict[str, Any]
    changes: dict[str, dict[str, Any]] = Field(default={}, description="by what it was checked on")
    cohort_unchecked: str = Field(default="", description="why nothing was checked on the cohort; empty: it was")
    objections: tuple[str, ...] = Field(default=(), description="of the check, which --allow accepted")
    source_metrics: dict[str, Any] = Field(description="scores of the bundle in fp32; this one was not scored")
    source_versions: dict[str, str] = Field(description="that the networks were fitted with")


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
    cropped: bool = Field(default=False, description="whether features are cropped to the predicted mask")
    min_tumour_ml: float = Field(default=0.0, ge=0, le=1000, description="a smaller spot in a mask is not a tumour")
    min_tumour_share: float = Field(default=0.0, ge=0, lt=1, description="nor one below this share of the largest part")
    trained_on: Literal["", "phantoms", "patients"] = Field(default="", description="what the U-Net learned from")
    typical: dict[Statistic, float] = Field(default={}, description="limits; a scan beyond one gets a warning")
    generator: str = Field(description="the generator that is served by default; empty: there is none")
    generators: dict[Name, GeneratorSpec] = Field(max_length=64)
    quantization: Quantization | None = Field(default=None, description="None: the U-Net is fp32")
    training: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]

    @field_validator("files")
    @classmethod
    def _names_differ(cls, files: dict[str, str]) -> dict[str, str]:
        if len({name.casefold() for name in files}) < len(files):
            raise ValueError("two names differ only in upper and lower case")
        return files


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest in ``raw``. Raises BundleError, with ``where`` it comes from, if it is not a valid one."""
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(f"{where}: {_first(error)}") from None


def check_digest(where: str, actual: str, expected: str) -> None:
    """Raise BundleError if the SHA-256 of a file differs from the manifest's."""
    if actual != expected:
        raise BundleError(
            f"{where}: its sha256 is {actual[:12]}…, the manifest says {expected[:12]}…: "
            "the file was changed or cut short; copy the bundle again"
        )


def _first(error: ValidationError) -> str:
    """The first error of a manifest. A different schema version comes first, since it explains the others."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["loc"] == ("schema",)), errors[0])
    field = ".".join(str(part)[:80] for part in first["loc"]) or "the file"
    if first["type"] == "literal_error" and field == "schema":
        return f"schema: {str(first['input'])[:40]!r}, but this gliaflow reads {MANIFEST_SCHEMA!r}: use such a bundle"
    if first["type"] == "extra_forbidden":
        return f"{field}: this gliaflow does not know this field: is the bundle of a later version? Upgrade"
    return f"{field}: {first['msg'][:300]}"
