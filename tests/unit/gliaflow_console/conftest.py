"""The fixtures of the tests with a browser."""

from browser import chromium, console, new_page, page

__all__ = ["chromium", "console", "new_page", "page"]
