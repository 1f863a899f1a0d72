"""docs/console-api.md and the code have the same routes."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import MagicMock

from gliaflow_console.app import STATUS, api_routes
from gliaflow_runtime.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "console-api.md").read_text(encoding="utf-8")


def test_the_page_lists_all_routes_of_the_api_and_no_other() -> None:
    console = MagicMock(settings=Settings())
    routes = api_routes(console)
    documented = re.findall(r"^\| ([A-Z]+) \| `(/[^`]+)` \|", PAGE, re.MULTILINE)
    assert sorted(documented) == sorted(
        (method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}
    )


def test_the_page_lists_the_status_of_each_error() -> None:
    documented = {int(status) for status in re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)}
    assert {*STATUS.values(), 400, 401, 403, 404, 408, 413, 500} == documented
