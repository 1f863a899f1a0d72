"""Settings of all commands: a flag overrides ``GLIAFLOW_*`` in the environment, which overrides a TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gliaflow_runtime.errors import UsageError


class SettingsError(UsageError):
    """A setting has an invalid value. The text names the setting."""


def _state() -> Path:
    """The user's state folder (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gliaflow"


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
        None, description="the model bundle, a folder or s3://bucket/path; default: the shipped demonstration"
    )
    bundle_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="its manifest.json must have this SHA-256")
    device: Literal["cpu", "cuda"] = Field("cpu", description="the device of onnxruntime; cuda must be available")
    threads: int = Field(0, ge=0, le=256, description="onnxruntime threads; 0: one for each core this process may use")
    tap: str = Field("", description="the tap where features are read; empty: the tap of the bundle's classifier")
    batch: int = Field(4, ge=1, le=64, description="slices in one run of the U-Net")
    roots: list[str] = Field([], description='allowed roots of scan URIs, as JSON: ["/data", "s3://bucket/scans"]')
    prefetch: int = Field(1, ge=1, le=64, description="open messages per stage; a crash counts for each")
    max_attempts: int = Field(5, ge=1, le=100, description="deliveries after which a message is a dead letter")
    deadline_s: float = Field(600, gt=0, le=1500, description="a message that takes longer ends the process")
    assembly_timeout_s: float = Field(1200, gt=0, le=1500, description="a scan fails if its next part takes longer")
    generator: str = Field("", description="which of the bundle's generators is served; empty: its default")
    balance_share: float = Field(0.5, ge=0, lt=1, description="the largest synthetic share of a class; 0: no balancing")
    seed: int = Field(0, ge=0, description="seed of the balancer's synthetic features and of the trainer")
    health_host: str = Field("127.0.0.1", description="address for /livez, /readyz and /metrics")
    health_port: int = Field(0, ge=0, le=65535, description="port for these; 0: none")
    state: Path = Field(default_factory=_state, description="folder for memory://'s dead letters and fetched bundles")
    store: Path = Field(Path(), validate_default=True, description="trainer: the feature store; default: in state")
    bundles: Path = Field(Path(), validate_default=True, description="trainer: new bundles; default: in state")
    train_after_s: float = Field(60, gt=0, description="trainer: starts when the store has not changed for so long")
    train_deadline_s: float = Field(86400, gt=0, description="trainer: a training run that takes longer is stopped")
    train_profile: str = Field("demo", description="trainer: a profile of `gliaflow train`")
    train_generator: str = Field("infogan", description="trainer: the generator variants to fit, separated by commas")
    train_options: dict[str, Any] = Field({}, description='trainer: options of that variant, as JSON: {"epochs": 20}')
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level on stderr")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON")

    @field_validator("broker")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if not url.startswith(("memory://", "amqp://", "amqps://")):
            raise ValueError("expected memory://, amqp:// or amqps://")
        return url

    @field_validator("store", "bundles")
    @classmethod
    def _in_state(cls, folder: Path, info: ValidationInfo) -> Path:
        return folder if folder != Path() else info.data.get("state", _state()) / str(info.field_name)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("GLIAFLOW_CONFIG", "gliaflow.toml")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings that apply. A flag that is None was not given.

    Raises
    ------
    SettingsError: a value is invalid, or the file that GLIAFLOW_CONFIG names is missing or not TOML.
    """
    named = os.environ.get("GLIAFLOW_CONFIG")
    if named and not Path(named).is_file():
        raise SettingsError(f"GLIAFLOW_CONFIG: {named}: no such file")
    try:
        return Settings(**{name: value for name, value in (flags or {}).items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"{name}: {first['msg']} (from a flag, GLIAFLOW_{name.upper()}, or {named or 'gliaflow.toml'})"
        ) from None
    except ValueError as error:  # tomllib.TOMLDecodeError, and JSON in an environment variable
        raise SettingsError(str(error)) from None


def available_cores() -> int:
    """The number of cores that this process may use, from its affinity and its cgroup v2 quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
