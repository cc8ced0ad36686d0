"""Text for a terminal: what comes from files cannot move its cursor, colour it or hide."""

from __future__ import annotations


def plain(text: object) -> str:
    r"""The text in one line of characters that can be seen; others are spelled out.

    Controls and escapes go to `\x1b`, characters that turn the direction of writing to `\u202e`,
    halves of surrogate pairs to `\ud800`; tabs and ends of lines become spaces.

    Example:
        >>> print(plain("a\x1b[31mred\n  b"))
        a\x1b[31mred b
    """
    seen = "".join(
        c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode()
        for c in str(text)
    )
    return " ".join(seen.split())
