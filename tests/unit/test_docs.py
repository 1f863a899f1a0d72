"""The documentation: the site builds without a warning, and every module that a page names exists."""

import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bgliaflow_[a-z]+(?:\.[A-Za-z_]\w*)+")
FACE = re.compile(r"(?<!\")\bgliaflow\.[A-Za-z_]\w*")  # in Python only: queues and exchanges have such names too
PAGES = [
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "proto/README.md", "deploy/*/README.md")
    for path in sorted(ROOT.glob(pattern))
]


def test_site_builds_without_warnings_or_broken_links(tmp_path):
    command = [sys.executable, ROOT / "docs" / "site" / "build.py", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=180)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "docs" / "api" / "plugins.html").read_text(encoding="utf-8")
    for name in ("contracts.Fitted", "contracts.FeatureSource", "augmentations.geometry.Geometric"):
        assert f'id="gliaflow_plugins.{name}"' in reference, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_objects_named_in_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "upgrading.md":
        text = re.sub(r"^\| .*? \|", "", text, flags=re.MULTILINE)  # the first column has the names of earlier versions
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert [name for name in sorted({*NAME.findall(text), *FACE.findall(code)}) if not exists(name)] == []


def test_messages_in_the_faults_page_are_those_of_the_code():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    table = page.split("## What happens")[1].split("##")[0]
    messages = re.findall(r"`((?!docker)[a-z]+(?: \w+)+)`", table)
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py"))
    assert len(messages) > 8
    for message in messages:
        assert re.search(re.sub(r"\d+", r"{[^}]+}", message), code), message


def exists(name: str) -> bool:
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
