"""Texts in a CSV file, which a spreadsheet program must not take for formulas.

A name may begin with ``=``, also after characters that some programs skip, or after those at which some separate
columns. So ``'`` is written before what may begin a formula, and removed again when the table is read.
"""

from __future__ import annotations

import re

SKIPPED = r"""(?:[^\S\t\r\n]|["\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2060-\u2064\ufeff])"""  # by some programs
FORMULA = rf"'*{SKIPPED}*[=+\-@\t\r＝＋－＠]"
CELL = re.compile(rf"(?:^|(?<=[;\t\r\n]))(?={FORMULA})")  # a text may be separated at these characters too
QUOTED_CELL = re.compile(rf"(?:^|(?<=[;\t\r\n]))'(?={FORMULA})")


def quoted(text: str) -> str:
    """The text, with ``'`` before what may begin a formula."""
    return CELL.sub("'", text)


def unquoted(text: str) -> str:
    """The text that ``quoted`` was called with."""
    return QUOTED_CELL.sub("", text)
