"""Errors that a person can correct, told in one line."""

from __future__ import annotations


class UsageError(ValueError):
    """What was asked for makes no sense. The text says what to do."""
