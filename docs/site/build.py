"""Build the documentation site and check it: ``python docs/site/build.py OUT`` (extra ``docs``).

The pages are the Markdown files of the repository, at the same relative paths, so a link works in both places. Zensical
runs in a temporary folder and fetches nothing. A message of the tools, a broken link or a page outside the navigation
fails the build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
MARKER = ".gliaflow-site"  # in a site that this program built, and so may replace
CONFIG = Path(__file__).with_name("mkdocs.yml")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "proto/README.md", "deploy/*/README.md")
SOURCES = ("docs", "proto", "plugins", "services")
QUIET = re.compile(r"(Build started|No issues found|Build finished in \S+|\s)*")
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)\)")


class SiteError(Exception):
    """The site has problems. The text names each with its page."""


def build(out: Path) -> None:
    """Build the whole site in the folder ``out``, and replace what is there.

    Raises
    ------
    SiteError: a tool reports a problem, a link is broken, or a page fetches something from another host.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise SiteError(f"{out}: is not empty and not an earlier site; name another folder")
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        for name in SOURCES:
            (project / name).symlink_to(ROOT / name)
        shutil.copy(CONFIG, project)
        for page in pages():
            copy = project / "pages" / page.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(_without_links_to_sources(page), encoding="utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")
        text = done.stdout + done.stderr
        if done.returncode or not QUIET.fullmatch(text):  # --strict ignores messages of Griffe and mkdocstrings
            raise SiteError(text)
        site = project / "site"
        (site / "404.html").unlink()  # its links hold only at the root of a host
        problems = [*_outside_navigation(), *(each for page in sorted(site.rglob("*.html")) for each in _faults(page))]
        if problems:
            raise SiteError("\n".join(problems).replace(f"{site}/", ""))
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(site, out)
        (out / MARKER).touch()


@cache
def pages() -> tuple[Path, ...]:
    """The Markdown files of the site."""
    return tuple(sorted({page for pattern in PAGES for page in ROOT.glob(pattern)}))


def _without_links_to_sources(page: Path) -> str:
    """The page's text, with a link to a file that is not a page of the site as plain text."""

    def replace(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return link[1] if target.exists() and target not in pages() else link[0]

    return LINK.sub(replace, page.read_text(encoding="utf-8"))


def _outside_navigation() -> Iterator[str]:
    navigation = CONFIG.read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE))
    names = {page.relative_to(ROOT).as_posix() for page in pages()}
    yield from (f"{name}: the page or its entry in nav of {CONFIG.name} is missing" for name in sorted(names ^ listed))


class _Page(HTMLParser):
    """The anchors of a page, its links, and the files that a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        if tag == "a" and (link := values.get("href")):
            self.links.append(link)
        elif source := values.get("src") or (values.get("href") if tag == "link" else None):
            self.fetched.append(source)


@cache
def _page(path: Path) -> _Page:
    return _Page(path)


def _faults(path: Path) -> Iterator[str]:
    page = _page(path)
    yield from (f"{path}: fetched from another host: {source}" for source in page.fetched if urlsplit(source).netloc)
    for link in dict.fromkeys([*page.links, *page.fetched]):
        address = urlsplit(link)
        if address.scheme or address.netloc:
            continue
        target = (path.parent / unquote(address.path)).resolve() if address.path else path
        if not target.is_file():
            yield f"{path}: no such file: {link}"
        elif address.fragment and target.suffix == ".html" and address.fragment not in _page(target).anchors:
            yield f"{path}: no such anchor: {link}"


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]))
    except SiteError as error:
        sys.exit(str(error))
