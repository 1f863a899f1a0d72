"""Settings of all commands: flags override ``GLIAFLOW_*`` in the environment, which overrides TOML files.

The file of the working folder overrides the user's own file. It may have come with somebody's scans, so it may set
only what is in WORKING_FOLDER.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from gliaflow_proto.messages import MAX_SHARDS, SEQUENCES
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gliaflow_runtime.broker.url import AMQP, HTTP, parse_server_url
from gliaflow_runtime.errors import UsageError

CONFIG = "gliaflow.toml"
MAX_CONFIG_BYTES = 2**16
# how to compute and log: nothing that changes where data, passwords, models or code come from or go to, nor which
# series of a patient is graded
WORKING_FOLDER = ("device", "threads", "batch", "prefetch", "log_level", "log_format")
SECRET = ("broker", "management", "console_token")  # their values may have a password, so no message quotes them
FLAGS = {  # the others have the name of their setting, those of the DICOM node and the console without that word
    "roots": "--root",
    "train_profile": "--profile",
    "console_folder": "--out",
}


class SettingsError(UsageError):
    """A setting has an invalid value. The text has the setting's name as the user wrote it, and what is expected."""


def _of_user(variable: str, default: str) -> Path:
    """The user's folder ``gliaflow`` below the one that a variable of the XDG Base Directory Specification names.

    The specification ignores relative paths. They would be in the working folder, which may be somebody else's.

    Raises
    ------
    SettingsError: the user has no home folder.
    """
    base = os.environ.get(variable, "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / default
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():
        raise SettingsError(f"this user has no home folder: set {variable} to the absolute path of a folder")
    return folder / "gliaflow"


def _state() -> Path:
    return _of_user("XDG_STATE_HOME", ".local/state")


class Settings(BaseSettings):
    """All settings. Each field's description is its documentation (``gliaflow serve --help``)."""

    model_config = SettingsConfigDict(env_prefix="GLIAFLOW_", extra="forbid", env_ignore_empty=True)

    broker: str = Field(
        "memory://", description="memory:// (this process) or amqp://user:password@host:5672/vhost; nodes with commas"
    )
    management: str = Field("", description="RabbitMQ's management API; default: port 15672 of the broker's host")
    broker_password_file: Path | None = Field(None, description="file with the password, if the URL has none")
    broker_ca: Path | None = Field(None, description="amqps://: authorities that may sign its certificate (PEM)")
    broker_cert: Path | None = Field(None, description="amqps://: this client's certificate, if the broker demands one")
    broker_key: Path | None = Field(None, description="amqps://: its key; default: in the same file")
    bundle: str | Path | None = Field(
        None,
        description="the model bundle: a folder, the name of one in bundles, s3://bucket/path, or demo (the default)",
    )
    bundle_sha256: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="the SHA-256 that its manifest.json must have, 64 digits of 0-9 and a-f",
    )
    device: str = Field(
        "cpu",
        pattern="^[a-z0-9]+$",
        description="cpu, or another device of the installed onnxruntime: cuda, tensorrt, openvino, coreml, dml, …",
    )
    threads: int = Field(0, ge=0, le=256, description="onnxruntime threads; 0: one for each core this process may use")
    tap: str = Field("", description="the tap where features are read; empty: the tap of the bundle's classifier")
    batch: int = Field(
        16, ge=1, le=64, description="the most slices in the U-Net at a time: one a core; on other devices, in one run"
    )
    sequences: Annotated[list[str] | None, NoDecode] = Field(
        None,
        description="sequences that clients send beside the FLAIR: t1,t1ce,t2 or none. Default: those of the bundle of "
        "stages in this process; none to stages on a broker",
    )
    roots: Annotated[list[str], NoDecode] = Field(
        [], description="allowed roots of scan URIs: /data,s3://bucket/scans, or JSON"
    )
    prefetch: int = Field(1, ge=1, le=64, description="open messages per stage; a crash counts for each")
    max_attempts: int = Field(5, ge=1, le=100, description="deliveries after which a message is a dead letter")
    deadline_s: float = Field(600, gt=0, le=1500, description="a message that takes longer ends the process")
    restart_killed: bool = Field(
        False, description="serve starts a stage that was killed again, and `gliaflow doctor` reports it"
    )
    assembly_timeout_s: float = Field(1200, gt=0, le=1500, description="a scan fails if its next part takes longer")
    assembler_shards: int = Field(
        1, ge=1, le=MAX_SHARDS, description="how many assemblers the scans are spread over; change it at any time"
    )
    generator: str = Field("", description="which of the bundle's generators is served; empty: its default")
    balance_share: float = Field(0.5, ge=0, lt=1, description="the largest synthetic share of a class; 0: no balancing")
    seed: int = Field(0, ge=0, description="seed of the balancer's synthetic features and of the trainer")
    health_host: str = Field("127.0.0.1", description="address for /livez, /readyz and /metrics")
    health_port: int = Field(0, ge=0, le=65535, description="port for these; 0: none")
    state: Path = Field(default_factory=_state, description="folder for memory://'s dead letters and fetched bundles")
    store: Path = Field(Path(), validate_default=True, description="trainer: the feature store; default: in state")
    store_free_gib: float = Field(2, ge=0, description="trainer: it records nothing if less disk would be free, in GiB")
    bundles: Path = Field(
        Path(), validate_default=True, description="folder of bundles: the trainer's new ones; default: in state"
    )
    train_after_s: float = Field(60, gt=0, description="trainer: starts when the store has not changed for so long")
    train_deadline_s: float = Field(86400, gt=0, description="trainer: a training run that takes longer is stopped")
    train_profile: str = Field("demo", description="trainer: a profile of `gliaflow train`")
    train_generator: str = Field("infogan", description="trainer: the generator variants to fit, separated by commas")
    train_options: Annotated[dict[str, Any], NoDecode] = Field(
        {}, description="trainer: options of the variants: steps=400,reacgan.steps=200, or JSON"
    )
    dicom_flair: str = Field(
        "flair|tirm|dark.?fluid",
        description="DICOM: a series is FLAIR if its description or protocol matches this regular expression",
    )
    dicom_min_slices: int = Field(10, ge=1, description="DICOM: a series with fewer slices is not taken")
    dicom_inversion_ms: Annotated[tuple[float, float], NoDecode] = Field(
        (1500, 3000),
        description="DICOM: inversion times of FLAIR, low,high, for a series that is not described as FLAIR",
    )
    dicom_echo_ms: float = Field(70, gt=0, description="DICOM: the shortest echo time of such a series")
    dicom_ae: str = Field("GLIAFLOW", description="DICOM node: its AE title")
    dicom_host: str = Field("127.0.0.1", description="DICOM node: address to listen on; 0.0.0.0: all of this machine")
    dicom_port: int = Field(11112, ge=0, le=65535, description="DICOM node: port to listen on; 0: a free one")
    dicom_allow: Annotated[list[str], NoDecode] = Field(
        [], description="DICOM node: AE titles that may send images: ORTHANC,CT1; any: every sender"
    )
    dicom_to: Annotated[list[str], NoDecode] = Field(
        [], description="DICOM node: where answers go: AE@HOST:PORT, tls://AE@HOST:PORT or https://HOST/dicom-web,…"
    )
    dicom_pacs: str = Field(
        "", description="DICOM node: AE@HOST:PORT of the archive that says how many images a series has (C-FIND)"
    )
    dicom_spool: Path = Field(
        Path(), validate_default=True, description="DICOM node: folder for images and answers; default: dicom in state"
    )
    dicom_spool_gib: float = Field(20, gt=0, description="DICOM node: the most GiB in the spool")
    dicom_free_gib: float = Field(1, ge=0, description="DICOM node: refuses images if less disk would be free, in GiB")
    dicom_object_mib: float = Field(1024, gt=0, description="DICOM node: the most MiB of one received object")
    dicom_settle_s: float = Field(
        30, gt=0, description="DICOM node, watch: a study is read when no image of it has come for so long"
    )
    dicom_incomplete_s: float = Field(
        3600,
        gt=0,
        description="DICOM node: after so long an incomplete series is set aside, and a study without FLAIR deleted",
    )
    dicom_keep_days: float = Field(7, ge=0, description="DICOM node: how long delivered answers are kept")
    dicom_capture: bool = Field(False, description="DICOM node: also send a secondary capture of the mask")
    dicom_associations: int = Field(16, ge=1, le=256, description="DICOM node: the most associations at a time")
    dicom_idle_s: float = Field(
        60, gt=0, le=3600, description="DICOM node: a peer that is silent for so long is cut off"
    )
    dicom_cert: Path | None = Field(None, description="DICOM node: its certificate (PEM); the listener then speaks TLS")
    dicom_key: Path | None = Field(None, description="DICOM node: its key; default: in the same file")
    dicom_ca: Path | None = Field(
        None, description="DICOM node: authorities (PEM) of peers; the listener then demands a certificate"
    )
    dicom_credentials: Path | None = Field(
        None, description="DICOM node: file with user:password or Bearer TOKEN for https:// destinations"
    )
    console_host: str = Field("127.0.0.1", description="console: address to listen on; 0.0.0.0: all of this machine")
    console_port: int = Field(8765, ge=0, le=65535, description="console: port to listen on; 0: a free one")
    console_names: Annotated[list[str], NoDecode] = Field(
        [], description="console: names (HOST or HOST:PORT) by which browsers may address it, besides localhost"
    )
    console_token: str = Field("", description="console: the token that opens it; default: a new one at each start")
    console_token_file: Path | None = Field(None, description="console: file with the token")
    console_folder: Path | None = Field(
        None, description="console: folder for scans and answers; default: a temporary one, deleted at the end"
    )
    console_reports: Path | None = Field(None, description="console: folder with evaluations and trainings to show")
    console_scans: int = Field(500, ge=1, le=100_000, description="console: scans that it keeps; then the oldest goes")
    console_gib: float = Field(5, gt=0, description="console: the most GiB of scans that it keeps")
    console_hours: float = Field(72, gt=0, description="console: how long it keeps a scan")
    console_upload_mib: float = Field(1024, gt=0, description="console: the most MiB of one uploaded file")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level on stderr")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON")

    @field_validator("broker")
    @classmethod
    def _is_a_broker(cls, url: str) -> str:
        if not url.startswith(("memory://", *(f"{scheme}://" for scheme in AMQP))):
            raise ValueError("expected memory://, amqp:// or amqps://")
        if not url.startswith("memory://"):
            parse_server_url(url)
        return url

    @field_validator("management")
    @classmethod
    def _is_an_api(cls, url: str) -> str:
        if url:
            parse_server_url(url, HTTP)
        return url

    @field_validator("roots", "dicom_allow", "dicom_to", "console_names", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return _json(value) if value.lstrip().startswith("[") else [root.strip() for root in value.split(",")]

    @field_validator("sequences", mode="before")
    @classmethod
    def _are_sequences(cls, value: Any) -> Any:
        names = [name.strip().casefold() for name in value.split(",")] if isinstance(value, str) else value
        names = [] if names == ["none"] else names
        if isinstance(names, list) and (unknown := [name for name in names if name not in SEQUENCES[1:]]):
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(SEQUENCES[1:])}, and not none")
        return names

    @field_validator("dicom_flair")
    @classmethod
    def _is_a_regular_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if not pattern:
            raise ValueError("an empty one would match every series")
        return pattern

    @field_validator("dicom_inversion_ms", mode="before")
    @classmethod
    def _is_a_range(cls, value: Any) -> Any:
        return [each.strip() for each in value.split(",")] if isinstance(value, str) else value

    @field_validator("train_options", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, Mapping):  # TOML reads reacgan.steps = 200 as a table in a table
            tables = {k: v for k, v in value.items() if isinstance(v, Mapping)}
            inner = {f"{name}.{option}": v for name, table in tables.items() for option, v in table.items()}
            return {k: v for k, v in value.items() if k not in tables} | inner
        if not isinstance(value, str):
            return value
        return _json(value) if value.lstrip().startswith("{") else parse_pairs(value)

    @field_validator("store", "bundles", "dicom_spool")
    @classmethod
    def _in_state(cls, folder: Path, info: ValidationInfo) -> Path:
        name = str(info.field_name).removesuffix("_spool")
        return folder if folder != Path() else info.data.get("state", _state()) / name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = [InitSettingsSource(settings_cls, values) for values in _files().values()]
        return init_settings, env_settings, *files


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings that apply. A flag that is None was not given.

    Raises
    ------
    SettingsError: a value is invalid, a file is not TOML, the file that GLIAFLOW_CONFIG names is missing, or the file
        of the working folder has a setting that it may not set.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(_explain(error, given)) from None


def _files() -> dict[Path, dict[str, Any]]:
    """The values of each settings file. The first file overrides the second.

    Raises SettingsError as ``load_settings`` does.
    """
    if named := os.environ.get("GLIAFLOW_CONFIG"):
        if not Path(named).is_absolute():
            raise SettingsError(f"GLIAFLOW_CONFIG: {named}: not an absolute path: write the whole path, from /")
        if not _is_file(Path(named)):
            raise SettingsError(f"GLIAFLOW_CONFIG: {named}: no such file")
        return {Path(named): _read_toml(Path(named))}
    try:
        own = _of_user("XDG_CONFIG_HOME", ".config") / CONFIG
    except SettingsError:  # as the user of a container
        own = Path(CONFIG)
    files = {path: _read_toml(path) for path in (Path(CONFIG), own) if _is_file(path)}
    if own in files and Path(CONFIG) in files and own.is_absolute() and own.samefile(CONFIG):
        del files[Path(CONFIG)]
    for name in files.get(Path(CONFIG), {}):
        if name in Settings.model_fields and name not in WORKING_FOLDER:
            raise SettingsError(
                f"{CONFIG}: {name}: the file of the working folder may not set this, as it may have come with scans; "
                f"use a flag, GLIAFLOW_{name.upper()}, or your own file, ~/.config/gliaflow/{CONFIG}"
            )
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a home folder that this user may not enter
        return False


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise SettingsError(f"{path}: over the limit of {MAX_CONFIG_BYTES} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; check its owner and permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None


def parse_pairs(text: str) -> dict[str, str]:
    """Options by name, from ``name=value,name=value``. Raises ValueError: a name or a ``=`` is missing."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    for name, equals, _ in pairs:
        if not name.strip() or not equals:
            raise ValueError(f"{name!r} is not name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _explain(error: ValidationError, flags: Mapping[str, Any]) -> str:
    """The first error: the setting as its user wrote it, the value, and what is expected."""
    first = error.errors()[0]
    name, *inner = map(str, first["loc"])
    field = Settings.model_fields.get(name)
    file = next((file for file, values in _files().items() if name in values), CONFIG)
    if field is None:
        return f"{file}: {name}: no such setting; gliaflow serve extractor --show-settings lists all"
    variable = f"GLIAFLOW_{name.upper()}"
    if name in flags:
        source = FLAGS.get(name, f"--{name.removeprefix('dicom_').removeprefix('console_').replace('_', '-')}")
    else:
        source = variable if any(key.upper() == variable for key in os.environ) else f"{file}: {name}"
    place = "".join(f"[{part}]" for part in inner)
    value = "" if name in SECRET else f" {first['input']!r:.200}:"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{source}{place}:{value} {reason} ({field.description})"


def available_cores() -> int:
    """The number of cores that this process may use, from its affinity and its cgroup v2 quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
