"""Text for a terminal: what comes from files cannot move its cursor, colour it or hide."""

from __future__ import annotations

import re


def plain(text: object) -> str:
    r"""The text in one line of characters that can be seen; others are spelled out.

    Controls and escapes go to `\x1b`, characters that turn the direction of writing to `\u202e`,
    halves of surrogate pairs to `\ud800`; tabs and ends of lines, with the spaces around them,
    become a space.

    Example:
        >>> print(plain("a\x1b[31mred\n  b"))
        a\x1b[31mred b
    """
    line = re.sub(r" *[^\S ]\s*", " ", str(text)).strip()
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
