"""Pages from templates: what every page has, and that untrusted text stays text."""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2
import pytest
from gliaflow_pages.pages import render_page
from read_page import UNTRUSTED, UNTRUSTED_SHOWN, PageReader, check_stands_alone

PAGE = """{% extends "base.html" %}
{% set title = "Page of " ~ name %}
{% set sections = [("first", "The first"), ("second", "The second")] %}
{% block summary %}<p title="{{ name }}">{{ name }} is 95 % right</p>{% endblock %}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    templates = tmp_path / "someones_report" / "templates"
    templates.mkdir(parents=True)
    (templates.parent / "__init__.py").touch()
    (templates / "page.html").write_text(PAGE)
    (templates / "first.html").write_text("<p>{{ name }}</p>")
    (templates / "second.html").write_text("{{ missing }}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "someones_report", raising=False)
    return "someones_report"


def test_a_page_has_the_sections_of_its_package_in_the_base_page(package: str) -> None:
    page = render_page(package, "page.html", name="demo", missing="here")
    check_stands_alone(page)
    read = PageReader(page)
    assert [a["href"] for a in read.all("a")] == ["#first", "#second"]
    assert [section["id"] for section in read.all("section")] == ["first", "second"]
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    assert "@media print" in page
    assert "demo is 95\u00a0% right" in page, "a percent sign stays beside its number"


def test_untrusted_text_is_escaped_everywhere(package: str) -> None:
    page = render_page(package, "page.html", name=UNTRUSTED, missing=UNTRUSTED)
    read = PageReader(page)
    assert not read.all("img")
    assert read.raw.count(UNTRUSTED_SHOWN) == 5  # title, heading, summary and both sections
    assert {"title": UNTRUSTED_SHOWN} in read.all("p")


def test_a_value_that_a_template_lacks_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        render_page(package, "page.html", name="demo")
