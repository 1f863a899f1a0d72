"""Griffe extension of the documentation site: it rewrites our docstring sections to a form that Griffe parses.

Ours are an underlined title and one entry a line::

    Parameters
    ----------
    seed: the same seed gives the same networks.

Griffe's Google parser expects ``Parameters:`` and indented entries. It then checks each name against the signature.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Parameters|Raises|Returns|Yields)\n-{3,}\n", re.MULTILINE)
ENTRY = re.compile(r"^(?P<names>[\w.*]+(?:, [\w.*]+)*)(?:: ?(?P<text>.*))?$")
SESSION = re.compile(r"^>>>.*(?:\n(?:>>>|\.\.\.).*)*", re.MULTILINE)


def to_google(docstring: str) -> str:
    """``docstring`` with its underlined sections as sections of the Google style, and sessions (>>>) as code."""
    text = SESSION.sub(r"```python\n\g<0>\n```", docstring.replace("::\n", ":\n"))
    start, *sections = SECTION.split(text)
    return start + "".join(_section(title, body) for title, body in zip(sections[::2], sections[1::2], strict=True))


def _section(title: str, body: str) -> str:
    if title in ("Returns", "Yields"):  # a sentence, which must not be read as `type: description`
        return f"**{title}**\n\n{body}"
    lines: list[str] = []
    for line in body.rstrip().splitlines():
        entry = ENTRY.match(line)
        if entry is None:  # the text of the entry above continues
            lines.append(f"    {line}" if line.startswith(" ") else f"        {line}")
            continue
        names = entry["names"].split(", ") if title == "Parameters" else [entry["names"]]
        lines += [f"    {name}: {entry['text'] or ''}".rstrip() for name in names]
    return f"{title}:\n" + "\n".join(lines) + "\n\n"


class UnderlinedSections(griffe.Extension):
    """Rewrites each docstring before mkdocstrings parses it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_google(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self.on_object(obj=pkg)  # Griffe calls on_object for the members of a package only
