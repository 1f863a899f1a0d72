"""Settings of every command: a flag wins over ``GLIAFLOW_*`` in the environment, that over a TOML file."""

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


class SettingsError(ValueError):
    """A setting that has a wrong value. The text names the setting."""


def _state() -> Path:
    """The user's state folder (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gliaflow"


class Settings(BaseSettings):
    """What a person may set. Each field's description is its documentation (``gliaflow serve --help``)."""

    model_config = SettingsConfigDict(env_prefix="GLIAFLOW_", extra="forbid", env_ignore_empty=True)

    broker: str = Field(
        "memory://", description="memory:// (this process) or amqp://user:password@host:5672/vhost; nodes with commas"
    )
    management: str = Field("", description="RabbitMQ's management API; default: port 15672 of the broker's host")
    broker_password_file: Path | None = Field(None, description="file with the password, where the URL has none")
    broker_ca: Path | None = Field(None, description="amqps://: who may have signed the broker's certificate (PEM)")
    broker_cert: Path | None = Field(None, description="amqps://: our certificate, for a broker that asks for one")
    broker_key: Path | None = Field(None, description="amqps://: its key; default: in the same file")
    bundle: str | Path | None = Field(
        None, description="the model bundle, a folder or s3://bucket/path; default: the shipped demonstration"
    )
    bundle_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="its manifest.json must have this SHA-256")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where onnxruntime computes; cuda fails if it is missing")
    threads: int = Field(0, ge=0, le=256, description="onnxruntime threads; 0: one for each core this process may use")
    tap: str = Field("", description="the tap that features are read from; empty: the one that the bundle grades by")
    batch: int = Field(4, ge=1, le=64, description="slices that pass through the U-Net at once")
    roots: list[str] = Field([], description='where a scan URI may point, as JSON: ["/data", "s3://bucket/scans"]')
    prefetch: int = Field(
        1, ge=1, le=64, description="messages a stage holds; over 1, what kills it takes others along"
    )
    max_attempts: int = Field(5, ge=1, le=100, description="deliveries after which a message is a dead letter")
    deadline_s: float = Field(600, gt=0, le=1500, description="a message in work for longer ends the process")
    assembly_timeout_s: float = Field(1200, gt=0, le=1500, description="how long a scan may wait for its next part")
    generator: str = Field("", description="the generator of the bundle that is served; empty: the bundle's own")
    balance_share: float = Field(0.5, ge=0, lt=1, description="most of a class that may be synthetic; 0: no balancing")
    seed: int = Field(0, ge=0, description="seed of the synthetic features made to balance, and of the trainer")
    health_host: str = Field("127.0.0.1", description="address for /livez, /readyz and /metrics")
    health_port: int = Field(0, ge=0, le=65535, description="port for them; 0: none")
    state: Path = Field(
        default_factory=_state, description="where memory:// keeps its dead letters, and bundles that were fetched"
    )
    store: Path = Field(Path(), validate_default=True, description="trainer: the feature store; default: in state")
    bundles: Path = Field(Path(), validate_default=True, description="trainer: for new bundles; default: in state")
    train_after_s: float = Field(60, gt=0, description="trainer: how long the store must be quiet before it fits")
    train_deadline_s: float = Field(86400, gt=0, description="trainer: a fit that takes longer is ended")
    train_profile: str = Field("demo", description="trainer: a profile of `gliaflow train`")
    train_generator: str = Field("infogan", description="trainer: the generator variants that are fitted, with commas")
    train_options: dict[str, Any] = Field({}, description='trainer: options of that variant, as JSON: {"epochs": 20}')
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged to stderr")
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
    """The settings in force. A flag that is None was not given.

    Raises
    ------
    SettingsError: a value is wrong, or GLIAFLOW_CONFIG names a file that is missing or no TOML.
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
    """Cores that this process may use: its affinity and, in a container, its cgroup quota (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
