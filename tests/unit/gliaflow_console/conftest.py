"""The fixtures of several modules; those of the tests with a browser are in ``browser``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import chromium, console, new_page, page
from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_runtime.settings import Settings

__all__ = ["chromium", "console", "new_page", "page"]


@pytest.fixture(scope="module")
def networks() -> Networks:
    """The networks of the demo bundle."""
    return Networks(Settings())


@pytest.fixture
def store() -> Iterator[ScanStore]:
    """An empty store in a temporary folder."""
    with ScanStore(Settings()) as store:
        yield store
