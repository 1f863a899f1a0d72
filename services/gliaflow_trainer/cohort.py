"""A folder of labelled scans, read by whichever registered reader knows its layout."""

from __future__ import annotations

from pathlib import Path

from gliaflow_plugins.base import PluginError
from gliaflow_plugins.readers import Cohort
from gliaflow_plugins.registry import Registry


def read_cohort(folder: Path, registry: Registry) -> Cohort:
    """The cases in ``folder``.

    Raises
    ------
    PluginError: no reader knows the layout.
    FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for reader in registry.readers.values():
        cohort = reader.read(folder)
        if cohort is not None:
            return cohort
    known = ", ".join(registry.readers)
    raise PluginError(f"{folder}: no reader knows this layout (readers: {known}; see `gliaflow plugins`)")
