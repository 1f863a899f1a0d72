"""Names and texts of files and messages, as a terminal may print them."""

from __future__ import annotations

import unicodedata

# controls (C0, DEL, C1), formats (bidi, zero width), lone surrogates, separators of lines and of paragraphs
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    r"""The text on one line, with each character that acts on the terminal as ``\x1b``, ``\n`` or ``\u202e``.

    A file name or a message may contain commands to the terminal, line ends that forge a further line, and characters
    that reverse or hide other characters. Letters, accents and emoji of any language stay as they are.
    """
    if text.isprintable():
        return text
    escaped = (c.encode("unicode_escape").decode() if unicodedata.category(c) in ESCAPED else c for c in text)
    return "".join(escaped)
