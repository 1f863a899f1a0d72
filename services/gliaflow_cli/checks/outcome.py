"""What a check finds. A check returns a text if all is well, and raises one of these otherwise."""

from __future__ import annotations


class Wrong(Exception):
    """Mistakes, each as a text that says what to do."""


class Unseen(Exception):
    """The check could not be made, with the reason. Not a mistake in itself."""
