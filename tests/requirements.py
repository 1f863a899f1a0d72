"""What a test needs from the machine."""

from __future__ import annotations

import os

import pytest


def unavailable(what: str) -> None:
    """Skip the test on a laptop; in CI, where everything is to be had, fail it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
