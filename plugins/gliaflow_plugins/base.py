"""What every plugin shares: a name, a typed options model, and one error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError


class PluginError(Exception):
    """A plugin that was asked for cannot be used. The text says which, why, and what there is instead."""


class Options(BaseModel):
    """Base of an options model: unknown names are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Protocol):
    """Anything chosen by name from config with options of its own."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...


def parse_options(plugin: Named, values: Mapping[str, Any]) -> BaseModel:
    """``values`` (from TOML, or ``--option k=v`` strings) as an instance of ``plugin.options``.

    Raises
    ------
    PluginError
        An option is unknown or out of range. Each is named, with what the plugin does take.
    """
    try:
        return plugin.options.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}" for fault in error.errors()
        )
        known = ", ".join(plugin.options.model_fields) or "none"
        raise PluginError(f"{plugin.name}: {faults} (options: {known})") from error
